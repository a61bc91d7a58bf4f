#include "octavo/model/model.h"

#include <memory>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/qwen3.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

Status CheckServable(const ModelSpec& spec) {
  if (spec.architecture != "Qwen3ForCausalLM") {
    return Unsupported("serving {} is not built in this release: expected Qwen3ForCausalLM",
                       spec.architecture);
  }
  if (spec.rope_scaling.type != RopeType::kDefault) {
    return Unsupported("serving {} with {} rope scaling is not built in this release",
                       spec.architecture, RopeTypeName(spec.rope_scaling.type));
  }
  if (spec.has_qkv_bias || spec.has_o_bias) {
    return Unsupported("serving {} with attention_bias is not built in this release",
                       spec.architecture);
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

Status DeriveWeights(const ModelSpec& spec, const Backend& /*backend*/, ModelWeights* weights) {
  CHECK(weights->matrices.size() == spec.weights.size());
  weights->derived.clear();
  if (spec.mla.kv_lora_rank > 0) {
    return Unsupported("derived weights of {}", spec.architecture);
  }
  return OkStatus();
}

Result<std::unique_ptr<Model>> MakeModel(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  CHECK(backend != nullptr);
  CHECK(limits.max_tokens > 0);
  CHECK(limits.max_logit_rows > 0);
  CHECK(limits.max_context > 0);
  RETURN_IF_ERROR(CheckServable(spec));
  return MakeQwen3(spec, backend, limits);
}

}  // namespace octavo
