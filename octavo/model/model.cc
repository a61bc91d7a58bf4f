#include "octavo/model/model.h"

#include <memory>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/qwen3.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

Result<std::unique_ptr<Model>> MakeModel(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  CHECK(backend != nullptr);
  CHECK(limits.max_tokens > 0);
  CHECK(limits.max_logit_rows > 0);
  CHECK(limits.max_context > 0);
  if (spec.architecture == "Qwen3ForCausalLM") {
    return MakeQwen3(spec, backend, limits);
  }
  return Unsupported("architecture: expected Qwen3ForCausalLM, got {}", spec.architecture);
}

}  // namespace octavo
