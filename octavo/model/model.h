#pragma once
// A model: its forward pass over backend ops. It owns activations and tables, never weights.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// One weight of each row of a ModelSpec, in its order, packed for one backend. Norm weights and
// biases are one canonical row (kernels/matrix.h). MTP rows are held and never computed with; one
// that the checkpoint lacks has no codes.
struct ModelWeights {
  std::vector<PackedMatrix> matrices;
  // Of each matrix, X.input_scale or the divisor X.input_global_scale as it is stored; 0: none is.
  // What is computed with stands in the matrix. Empty: none at all.
  std::vector<float> stored_input_scales;
  // What a forward pass needs beside them, made by DeriveWeights; empty for most architectures.
  std::vector<PackedMatrix> derived;
  // Digest of their canonical bytes, sealed by whoever completed them (sync): it names them in
  // replies. Absent: nobody did.
  std::optional<Hash128> digest = {};
};

// Fills weights->derived from the complete matrices: for MLA, W_UK transposed and W_UV of each head
// of each layer's kv_b_proj, in BF16 (decoded and rounded once, nearest even). A pure function of
// the matrices: a cold load and an update call it after the last matrix is packed.
// Errors: kExhausted; kUnsupported by name.
Status DeriveWeights(const ModelSpec& spec, const Backend& backend, ModelWeights* weights);

// What one token leaves in the KV cache of one layer: for MLA one head of [latent | rope key] with
// the latent as its value.
KvShape KvShapeOf(const ModelSpec& spec, DType dtype = DType::kBf16);

// Tokens of several sequences, flattened.
struct ForwardBatch {
  std::span<const int32_t> token_ids;  // [tokens]
  std::span<const int32_t> positions;  // [tokens]
  std::span<const Segment> segments;   // Consecutive rows, covering all tokens.
};

// One thread (the engine's).
class Model {
 public:
  virtual ~Model() = default;

  virtual const ModelSpec& spec() const = 0;
  virtual Backend& backend() = 0;

  // Runs all layers: writes the KV of every token into `kv` (one KvLayer a layer) and keeps the
  // normed final hidden states [tokens, hidden] until the next Forward.
  // tokens <= max_tokens of construction. Allocates nothing.
  virtual Status Forward(const ForwardBatch& batch, const ModelWeights& weights,
                         std::span<const KvLayer> kv) = 0;

  // The experts that tokens of the last Forward were sent to: [tokens, num_layers, top_k],
  // ascending within a token and layer; 0 for dense layers. Empty for a dense model. A view into
  // the model.
  virtual std::span<const int32_t> RoutedExperts() const { return {}; }

  // FP32 logits of some rows of the last Forward: logits [rows.size(), vocab], contiguous.
  // rows.size() <= max_logit_rows of construction.
  virtual Status Logits(std::span<const int32_t> rows, const ModelWeights& weights,
                        std::span<float> logits) = 0;
};

struct ModelLimits {
  int64_t max_tokens = 0;      // Tokens of one Forward.
  int64_t max_logit_rows = 0;  // Rows of one Logits.
  int64_t max_context = 0;     // Positions are below this.
};

// Errors: kUnsupported, by name, for an architecture or sizes without a forward pass.
Status CheckServable(const ModelSpec& spec);

// Builds the forward pass for spec.architecture; `backend` must outlive the model.
// Errors: those of CheckServable, kExhausted.
Result<std::unique_ptr<Model>> MakeModel(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits);

}  // namespace octavo
