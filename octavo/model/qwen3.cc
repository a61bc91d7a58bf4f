#include "octavo/model/qwen3.h"

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

struct Qwen3Rows {
  int input_norm = -1;
  AttentionRows attention;
  int q_norm = -1;
  int k_norm = -1;
  int post_attention_norm = -1;
  MlpRows mlp;
};

Result<Qwen3Rows> FindLayer(const LayerRows& layer) {
  Qwen3Rows rows;
  ASSIGN_OR_RETURN(rows.input_norm, layer.Weight("input_layernorm"));
  ASSIGN_OR_RETURN(rows.attention, FindAttention(layer));
  ASSIGN_OR_RETURN(rows.q_norm, layer.Weight("self_attn.q_norm"));
  ASSIGN_OR_RETURN(rows.k_norm, layer.Weight("self_attn.k_norm"));
  ASSIGN_OR_RETURN(rows.post_attention_norm, layer.Weight("post_attention_layernorm"));
  ASSIGN_OR_RETURN(rows.mlp, FindMlp(layer, "mlp"));
  return rows;
}

class Qwen3Layers final : public DecoderLayers {
 public:
  static Result<std::unique_ptr<DecoderLayers>> Make(const ModelSpec& spec, const Backend& backend,
                                                     const ModelLimits& limits) {
    auto made = std::make_unique<Qwen3Layers>();
    made->eps_ = spec.rms_norm_eps;
    for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
      ASSIGN_OR_RETURN(Qwen3Rows rows, FindLayer(LayerRows(spec, layer)));
      made->rows_.push_back(rows);
    }
    ASSIGN_OR_RETURN(made->attention_, GqaAttention::Make(spec, backend, limits));
    ASSIGN_OR_RETURN(made->mlp_, GatedMlp::Make(backend.activation_dtype(), limits.max_tokens,
                                                spec.intermediate_size));
    return std::unique_ptr<DecoderLayers>(std::move(made));
  }

  Status Run(const LayerStep& step) override {
    const Qwen3Rows& rows = rows_[static_cast<size_t>(step.layer)];
    RETURN_IF_ERROR(
        attention_.Project(step, step.NormedHidden(rows.input_norm, eps_), rows.attention));
    RETURN_IF_ERROR(attention_.NormHeads(step, rows.q_norm, rows.k_norm, eps_));
    RETURN_IF_ERROR(attention_.Attend(step, rows.attention));
    RETURN_IF_ERROR(step.AddDelta());

    const BlockInput input = step.NormedHidden(rows.post_attention_norm, eps_);
    RETURN_IF_ERROR(mlp_.Run(step, input, rows.mlp, step.delta));
    return step.AddDelta();
  }

 private:
  float eps_ = 0.0F;
  std::vector<Qwen3Rows> rows_;  // [layers]
  GqaAttention attention_;
  GatedMlp mlp_;
};

}  // namespace

Result<std::unique_ptr<Model>> MakeQwen3(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  ASSIGN_OR_RETURN(std::unique_ptr<DecoderLayers> layers,
                   Qwen3Layers::Make(spec, *backend, limits));
  return MakeDecoder(spec, backend, limits, std::move(layers));
}

}  // namespace octavo
