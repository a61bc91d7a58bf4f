#include "octavo/model/mlp.h"

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

Result<MlpRows> FindMlp(const LayerRows& layer, std::string_view module) {
  const std::string stem(module);
  MlpRows rows;
  ASSIGN_OR_RETURN(rows.gate, layer.Linear(stem + ".gate_proj"));
  ASSIGN_OR_RETURN(rows.up, layer.Linear(stem + ".up_proj"));
  ASSIGN_OR_RETURN(rows.down, layer.Linear(stem + ".down_proj"));
  return rows;
}

Result<GatedMlp> GatedMlp::Make(DType dtype, int64_t max_tokens, int64_t width) {
  GatedMlp made;
  ASSIGN_OR_RETURN(made.gate_, ActivationBuffer::Make(dtype, max_tokens, width));
  ASSIGN_OR_RETURN(made.up_, ActivationBuffer::Make(dtype, max_tokens, width));
  return made;
}

Status GatedMlp::Run(const LayerStep& step, const BlockInput& input, const MlpRows& rows,
                     Activations y) {
  const Activations gate = gate_.Rows(step.num_tokens());
  const Activations up = up_.Rows(step.num_tokens());
  const LinearPart gate_up[] = {step.Part(rows.gate, gate), step.Part(rows.up, up)};
  RETURN_IF_ERROR(step.backend.Linear({.x = input.x, .parts = gate_up, .norm = input.norm}));
  const LinearPart down[] = {step.Part(rows.down, y)};
  return step.backend.Linear(
      {.x = gate, .parts = down, .silu_mul = SiluMulArgs{.gate = gate, .up = up, .y = gate}});
}

}  // namespace octavo
