#pragma once
// The gated MLP of every dense layer and of shared experts.
//
//   y = Linear_down(Silu(Linear_gate(x)) * Linear_up(x))
//
// Source: Shazeer, GLU Variants Improve Transformer (2020).

#include <cstdint>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

struct MlpRows {
  LinearRows gate;
  LinearRows up;
  LinearRows down;
};

// `module` is "mlp" or "mlp.shared_experts". Errors: kInvalidArgument, by name.
Result<MlpRows> FindMlp(const LayerRows& layer, std::string_view module);

// Move-only. One thread.
class GatedMlp {
 public:
  // For MLPs of `width` units and batches of max_tokens. Errors: kExhausted.
  static Result<GatedMlp> Make(DType dtype, int64_t max_tokens, int64_t width);

  // y [tokens, hidden] is not the input.
  Status Run(const LayerStep& step, const BlockInput& input, const MlpRows& rows, Activations y);

 private:
  ActivationBuffer gate_;
  ActivationBuffer up_;
};

}  // namespace octavo
