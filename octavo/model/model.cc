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
