/* octavo.h: the C ABI of liboctavo.so.
 *
 * For trainers and tools that hold the weights of a language model in BF16, F16 or F32:
 *
 *   quantize  a matrix into any format, by the transform that `octavo convert` and the server use:
 *             the same values give the same bytes;
 *   policy    which weight has which format, from a model folder, a policy file or a server;
 *   update    new weights into running servers, as one transaction.
 *
 * Rules for every function:
 *
 * - C11, and C++ from it. Nothing throws through it. Symbols have the version OCTAVO_1; functions
 *   and trailing members of structs may be added under it, nothing is changed or taken away.
 * - A function that can fail returns an octavo_status and takes an octavo_error* last, which may be
 *   NULL. OCTAVO_OK leaves *error untouched. An output is written on OCTAVO_OK alone.
 * - What the library makes (octavo_quantized, octavo_policy, octavo_client, octavo_update,
 *   octavo_threads, octavo_buf) belongs to the caller and goes back through its own _free function,
 *   which takes NULL, too. What the caller passes in is borrowed until the call returns, but for
 *   an octavo_client or octavo_threads, which must outlive what was made with it.
 * - Tensors of the caller are never written. They lie in host memory, at any alignment.
 * - Threads: different objects may be used from different threads at once. An octavo_quantized or
 *   octavo_policy may be read from several; an octavo_client, octavo_update or octavo_threads is
 *   for one thread at a time. There is no global state.
 * - The caller's floating-point environment does not matter, but for the rounding mode, which must
 *   be to nearest; subnormals are kept even where the thread flushes them.
 * - Option structs begin with struct_size = sizeof of the struct; members that are zero mean the
 *   default. Text is UTF-8 and ends in a zero byte.
 */
#ifndef OCTAVO_OCTAVO_H_
#define OCTAVO_OCTAVO_H_

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define OCTAVO_ABI_VERSION 1

#if defined(__GNUC__)
#define OCTAVO_API __attribute__((visibility("default")))
#else
#define OCTAVO_API
#endif

/* --- Errors ----------------------------------------------------------------------------------- */

typedef int32_t octavo_status;
enum {
  OCTAVO_OK = 0,
  OCTAVO_INVALID_ARGUMENT = 1, /* The caller's input is wrong; the same call cannot succeed. */
  OCTAVO_NOT_FOUND = 2,        /* A named thing does not exist. */
  OCTAVO_CORRUPT = 3,          /* A file or a reply breaks its own format. */
  OCTAVO_UNSUPPORTED = 4,      /* Well formed, but not built here. */
  OCTAVO_EXHAUSTED = 5,        /* Memory, or another bound, is used up. */
  OCTAVO_UNAVAILABLE = 6,      /* Try again later: a server is busy, or away. */
  OCTAVO_CANCELLED = 7,        /* The operator of a server stopped it. */
  OCTAVO_INTERNAL = 8          /* Nobody's input. */
};

#define OCTAVO_MESSAGE_BYTES 2048

/* Memory of the caller's. The message names the thing, then what was expected and what came; it
 * ends in a zero byte, and is cut where it is longer than there is room. */
typedef struct octavo_error {
  octavo_status status;
  char message[OCTAVO_MESSAGE_BYTES];
} octavo_error;

/* "ok", "invalid argument", ...; "unknown" for any other number. Static text. */
OCTAVO_API const char* octavo_status_name(octavo_status status);

/* --- The library -------------------------------------------------------------------------------
 */

/* OCTAVO_ABI_VERSION of the library that is loaded. */
OCTAVO_API int32_t octavo_abi_version(void);
/* Such as "0.1.0". Static text. */
OCTAVO_API const char* octavo_version(void);

/* Text or bytes made by the library; data[size] is a zero byte. */
typedef struct octavo_buf {
  char* data;
  size_t size;
} octavo_buf;

/* Frees buf->data and zeroes *buf. */
OCTAVO_API void octavo_buf_free(octavo_buf* buf);

/* A team of threads that calls may share; without one a call works on the caller's thread alone.
 * It changes time, never bytes. */
typedef struct octavo_threads octavo_threads;

/* `num_threads` counts the caller; 0: as many as the machine lets this process use.
 * Errors: INVALID_ARGUMENT for fewer than 0 or more than 1024. */
OCTAVO_API octavo_status octavo_threads_create(int32_t num_threads, octavo_threads** out,
                                               octavo_error* error);
OCTAVO_API void octavo_threads_free(octavo_threads* threads);

/* --- Tensors -----------------------------------------------------------------------------------
 */

typedef int32_t octavo_dtype;
enum {
  OCTAVO_BOOL = 0,
  OCTAVO_U8 = 1,
  OCTAVO_I8 = 2,
  OCTAVO_U16 = 3,
  OCTAVO_I16 = 4,
  OCTAVO_U32 = 5,
  OCTAVO_I32 = 6,
  OCTAVO_U64 = 7,
  OCTAVO_I64 = 8,
  OCTAVO_F8_E4M3 = 9,
  OCTAVO_F8_E5M2 = 10,
  OCTAVO_F8_E8M0 = 11,
  OCTAVO_F16 = 12,
  OCTAVO_BF16 = 13,
  OCTAVO_F32 = 14,
  OCTAVO_F64 = 15
};

/* "BF16", "F8_E4M3", ...: the spelling of safetensors. NULL for any other number. Static text. */
OCTAVO_API const char* octavo_dtype_name(octavo_dtype dtype);
/* The inverse; -1 for any other text. */
OCTAVO_API octavo_dtype octavo_dtype_parse(const char* name);

#define OCTAVO_NDIM_MAX 8

/* A tensor that somebody else owns. */
typedef struct octavo_tensor {
  const void* data; /* Its first element; may be NULL when there are none. */
  octavo_dtype dtype;
  int32_t ndim;           /* 0 (a scalar) to OCTAVO_NDIM_MAX. */
  const int64_t* shape;   /* [ndim], outermost first. */
  const int64_t* strides; /* [ndim], in elements, of any sign; NULL: dense, row-major. */
} octavo_tensor;

/* --- Quantize ----------------------------------------------------------------------------------
 */

typedef int32_t octavo_format;
enum {
  OCTAVO_FORMAT_BF16 = 0,        /* Two bytes, no scale. */
  OCTAVO_FORMAT_FP8 = 1,         /* E4M3 in 128x128 blocks, one F32 scale each. */
  OCTAVO_FORMAT_FP8_UE8M0 = 2,   /* The same with scales that are powers of two. */
  OCTAVO_FORMAT_FP8_CHANNEL = 3, /* E4M3, one F32 scale a row. */
  OCTAVO_FORMAT_FP8_TENSOR = 4,  /* E4M3, one F32 scale. */
  OCTAVO_FORMAT_MXFP8 = 5,       /* E4M3 in groups of 32 along a row, one E8M0 scale each. */
  OCTAVO_FORMAT_NVFP4 = 6        /* E2M1 in groups of 16, one E4M3 scale each, one F32 scale. */
};

/* "bf16", "fp8", "fp8-ue8m0", ...: the spelling of --format. NULL for any other number. */
OCTAVO_API const char* octavo_format_name(octavo_format format);
/* The inverse; -1 for any other text. */
OCTAVO_API octavo_format octavo_format_parse(const char* name);

typedef int32_t octavo_layout;
enum {
  OCTAVO_LAYOUT_DEFAULT = 0,           /* ModelOpt's for nvfp4. */
  OCTAVO_LAYOUT_COMPRESSED_TENSORS = 1 /* The names and scales of compressed-tensors. */
};

typedef struct octavo_quantize_options {
  size_t struct_size;
  octavo_format format;
  octavo_layout layout;
  /* Of the weight, such as "model.layers.0.mlp.up_proj.weight": parts are named after it. NULL:
   * "weight". */
  const char* name;
  /* fp8-tensor and nvfp4: one value, the largest magnitude over all weights that share the scale
   * (octavo_amax of each; q/k/v, gate/up). NULL: the tensor is alone. */
  const float* shared_amax;
  /* Not 0: F32 and F16 are encoded as they are. 0: they are rounded to BF16 first (nearest even),
   * for that is the model that a trainer in BF16 runs. */
  int32_t direct;
  octavo_threads* threads;
} octavo_quantize_options;

/* The stored tensors of one weight: codes and scales. */
typedef struct octavo_quantized octavo_quantized;

typedef struct octavo_part {
  const char* name;     /* As a checkpoint names it: "X.weight", "X.weight_scale_inv". */
  const char* kind;     /* "codes", "scales", "tensor_scale", "tensor_divisor", "input_scale" or
                         * "input_divisor". A scale multiplies, a divisor divides. */
  octavo_tensor tensor; /* Dense. */
  size_t num_bytes;
} octavo_part;

/* Quantizes `tensor` [rows, cols] of BF16, F16 or F32, at any strides, as `octavo convert` does;
 * OCTAVO_FORMAT_BF16 takes any rank and gives the tensor in BF16. A strided tensor is copied once.
 * docs/formats.md says what the bytes are.
 * Errors: INVALID_ARGUMENT for another rank or dtype, for rows that are no multiple of 32 (mxfp8)
 * or 16 values (nvfp4), for NaN or infinity (how many, and the index of the first), and for a
 * magnitude above *shared_amax; EXHAUSTED without memory. */
OCTAVO_API octavo_status octavo_quantize(const octavo_tensor* tensor,
                                         const octavo_quantize_options* options,
                                         octavo_quantized** out, octavo_error* error);
/* Parts are numbered from 0; the codes come first. */
OCTAVO_API int32_t octavo_quantized_num_parts(const octavo_quantized* quantized);
/* Views into `quantized`, valid until it is freed. Errors: NOT_FOUND. */
OCTAVO_API octavo_status octavo_quantized_part(const octavo_quantized* quantized, int32_t part_idx,
                                               octavo_part* out, octavo_error* error);
OCTAVO_API void octavo_quantized_free(octavo_quantized* quantized);

/* The largest magnitude of what octavo_quantize would encode. Errors: as there. */
OCTAVO_API octavo_status octavo_amax(const octavo_tensor* tensor,
                                     const octavo_quantize_options* options, float* out,
                                     octavo_error* error);

/* --- Policy ------------------------------------------------------------------------------------
 */

/* Which weight of a model has which format, and which weights share a scale. */
typedef struct octavo_policy octavo_policy;

typedef struct octavo_weight {
  const char* name; /* Its HF name. Texts and shape are valid until the policy is freed. */
  const char* role; /* "attention.q", "mlp.up", "norm", ... */
  int32_t layer;    /* -1 outside the decoder layers. */
  octavo_format format;
  int32_t group;       /* Weights of one number share a scale; -1: none. */
  int32_t is_optional; /* Not 0: an update may leave it out. */
  int32_t ndim;
  const int64_t* shape;
} octavo_weight;

/* The policy of a model folder in HF layout (config.json is enough). `policy_toml`: the text of a
 * policy file (docs/policy.md), such as "format = \"fp8\"\nkeep_last = 2"; NULL: as it is stored.
 * Errors: NOT_FOUND or CORRUPT for the folder, UNSUPPORTED for its architecture, INVALID_ARGUMENT
 * for what the policy file says. */
OCTAVO_API octavo_status octavo_policy_load(const char* model_dir, const char* policy_toml,
                                            octavo_policy** out, octavo_error* error);
/* From a manifest: octavo_policy_manifest, or GET /octavo/v1/manifest (docs/api.md).
 * Errors: CORRUPT naming the key, UNSUPPORTED for a format of a newer engine. */
OCTAVO_API octavo_status octavo_policy_parse(const char* json, size_t size, octavo_policy** out,
                                             octavo_error* error);
/* The manifest, as JSON. */
OCTAVO_API octavo_status octavo_policy_manifest(const octavo_policy* policy, octavo_buf* out,
                                                octavo_error* error);
/* Weights are numbered from 0, in forward order. */
OCTAVO_API int64_t octavo_policy_num_weights(const octavo_policy* policy);
/* Errors: NOT_FOUND. */
OCTAVO_API octavo_status octavo_policy_weight(const octavo_policy* policy, int64_t weight_idx,
                                              octavo_weight* out, octavo_error* error);
OCTAVO_API octavo_status octavo_policy_find(const octavo_policy* policy, const char* name,
                                            octavo_weight* out, octavo_error* error);
OCTAVO_API void octavo_policy_free(octavo_policy* policy);

/* --- Updates -----------------------------------------------------------------------------------
 */

/* One or several running servers that get the same weights. */
typedef struct octavo_client octavo_client;

typedef struct octavo_client_options {
  size_t struct_size;
  const char* const* urls; /* [num_urls], "http://HOST:PORT". */
  size_t num_urls;
  const char* api_key;      /* Of every server; NULL: none. */
  double connect_timeout_s; /* 0: 10. */
  double idle_timeout_s;    /* Longest wait without a byte of progress; 0: 600. */
} octavo_client_options;

/* Contacts nobody yet. Errors: INVALID_ARGUMENT for no URL or one that is none. */
OCTAVO_API octavo_status octavo_client_create(const octavo_client_options* options,
                                              octavo_client** out, octavo_error* error);
OCTAVO_API void octavo_client_free(octavo_client* client);

/* What the servers take. Errors: UNAVAILABLE when one is away, INVALID_ARGUMENT when two of them
 * serve different policies, those of octavo_policy_parse. */
OCTAVO_API octavo_status octavo_client_manifest(octavo_client* client, octavo_policy** out,
                                                octavo_error* error);
/* {"digest", "weight_version", "tensors": {NAME: HEX}} of what is live on the first server, read
 * from its memory; of names that match `pattern`, where '*' is any text. NULL: of all. `digest` is
 * of the whole model in any case. */
OCTAVO_API octavo_status octavo_client_checksum(octavo_client* client, const char* pattern,
                                                octavo_buf* out, octavo_error* error);

enum {
  OCTAVO_QUANTIZE_IN_ENGINE = 0, /* Weights are sent in BF16. */
  OCTAVO_QUANTIZE_IN_TRAINER = 1 /* They are sent as codes and scales, by the engine's manifest. */
};

typedef struct octavo_update_options {
  size_t struct_size;
  const char* weight_version; /* Label of the new weights; NULL: the live one plus one. */
  /* What happens to running requests: "retract", "drain", "abort" or "in_place"; NULL: "retract"
   * (docs/update.md). */
  const char* in_flight;
  const char* staging;     /* "shadow" or "in_place"; NULL: "shadow" (docs/update.md). */
  int32_t quantize_in;     /* The bytes that are live are the same. */
  int64_t bucket_bytes;    /* Of tensors in one request; 0: 64 MiB. The update holds one bucket. */
  octavo_threads* threads; /* For quantizing in the trainer. */
} octavo_update_options;

/* An update that is open on all servers of a client: put every weight, then commit. Until then,
 * and after any error, the servers go on with the weights that they have. */
typedef struct octavo_update octavo_update;

/* Errors: UNAVAILABLE when a server is away or has another update open, EXHAUSTED when its memory
 * has no room; then it is open on none. */
OCTAVO_API octavo_status octavo_update_begin(octavo_client* client,
                                             const octavo_update_options* options,
                                             octavo_update** out, octavo_error* error);
/* Sends a weight in BF16, F16 or F32 at any strides, under its HF name, or one of its stored parts
 * (codes, scales) under the part's name and dtype. Weights come in any order. The tensor is copied
 * into the bucket before the call returns, and a full bucket is sent: the error may be that of an
 * earlier tensor, which it names. Quantized in the trainer, weights that share a scale wait for
 * each other, in BF16. After an error the update can only be aborted.
 * Errors: INVALID_ARGUMENT for what no server takes: name, shape, dtype, NaN or infinity;
 * UNAVAILABLE for a server that is away. */
OCTAVO_API octavo_status octavo_update_put(octavo_update* update, const char* name,
                                           const octavo_tensor* tensor, octavo_error* error);
/* Sends what is left and has every server check that it holds all weights. Calling it is optional.
 * Errors: INVALID_ARGUMENT naming what is missing. */
OCTAVO_API octavo_status octavo_update_seal(octavo_update* update, octavo_error* error);
/* Seals and makes the weights live on every server. `report` may be NULL, else it gets what
 * `octavo push --json` prints. Errors: as octavo_update_seal; then it is aborted. A failed commit
 * cannot take back another server's: the message says where the new weights are live. */
OCTAVO_API octavo_status octavo_update_commit(octavo_update* update, octavo_buf* report,
                                              octavo_error* error);
/* Drops what was staged. Nothing after a commit. */
OCTAVO_API void octavo_update_abort(octavo_update* update);
/* Aborts an update that is open. */
OCTAVO_API void octavo_update_free(octavo_update* update);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* OCTAVO_OCTAVO_H_ */
