#pragma once
// DeepSeek-V3 and R1: multi-head latent attention (mla.h), and a mixture of experts with a shared
// one in all but the first layers.
//
//   h = Embed(ids)
//   per layer:
//     h = h + Mla(Norm(h))
//     m = Norm(h)
//     dense:  h = h + Mlp(m)
//     sparse: s = Sigmoid(Linear_router(m)); the top_k largest of s + bias within the best groups
//             are chosen; w = s of the chosen, over their sum if norm_topk_prob, times
//             routed_scaling_factor;  h = h + (sum_k w_k Expert_k(m) + Shared(m))
//   logits = Linear_head(Norm(h))
//
// Multi-token-prediction layers are no part of this pass.
// Source: DeepSeek-V3 Technical Report (2024), sections 2.1.1 and 2.1.2; HF transformers
// modeling_deepseek_v3.py for the order of roundings.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// As MakeModel, for spec.architecture "DeepseekV3ForCausalLM".
Result<std::unique_ptr<Model>> MakeDeepseekV3(const ModelSpec& spec, Backend* backend,
                                              const ModelLimits& limits);

}  // namespace octavo
