#pragma once
// Multi-head latent attention in its absorbed form, for prefill and decode alike, so that both
// round alike. A token leaves one latent c and one rotary key r in the cache, for all heads.
//
//   q = Linear_q_b(Norm(Linear_q_a(a))), or Linear_q(a);  per head q = [qn | qr]
//   c | r = Linear_kv_a(a);  c = Norm(c);  qr, r = Rope(qr, r)
//   per head: q' = qn W_UK;  p = Softmax(scale * (q' . c + qr . r));  o = (sum_j p_j c_j) W_UV^T
//   delta = Linear_o(o)
//
// where W_UK [nope, kv_lora] and W_UV [v, kv_lora] are the head's rows of kv_b_proj, in BF16
// (DeriveWeights of model.h). scale = (nope + rope)^-0.5, times YaRN's factor (rope_table.h).
// Source: DeepSeek-V2 (2024), section 2.1 and appendix C; HF transformers modeling_deepseek_v3.py
// for names and the order of roundings.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/model.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

struct MlaRows {
  LinearRows q;  // q_b_proj, or q_proj when q has no latent.
  LinearRows q_a;
  int q_a_norm = -1;
  LinearRows kv_a;
  int kv_a_norm = -1;
  LinearRows o;
};

// Errors: kInvalidArgument, by name.
Result<MlaRows> FindMla(const ModelSpec& spec, const LayerRows& layer);

// DeriveWeights of model.h for an MLA: `derived` gets for each layer W_UK^T [kv_lora, nope] of all
// heads, then W_UV [v, kv_lora] of all heads.
Status DeriveMlaWeights(const ModelSpec& spec, const Backend& backend, ModelWeights* weights);

// Move-only. One thread.
class MlaAttention {
 public:
  // Errors: kExhausted.
  static Result<MlaAttention> Make(const ModelSpec& spec, const Backend& backend,
                                   const ModelLimits& limits);

  // Reads step.normed, writes step.delta.
  Status Run(const LayerStep& step, const BlockInput& input, const MlaRows& rows);

 private:
  Status Project(const LayerStep& step, const BlockInput& input, const MlaRows& rows);
  Status Rotate(const LayerStep& step, Activations x, int64_t num_heads, int64_t head_stride);
  // y of every head from x of that head: x [tokens * heads, in], y [tokens * heads, out], with the
  // head's matrix of step.weights.derived from `first` on.
  struct HeadsArgs {
    Activations x;
    size_t first = 0;
    Activations y;
  };
  Status MultiplyHeads(const LayerStep& step, const HeadsArgs& args);
  // Fills the row lists for so many tokens.
  void GroupByHead(int64_t tokens);

  MlaSpec spec_;
  int64_t num_heads_ = 0;
  int64_t head_dim_ = 0;  // nope + rope.
  float scale_ = 0.0F;
  RopeTable rope_;
  ActivationBuffer q_latent_;         // [tokens, q_lora]
  ActivationBuffer q_;                // [tokens, heads * (nope + rope)]
  ActivationBuffer latent_;           // [tokens, kv_lora + rope]: c | r.
  ActivationBuffer absorbed_;         // [tokens, heads * (kv_lora + rope)]: q' | qr.
  ActivationBuffer by_head_;          // [heads * tokens, kv_lora or v], head by head.
  ActivationBuffer attention_;        // [tokens, heads * kv_lora]
  ActivationBuffer values_;           // [tokens, heads * v]
  int64_t grouped_tokens_ = -1;       // Tokens that the lists below are for.
  std::vector<int32_t> token_major_;  // [heads * tokens]: row t * heads + h of row h * tokens + t.
  std::vector<int32_t> head_major_;   // Its inverse.
  std::vector<int32_t> offsets_;      // [heads + 1]
  std::vector<const PackedMatrix*> matrices_;  // [heads], of the product that runs.
};

}  // namespace octavo
