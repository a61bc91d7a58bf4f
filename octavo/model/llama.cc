#include "octavo/model/llama.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/attention.h"
#include "octavo/model/decoder.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/mlp.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

struct LlamaRows {
  int input_norm = -1;
  AttentionRows attention;
  int post_attention_norm = -1;
  MlpRows mlp;
};

Result<LlamaRows> FindLayer(const LayerRows& layer) {
  LlamaRows rows;
  ASSIGN_OR_RETURN(rows.input_norm, layer.Weight("input_layernorm"));
  ASSIGN_OR_RETURN(rows.attention, FindAttention(layer));
  ASSIGN_OR_RETURN(rows.post_attention_norm, layer.Weight("post_attention_layernorm"));
  ASSIGN_OR_RETURN(rows.mlp, FindMlp(layer, "mlp"));
  return rows;
}

class LlamaLayers final : public DecoderLayers {
 public:
  static Result<std::unique_ptr<DecoderLayers>> Make(const ModelSpec& spec, const Backend& backend,
                                                     const ModelLimits& limits) {
    auto made = std::make_unique<LlamaLayers>();
    made->eps_ = spec.rms_norm_eps;
    for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
      ASSIGN_OR_RETURN(LlamaRows rows, FindLayer(LayerRows(spec, layer)));
      made->rows_.push_back(rows);
    }
    ASSIGN_OR_RETURN(made->attention_, GqaAttention::Make(spec, backend, limits));
    ASSIGN_OR_RETURN(made->mlp_, GatedMlp::Make(backend.activation_dtype(), limits.max_tokens,
                                                spec.intermediate_size));
    return std::unique_ptr<DecoderLayers>(std::move(made));
  }

  Status Run(const LayerStep& step) override {
    const LlamaRows& rows = rows_[static_cast<size_t>(step.layer)];
    RETURN_IF_ERROR(
        attention_.Project(step, step.NormedHidden(rows.input_norm, eps_), rows.attention));
    RETURN_IF_ERROR(attention_.Attend(step, rows.attention));
    RETURN_IF_ERROR(step.AddDelta());

    const BlockInput input = step.NormedHidden(rows.post_attention_norm, eps_);
    RETURN_IF_ERROR(mlp_.Run(step, input, rows.mlp, step.delta));
    return step.AddDelta();
  }

 private:
  float eps_ = 0.0F;
  std::vector<LlamaRows> rows_;  // [layers]
  GqaAttention attention_;
  GatedMlp mlp_;
};

}  // namespace

Result<std::unique_ptr<Model>> MakeLlama(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  ASSIGN_OR_RETURN(std::unique_ptr<DecoderLayers> layers,
                   LlamaLayers::Make(spec, *backend, limits));
  return MakeDecoder(spec, backend, limits, std::move(layers));
}

}  // namespace octavo
