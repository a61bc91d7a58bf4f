#include "octavo/model/model.h"

#include <memory>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/deepseek_v3.h"
#include "octavo/model/llama.h"
#include "octavo/model/mla.h"
#include "octavo/model/qwen3.h"
#include "octavo/model/qwen3_moe.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

using MakeFn = Result<std::unique_ptr<Model>> (*)(const ModelSpec&, Backend*, const ModelLimits&);

MakeFn FindArchitecture(std::string_view architecture) {
  constexpr struct {
    std::string_view name;
    MakeFn make;
  } kArchitectures[] = {{"Qwen3ForCausalLM", MakeQwen3},
                        {"Qwen3MoeForCausalLM", MakeQwen3Moe},
                        {"DeepseekV3ForCausalLM", MakeDeepseekV3},
                        {"LlamaForCausalLM", MakeLlama},
                        {"Qwen2ForCausalLM", MakeLlama}};
  for (const auto& known : kArchitectures) {
    if (known.name == architecture) {
      return known.make;
    }
  }
  return nullptr;
}

}  // namespace

Status CheckServable(const ModelSpec& spec) {
  if (FindArchitecture(spec.architecture) == nullptr) {
    return Unsupported(
        "serving {}: expected Qwen3ForCausalLM, Qwen3MoeForCausalLM, DeepseekV3ForCausalLM, "
        "LlamaForCausalLM or Qwen2ForCausalLM",
        spec.architecture);
  }
  const MlaSpec& mla = spec.mla;
  if ((mla.kv_lora_rank + mla.qk_rope_head_dim) % 2 != 0 || mla.kv_lora_rank % 2 != 0) {
    // The cache holds values in pairs.
    return Unsupported(
        "config.json: kv_lora_rank: expected an even number for a model that is served, got {}",
        mla.kv_lora_rank);
  }
  if (mla.kv_lora_rank > 0 && mla.v_head_dim < 2) {
    return Unsupported("config.json: v_head_dim: expected two or more, got {}", mla.v_head_dim);
  }
  for (const WeightSpec& weight : spec.weights) {
    // To a backend that is a vector, not the matrix of a layer.
    if (weight.shape.size() == 2 && weight.shape[0] < 2) {
      return Unsupported("serving {}: expected two outputs or more, got [{}, {}] by config.json",
                         weight.name, weight.shape[0], weight.shape[1]);
    }
  }
  return OkStatus();
}

KvShape KvShapeOf(const ModelSpec& spec, DType dtype) {
  if (spec.mla.kv_lora_rank > 0) {
    return {.num_kv_heads = 1,
            .head_dim = spec.mla.kv_lora_rank + spec.mla.qk_rope_head_dim,
            .value_dim = spec.mla.kv_lora_rank,
            .dtype = dtype};
  }
  return {.num_kv_heads = spec.num_kv_heads, .head_dim = spec.head_dim, .dtype = dtype};
}

Status DeriveWeights(const ModelSpec& spec, const Backend& backend, ModelWeights* weights) {
  CHECK(weights->matrices.size() == spec.weights.size());
  weights->derived.clear();
  return spec.mla.kv_lora_rank > 0 ? DeriveMlaWeights(spec, backend, weights) : OkStatus();
}

Result<std::unique_ptr<Model>> MakeModel(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  CHECK(backend != nullptr);
  CHECK(limits.max_tokens > 0);
  CHECK(limits.max_logit_rows > 0);
  CHECK(limits.max_context > 0);
  RETURN_IF_ERROR(CheckServable(spec));
  return FindArchitecture(spec.architecture)(spec, backend, limits);
}

}  // namespace octavo
