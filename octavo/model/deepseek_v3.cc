#include "octavo/model/deepseek_v3.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/decoder.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/mla.h"
#include "octavo/model/mlp.h"
#include "octavo/model/model.h"
#include "octavo/model/moe.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

struct DeepseekV3Rows {
  int input_norm = -1;
  MlaRows attention;
  int post_attention_norm = -1;
  std::optional<MoeRows> moe;  // Absent where the layer is dense.
  MlpRows mlp;
};

Result<DeepseekV3Rows> FindLayer(const ModelSpec& spec, int64_t index) {
  const LayerRows layer(spec, index);
  DeepseekV3Rows rows;
  ASSIGN_OR_RETURN(rows.input_norm, layer.Weight("input_layernorm"));
  ASSIGN_OR_RETURN(rows.attention, FindMla(spec, layer));
  ASSIGN_OR_RETURN(rows.post_attention_norm, layer.Weight("post_attention_layernorm"));
  if (IsSparseLayer(spec, index)) {
    ASSIGN_OR_RETURN(rows.moe, FindMoe(spec, layer));
  } else {
    ASSIGN_OR_RETURN(rows.mlp, FindMlp(layer, "mlp"));
  }
  return rows;
}

class DeepseekV3Layers final : public DecoderLayers {
 public:
  static Result<std::unique_ptr<DecoderLayers>> Make(const ModelSpec& spec, const Backend& backend,
                                                     const ModelLimits& limits) {
    auto made = std::make_unique<DeepseekV3Layers>();
    made->eps_ = spec.rms_norm_eps;
    for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
      ASSIGN_OR_RETURN(DeepseekV3Rows rows, FindLayer(spec, layer));
      made->rows_.push_back(std::move(rows));
    }
    ASSIGN_OR_RETURN(made->attention_, MlaAttention::Make(spec, backend, limits));
    if (spec.moe.num_experts > 0) {
      ASSIGN_OR_RETURN(made->moe_, MoeBlock::Make(spec, backend, limits));
    }
    ASSIGN_OR_RETURN(made->mlp_, GatedMlp::Make(backend.activation_dtype(), limits.max_tokens,
                                                spec.intermediate_size));
    return std::unique_ptr<DecoderLayers>(std::move(made));
  }

  Status Run(const LayerStep& step) override {
    const DeepseekV3Rows& rows = rows_[static_cast<size_t>(step.layer)];
    RETURN_IF_ERROR(attention_.Run(step, step.NormedHidden(rows.input_norm, eps_), rows.attention));
    RETURN_IF_ERROR(step.AddDelta());

    const BlockInput input = step.NormedHidden(rows.post_attention_norm, eps_);
    RETURN_IF_ERROR(rows.moe ? moe_.Run(step, input, *rows.moe)
                             : mlp_.Run(step, input, rows.mlp, step.delta));
    return step.AddDelta();
  }

  std::span<const int32_t> RoutedExperts() const override { return moe_.RoutedExperts(); }

 private:
  float eps_ = 0.0F;
  std::vector<DeepseekV3Rows> rows_;  // [layers]
  MlaAttention attention_;
  MoeBlock moe_;
  GatedMlp mlp_;
};

}  // namespace

Result<std::unique_ptr<Model>> MakeDeepseekV3(const ModelSpec& spec, Backend* backend,
                                              const ModelLimits& limits) {
  ASSIGN_OR_RETURN(std::unique_ptr<DecoderLayers> layers,
                   DeepseekV3Layers::Make(spec, *backend, limits));
  return MakeDecoder(spec, backend, limits, std::move(layers));
}

}  // namespace octavo
