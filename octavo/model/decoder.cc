#include "octavo/model/decoder.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/text_prefix.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

// Sizes that cover every op of a model's blocks: Backend::Reserve is called with each. Rows that
// are not tokens (slots of experts, heads of an MLA) are narrow, so they have sizes of their own.
std::vector<Backend::Limits> BackendLimitsOf(const ModelSpec& spec, const ModelLimits& limits) {
  const MlaSpec& mla = spec.mla;
  const bool is_mla = mla.kv_lora_rank > 0;
  const int64_t attention_width = spec.num_heads * (is_mla ? mla.v_head_dim : spec.head_dim);
  const int64_t slots = limits.max_tokens * spec.moe.top_k;
  std::vector<Backend::Limits> all = {{
      .max_tokens = std::max(limits.max_tokens, limits.max_logit_rows),
      .max_context = limits.max_context,
      .max_width = std::max({spec.hidden_size, spec.intermediate_size, attention_width,
                             spec.moe.shared_intermediate_size, mla.q_lora_rank}),
      .max_heads = spec.num_heads,
      .max_head_dim = KvShapeOf(spec).head_dim,
      .max_grouped_rows = slots,
  }};
  if (spec.moe.num_experts > 0) {  // The experts' second projection reads slots.
    all.push_back(
        {.max_tokens = slots, .max_width = spec.moe.intermediate_size, .max_grouped_rows = slots});
  }
  if (is_mla) {  // W_UK and W_UV read heads.
    const int64_t head_rows = limits.max_tokens * spec.num_heads;
    all.push_back({.max_tokens = head_rows,
                   .max_width = std::max(mla.qk_nope_head_dim, mla.kv_lora_rank),
                   .max_grouped_rows = head_rows});
  }
  return all;
}

class Decoder final : public Model {
 public:
  Decoder(const ModelSpec& spec, Backend* backend, const ModelLimits& limits,
          std::unique_ptr<DecoderLayers> layers)
      : spec_(spec), backend_(*backend), limits_(limits), layers_(std::move(layers)) {}

  Status Allocate();

  const ModelSpec& spec() const override { return spec_; }
  Backend& backend() override { return backend_; }
  Status Forward(const ForwardBatch& batch, const ModelWeights& weights,
                 std::span<const KvLayer> kv) override;
  std::span<const int32_t> RoutedExperts() const override;
  Status Logits(std::span<const int32_t> rows, const ModelWeights& weights,
                std::span<float> logits) override;

 private:
  const ModelSpec spec_;
  Backend& backend_;
  const ModelLimits limits_;
  const std::unique_ptr<DecoderLayers> layers_;
  int embedding_row_ = -1;
  int final_norm_row_ = -1;
  int head_row_ = -1;        // The embedding when tied.
  int64_t num_tokens_ = 0;   // Of the last Forward.
  ActivationBuffer hidden_;  // h: the residual stream, normed in place at the end.
  ActivationBuffer normed_;
  ActivationBuffer delta_;
  ActivationBuffer head_input_;  // Rows of h whose logits are wanted.
};

Status Decoder::Allocate() {
  ASSIGN_OR_RETURN(embedding_row_, FindRow(spec_, spec_.prefix + "embed_tokens.weight"));
  ASSIGN_OR_RETURN(final_norm_row_, FindRow(spec_, spec_.prefix + "norm.weight"));
  head_row_ = embedding_row_;
  if (!spec_.tie_word_embeddings) {
    ASSIGN_OR_RETURN(head_row_, FindRow(spec_, std::string(HeadNameOf(spec_.prefix))));
  }
  for (const Backend::Limits& sizes : BackendLimitsOf(spec_, limits_)) {
    RETURN_IF_ERROR(backend_.Reserve(sizes));
  }
  const DType dtype = backend_.activation_dtype();
  for (ActivationBuffer* buffer : {&hidden_, &normed_, &delta_}) {
    ASSIGN_OR_RETURN(*buffer, ActivationBuffer::Make(dtype, limits_.max_tokens, spec_.hidden_size));
  }
  ASSIGN_OR_RETURN(head_input_,
                   ActivationBuffer::Make(dtype, limits_.max_logit_rows, spec_.hidden_size));
  return OkStatus();
}

Status Decoder::Forward(const ForwardBatch& batch, const ModelWeights& weights,
                        std::span<const KvLayer> kv) {
  const auto tokens = static_cast<int64_t>(batch.token_ids.size());
  CHECK(tokens <= limits_.max_tokens);
  CHECK(batch.positions.size() == batch.token_ids.size());
  CHECK(weights.matrices.size() == spec_.weights.size());
  CHECK(static_cast<int64_t>(kv.size()) == spec_.num_layers);

  num_tokens_ = tokens;
  const Activations hidden = hidden_.Rows(tokens);
  const auto weight = [&](int row) { return &weights.matrices[static_cast<size_t>(row)]; };
  RETURN_IF_ERROR(
      backend_.Embed({.ids = batch.token_ids, .table = weight(embedding_row_), .y = hidden}));
  for (int64_t layer = 0; layer < spec_.num_layers; ++layer) {
    RETURN_IF_ERROR(layers_->Run({.backend = backend_,
                                  .batch = batch,
                                  .weights = weights,
                                  .kv = kv[static_cast<size_t>(layer)],
                                  .layer = layer,
                                  .hidden = hidden,
                                  .normed = normed_.Rows(tokens),
                                  .delta = delta_.Rows(tokens)}));
  }
  return backend_.RmsNorm(
      {.x = hidden, .weight = weight(final_norm_row_), .eps = spec_.rms_norm_eps, .y = hidden});
}

std::span<const int32_t> Decoder::RoutedExperts() const {
  const std::span<const int32_t> all = layers_->RoutedExperts();
  return all.empty()
             ? all
             : all.first(static_cast<size_t>(num_tokens_ * spec_.num_layers * spec_.moe.top_k));
}

Status Decoder::Logits(std::span<const int32_t> rows, const ModelWeights& weights,
                       std::span<float> logits) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  CHECK(num_rows <= limits_.max_logit_rows);
  CHECK(static_cast<int64_t>(logits.size()) == num_rows * spec_.vocab_size);

  const Activations head_input = head_input_.Rows(num_rows);
  RETURN_IF_ERROR(
      backend_.GatherRows({.x = hidden_.Rows(limits_.max_tokens), .rows = rows, .y = head_input}));
  const LinearPart head[] = {{.weight = &weights.matrices[static_cast<size_t>(head_row_)],
                              .y = {.dtype = DType::kF32,
                                    .data = reinterpret_cast<std::byte*>(logits.data()),
                                    .rows = num_rows,
                                    .cols = spec_.vocab_size,
                                    .stride = spec_.vocab_size}}};
  return backend_.Linear({.x = head_input, .parts = head});
}

}  // namespace

Result<std::unique_ptr<Model>> MakeDecoder(const ModelSpec& spec, Backend* backend,
                                           const ModelLimits& limits,
                                           std::unique_ptr<DecoderLayers> layers) {
  auto model = std::make_unique<Decoder>(spec, backend, limits, std::move(layers));
  RETURN_IF_ERROR(model->Allocate());
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace octavo
