#pragma once
// A mixture of experts: every token goes to its top_k experts.
//
//   logits = Linear_router(x);  experts, weights = Route(logits)
//   y = sum_k weights[k] * Expert_k(x) (+ shared),  Expert = the gated MLP of mlp.h
//
// Tokens are sorted by expert, so that a step reads the weights of each expert that is used once,
// and summed per token in the order of expert indices.
// Source: HF transformers modeling_qwen3_moe.py, modeling_deepseek_v3.py.

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/mlp.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

struct MoeRows {
  int router = -1;
  int router_bias = -1;           // -1: there is none.
  std::vector<int> gate;          // [experts]
  std::vector<int> up;            // [experts]
  std::vector<int> down;          // [experts]
  std::optional<MlpRows> shared;  // The shared expert.
};

// The experts of the sparse layer `layer` of `spec`. Errors: kInvalidArgument, by name.
Result<MoeRows> FindMoe(const ModelSpec& spec, const LayerRows& layer);

// Move-only. One thread.
class MoeBlock {
 public:
  // Errors: kExhausted.
  static Result<MoeBlock> Make(const ModelSpec& spec, const Backend& backend,
                               const ModelLimits& limits);

  // Reads step.normed, writes step.delta.
  Status Run(const LayerStep& step, const BlockInput& input, const MoeRows& rows);

  // As Model::RoutedExperts, of max_tokens.
  std::span<const int32_t> RoutedExperts() const { return routed_; }

 private:
  Status Route(const LayerStep& step, const BlockInput& input, const MoeRows& rows);
  // In FP32, [experts].
  std::span<const float> Bias(const PackedMatrix& stored);
  Status RunExperts(const LayerStep& step, Activations x, const MoeRows& rows);
  void Record(const LayerStep& step);
  // Weights of `rows`, one an expert, in experts_.
  std::span<const PackedMatrix* const> Experts(const LayerStep& step, std::span<const int> rows,
                                               std::vector<const PackedMatrix*>* experts);

  MoeSpec spec_;
  int64_t num_layers_ = 0;
  ActivationBuffer logits_;
  ActivationBuffer gate_;  // [tokens * top_k, intermediate]: rows sorted by expert.
  ActivationBuffer up_;
  ActivationBuffer down_;  // [tokens * top_k, hidden]
  ActivationBuffer shared_;
  std::optional<GatedMlp> shared_mlp_;
  std::vector<int32_t> experts_;      // [tokens, top_k]
  std::vector<float> weights_;        // [tokens, top_k]
  std::vector<int32_t> source_rows_;  // [tokens * top_k]: tokens in order of experts.
  std::vector<int32_t> row_of_slot_;
  std::vector<int32_t> offsets_;      // [experts + 1]
  std::vector<int32_t> sorted_rows_;  // 0, 1, 2, ...: the second projection reads sorted rows.
  std::vector<const PackedMatrix*> gate_weights_;  // Of the layer that runs, [experts].
  std::vector<const PackedMatrix*> up_weights_;
  std::vector<const PackedMatrix*> down_weights_;
  std::vector<float> bias_;      // Of the layer that runs, when it is stored in BF16.
  std::vector<int32_t> routed_;  // [max_tokens, num_layers, top_k]; 0 where a layer is dense.
};

}  // namespace octavo
