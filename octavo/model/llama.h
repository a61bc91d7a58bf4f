#pragma once
// Llama 3 and Qwen2: grouped-query attention without norms of q and k, and a gated MLP. Qwen2's q,
// k and v have biases; Llama's rotary frequencies are stretched (rope_table.h).
//
//   h = Embed(ids)
//   per layer:
//     a = Norm(h);  q, k, v = Linear(a) (+ bias);  q, k = Rope(q, k)
//     h = h + Linear_o(Attention(q, k, v))
//     m = Norm(h)
//     h = h + Linear_down(Silu(Linear_gate(m)) * Linear_up(m))
//   logits = Linear_head(Norm(h))
//
// Source: The Llama 3 Herd of Models (2024); Qwen2 Technical Report (2024); HF transformers
// modeling_llama.py and modeling_qwen2.py for the order of roundings.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// As MakeModel, for spec.architecture "LlamaForCausalLM" and "Qwen2ForCausalLM".
Result<std::unique_ptr<Model>> MakeLlama(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits);

}  // namespace octavo
