#pragma once
// Qwen3-MoE: Qwen3 whose MLP is a mixture of experts in sparse layers (all but those that
// mlp_only_layers lists and decoder_sparse_step skips).
//
//   h = Embed(ids)
//   per layer:
//     a = Norm(h);  q, k, v = Linear(a);  q = Norm(q), k = Norm(k) per head;  q, k = Rope(q, k)
//     h = h + Linear_o(Attention(q, k, v))
//     m = Norm(h)
//     sparse: p = Softmax(Linear_router(m)) over all experts; the top_k largest are chosen, and
//             divided by their sum if norm_topk_prob;  h = h + sum_k p_k Expert_k(m)
//     dense:  h = h + Mlp(m)
//   logits = Linear_head(Norm(h))
//
// Source: Qwen3 Technical Report (2025); HF transformers modeling_qwen3_moe.py for the order of
// roundings.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// As MakeModel, for spec.architecture "Qwen3MoeForCausalLM".
Result<std::unique_ptr<Model>> MakeQwen3Moe(const ModelSpec& spec, Backend* backend,
                                            const ModelLimits& limits);

}  // namespace octavo
