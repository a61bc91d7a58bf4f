#pragma once
// What a vector path has to provide. Each path (AVX2, AVX-512, AVX-512 with VBMI; AMX over one of
// them) is a table of plain functions, so that paths can live side by side in one process and be
// compared. All tables give the same bits; where an operand lies is decided above (linear.cc,
// attention.cc), what is computed with it here.

#include <cstddef>
#include <cstdint>

#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/matrix.h"

namespace octavo::cpu {

// Rows of A times panels of B (layout.h), in ops.h order:
//   P = MatMul(a[r, :], panel p, column n) over num_tiles tiles, continued from c unless from_zero;
//   c[r, 16 p + n] = P.
// With row_scales there is a P for every kFp8BlockDim of depth, from +0, and
//   c[r, 16 p + n] = fma(P, row_scales[block, r], c or +0), block by block.
struct MatMulArgs {
  const std::byte* a = nullptr;  // [rows, 32 * tiles] A elements.
  int64_t a_stride = 0;          // In elements.
  int64_t num_rows = 0;
  const uint16_t* b = nullptr;  // Panel p at b + p * panel_stride; tiles are contiguous.
  int64_t panel_stride = 0;     // In elements.
  int64_t num_panels = 0;
  int64_t num_tiles = 0;
  float* c = nullptr;  // [rows, 16 * panels].
  int64_t c_stride = 0;
  bool from_zero = false;             // c is overwritten; otherwise it is added to.
  const float* row_scales = nullptr;  // [blocks, rows] or null.
  int64_t row_scale_stride = 0;       // From block to block.
  bool b_is_paired = false;           // b went through MatMulKernel::pair_b.
  // While a line of B is read, the line this many bytes on is fetched into the cache.
  int64_t prefetch_bytes = 0;
};

// How the weights of a panel are stored (layout.h): all that decoding needs to know.
enum class PanelCode {
  kBf16,
  kE4m3,   // Codes alone; scales are applied to sums.
  kMxfp8,  // E4M3, and E8M0 scales in runs.
  kNvfp4,  // E2M1 in runs, and E4M3 group scales in runs.
};

// Quantized panels times few rows, decoded on the way (no copy in memory).
struct StreamArgs {
  const std::byte* a = nullptr;  // [rows, depth] A elements.
  int64_t a_stride = 0;          // In elements.
  int64_t num_rows = 0;
  const uint8_t* codes = nullptr;  // Panel p at codes + p * panel_bytes.
  int64_t panel_bytes = 0;
  const uint8_t* scales = nullptr;  // Panel p at scales + p * panel_scale_bytes; in runs.
  int64_t panel_scale_bytes = 0;
  int64_t num_panels = 0;
  int64_t depth = 0;  // A multiple of 32.
  // kE4m3 with FP8 blocks: c = acc of LinearArgs; all panels in one row of b_scales. Else null, and
  // c = MatMul.
  const float* a_scales = nullptr;  // [rows, blocks].
  const float* b_scales = nullptr;  // [blocks].
  // kMxfp8: every element of a is 0 or of a magnitude from 2^-60 to 2^60.
  bool a_is_moderate = false;
  float* c = nullptr;  // [rows, 16 * panels].
  int64_t c_stride = 0;
};

// Tiles of one quantized panel to the pairs of a BF16 panel.
struct DecodeArgs {
  const uint8_t* codes = nullptr;   // Of the whole panel.
  const uint8_t* scales = nullptr;  // Likewise.
  int64_t first_tile = 0;
  int64_t num_tiles = 0;
  uint16_t* pairs = nullptr;
  // Each four depths as the pairs (2, 0) and (3, 1), the lower half first: what
  // MatMulKernel::pair_b makes of panels. Else (0, 1) and (2, 3).
  bool is_paired = false;
  // The codes that are decoded after these, as many: fetched into the L2 cache on the way.
  const uint8_t* next = nullptr;
};

struct PanelKernels {
  // For up to this many rows stream, with FP32 A elements, is faster than decode and matmul.
  int64_t stream_rows = 0;
  void (*stream)(PanelCode code, const StreamArgs& args) = nullptr;
  // Whether the MXFP8 scales of a panel are 0 (of groups of zeros) or from 2^-50 to 2^50: with
  // inputs of StreamArgs::a_is_moderate they may multiply sums instead of weights.
  bool (*has_moderate_scales)(const uint8_t* scales, int64_t num_tiles) = nullptr;
  void (*decode)(PanelCode code, const DecodeArgs& args) = nullptr;
};

// One row of a linear layer's input (linear_input.h) to A elements.
struct InputRowArgs {
  InputForm form = InputForm::kBf16;
  float scale = 1.0F;           // As QuantizeLinearInput has it.
  const uint16_t* x = nullptr;  // [cols]
  int64_t cols = 0;
  std::byte* a = nullptr;  // [padded] x^, zeros from `cols` on.
  int64_t padded = 0;
  float* group_scales = nullptr;  // kFp8Group: [ceil(cols / 128)].
  InputRanges* ranges = nullptr;  // Forms of nvfp4: what the row counts for is added. Or null.
};

// From the sums of one row to its outputs: y[i] = A((c[i] * factor) * col_factor + bias[i]), where
// col_factor is col_factors[i] if that is given.
struct OutputRowArgs {
  const float* c = nullptr;
  int64_t n = 0;
  float factor = 1.0F;
  float col_factor = 1.0F;
  const float* col_factors = nullptr;
  const uint16_t* bias = nullptr;  // BF16, or null: nothing is added.
  bool is_f32 = false;             // y is FP32, else BF16.
  void* y = nullptr;
};

struct InputRow {
  float factor = 1.0F;
  // kMxfp8: every x^ is 0 or of a magnitude from 2^-60 to 2^60 (StreamArgs::a_is_moderate).
  bool is_moderate = false;
};

struct InputKernels {
  // The A elements are FP32 or BF16 bits.
  InputRow (*quantize_a32)(const InputRowArgs& args);
  InputRow (*quantize_a16)(const InputRowArgs& args);
  // The largest magnitude of x; NaN when one is NaN or infinite.
  float (*finite_amax)(const uint16_t* x, int64_t n);
  void (*store_outputs)(const OutputRowArgs& args);
  // acc[i] = fma(p[i], scale, acc[i]), where acc counts as +0 if `from_zero`.
  void (*scale_add)(const float* p, float scale, int64_t n, bool from_zero, float* acc);
};

// The product of rows with panels, and the form of its left operand.
struct MatMulKernel {
  // Bytes of an A element: 4 (FP32 holding a BF16 value) or 2 (BF16 bits).
  int64_t a_elem_bytes = 4;
  // matmul may read and write whole multiples of this many rows; what lies there is not used.
  int64_t row_step = 1;
  // Rows of one block of attention: a multiple of what the kernel keeps in registers.
  int64_t attention_rows = 24;
  // Called by every thread before its first and after its last matmul of an op.
  void (*begin)() = nullptr;
  void (*end)() = nullptr;
  // Brings A elements into the order in which matmul wants them, a multiple of 32 of them; null:
  // they lie as they are.
  void (*order_a)(uint16_t* a, int64_t n) = nullptr;
  // Brings whole tiles of panels into the order in which matmul reads them fastest; worth its
  // while for many rows. `next`, as much of it, is fetched into the L2 cache on the way. Null:
  // there is no better one.
  void (*pair_b)(const uint16_t* from, int64_t num_elems, const uint16_t* next,
                 uint16_t* to) = nullptr;
  void (*matmul)(const MatMulArgs& args) = nullptr;
  // Quantized panels that are decoded at once before they are multiplied: what stays in the L1
  // cache.
  int64_t decoded_panels = 8;
  // Whether matmul takes row_scales; then B must be paired if there is a pair_b.
  bool has_row_scales = false;
  // Quantized panels times up to stream_rows rows, decoded on the way: kE4m3, and kMxfp8 where rows
  // and scales are moderate. Null: there is none for these A elements.
  int64_t stream_rows = 0;
  void (*stream)(PanelCode code, const StreamArgs& args) = nullptr;
  // The multiply-add instruction alone, on registers, `rounds` times some independent ones; returns
  // the FLOPs done. What matmul is measured against (machine_peaks.h).
  int64_t (*burn)(int64_t rounds) = nullptr;
};

// One token of CombineArgs.
struct CombineRowArgs {
  const uint16_t* x = nullptr;
  int64_t x_stride = 0;
  const int32_t* rows = nullptr;   // [top_k]
  const float* weights = nullptr;  // [top_k]
  int64_t top_k = 0;
  const uint16_t* shared = nullptr;  // Or null.
  int64_t n = 0;
  uint16_t* y = nullptr;
};

inline constexpr int64_t kMaxInterleavedDim = 512;

// Functions on rows. All counts are elements; pointers need no alignment.
struct RowKernels {
  // a[i] = x[i] as A elements of 4 or 2 bytes.
  void (*load_a32)(const uint16_t* x, int64_t n, float* a);
  // The formulas of ops.h on one row.
  void (*rms_norm)(const uint16_t* x, const uint16_t* weight, int64_t n, float eps, uint16_t* y);
  void (*add)(const uint16_t* delta, int64_t n, uint16_t* x);
  void (*silu_mul)(const uint16_t* gate, const uint16_t* up, int64_t n, uint16_t* y);
  void (*rope)(const float* cos, const float* sin, int64_t head_dim, uint16_t* x);
  // head_dim at most kMaxInterleavedDim.
  void (*rope_interleaved)(const float* cos, const float* sin, int64_t head_dim, uint16_t* x);
  // p of RouteArgs from FP32 logits. p may be x.
  void (*softmax)(const float* x, int64_t n, float* p);
  void (*sigmoid)(const float* x, int64_t n, float* p);
  // choices[i] = p[i] + bias[i], or p[i] if bias is null; returns whether all are finite.
  bool (*choose)(const float* p, const float* bias, int64_t n, float* choices);
  // The index of the largest x[i], none of which is NaN, the lowest of equal ones; its value goes
  // to *largest and becomes -inf.
  int64_t (*take_largest)(int64_t n, float* x, float* largest);
  void (*combine)(const CombineRowArgs& args);
  // s[i] = scale * s[i]; returns the largest.
  float (*scale_max)(float scale, int64_t n, float* s);
  float (*max)(const float* x, int64_t n);
  // Lane sum of p[i] = Exp(x[i] - max); the A forms replace x by BF16(p), zeros from n to `padded`.
  float (*exp_sum)(const float* x, int64_t n, float max);
  float (*exp_sum_a32)(float max, int64_t n, int64_t padded, float* x);
  float (*exp_sum_a16)(float max, int64_t n, int64_t padded, float* x);
  // y[i] = BF16(o[i] / sum + 0.0).
  void (*divide)(const float* o, float sum, int64_t n, uint16_t* y);
};

// Panels of FP8 codes of one page's K or V (kv_layout.h) to BF16 panels.
struct KvDecodeArgs {
  const uint8_t* codes = nullptr;
  const uint8_t* scales = nullptr;  // Of the 32 tokens.
  int64_t num_panels = 0;
  int64_t panel_elems = 0;
  uint16_t* pairs = nullptr;
  int64_t prefetch_bytes = 0;  // As MatMulArgs has it.
};

// Few rows of FP32 A elements times the FP8 panels of a page, decoded on the way: MatMulArgs with
// KvDecodeArgs for b.
struct KvMatMulArgs {
  const std::byte* a = nullptr;
  int64_t a_stride = 0;  // In elements.
  int64_t num_rows = 0;  // At most max_fused_rows.
  KvDecodeArgs b;        // pairs is not used.
  float* c = nullptr;    // [rows, 16 * panels].
  int64_t c_stride = 0;
  bool from_zero = false;
};

struct KvKernels {
  // codes[i] = E4M3(x[i] * factor), which is at most 448.
  void (*encode_e4m3)(const uint16_t* x, int64_t n, float factor, uint8_t* codes);
  // The BF16 values of token t to its places in the panels of a page (kv_layout.h).
  void (*store_values)(const uint16_t* v, int64_t n, int64_t t, uint16_t* panels);
  void (*decode_keys)(const KvDecodeArgs& args);
  void (*decode_values)(const KvDecodeArgs& args);
  // For up to this many rows these are faster than decoding and matmul.
  int64_t max_fused_rows = 0;
  void (*score_keys)(const KvMatMulArgs& args);
  void (*weigh_values)(const KvMatMulArgs& args);
};

// 16 rows of `row_bytes` each, and the 64-byte lines of their panel (layout.h): word i (4 bytes) of
// row n is word n of line i, or lies where FP8 panels have the four codes of one column.
struct LinesArgs {
  bool is_fp8 = false;
  const std::byte* from = nullptr;
  std::byte* to = nullptr;
  int64_t row_bytes = 0;
  int64_t num_lines = 0;  // At most row_bytes / 4.
};

// Both move the first lines, as many as whole vectors take, and return how many those were.
struct LayoutKernels {
  int64_t (*pack)(const LinesArgs& args) = nullptr;    // Rows to lines.
  int64_t (*unpack)(const LinesArgs& args) = nullptr;  // Lines to rows.
};

// The vector instructions that a table needs.
enum class VectorTarget { kAvx2, kAvx512, kAvx512Vbmi };

// Null when this build was compiled without the target; does not ask the processor.
const MatMulKernel* FindMatMulKernel(VectorTarget target);
const RowKernels* FindRowKernels(VectorTarget target);
const PanelKernels* FindPanelKernels(VectorTarget target);
const InputKernels* FindInputKernels(VectorTarget target);
const KvKernels* FindKvKernels(VectorTarget target);
const LayoutKernels* FindLayoutKernels(VectorTarget target);

}  // namespace octavo::cpu
