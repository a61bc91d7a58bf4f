#pragma once
// Grouped-query attention, in the phases that architectures put together:
//
//   Project:    q, k, v = Linear(a) (+ bias)
//   NormHeads:  q = Norm(q), k = Norm(k) per head, one weight for all heads
//   Attend:     q, k = Rope(q, k); cache k, v; delta = Linear_o(Attention(q)) (+ bias)
//
// Source: Ainslie et al., GQA (2023); HF transformers for the order of roundings.

#include <cstdint>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/model.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

struct AttentionRows {
  LinearRows q;
  LinearRows k;
  LinearRows v;
  LinearRows o;
};

// Errors: kInvalidArgument, by name.
Result<AttentionRows> FindAttention(const LayerRows& layer);

// Move-only. One thread.
class GqaAttention {
 public:
  // Errors: kExhausted.
  static Result<GqaAttention> Make(const ModelSpec& spec, const Backend& backend,
                                   const ModelLimits& limits);

  Status Project(const LayerStep& step, const BlockInput& input, const AttentionRows& rows);
  Status NormHeads(const LayerStep& step, int q_norm_row, int k_norm_row, float eps);
  // Writes step.delta.
  Status Attend(const LayerStep& step, const AttentionRows& rows);

 private:
  Status Rotate(const LayerStep& step, Activations x, int64_t num_heads);

  int64_t num_heads_ = 0;
  int64_t num_kv_heads_ = 0;
  int64_t head_dim_ = 0;
  float scale_ = 0.0F;
  RopeTable rope_;
  ActivationBuffer q_;
  ActivationBuffer k_;
  ActivationBuffer v_;
  ActivationBuffer attention_;
};

}  // namespace octavo
