#pragma once
// Qwen3 dense: grouped-query attention with per-head norms of q and k, and a gated MLP.
//
//   h = Embed(ids)
//   per layer:
//     a = Norm(h);  q, k, v = Linear(a);  q = Norm(q), k = Norm(k) per head;  q, k = Rope(q, k)
//     h = h + Linear_o(Attention(q, k, v))
//     m = Norm(h)
//     h = h + Linear_down(Silu(Linear_gate(m)) * Linear_up(m))
//   logits = Linear_head(Norm(h))
//
// Source: Qwen3 Technical Report (2025); HF transformers modeling_qwen3.py for the order of
// roundings.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// As MakeModel, for spec.architecture "Qwen3ForCausalLM".
Result<std::unique_ptr<Model>> MakeQwen3(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits);

}  // namespace octavo
