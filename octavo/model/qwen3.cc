#include "octavo/model/qwen3.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
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
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/model.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// Rows of ModelSpec.weights, found by name once.
struct LayerWeights {
  int input_norm = -1;
  int q = -1;
  int k = -1;
  int v = -1;
  int q_norm = -1;
  int k_norm = -1;
  int o = -1;
  int post_attention_norm = -1;
  int gate = -1;
  int up = -1;
  int down = -1;
};

struct WeightRows {
  int embedding = -1;
  std::vector<LayerWeights> layers;
  int final_norm = -1;
  int head = -1;  // The embedding when tied.
};

Result<int> RowOf(const ModelSpec& spec, const std::string& name) {
  const int row = FindWeight(spec, name);
  if (row < 0) {
    return InvalidArgument("{}: the model table of {} has no such weight", name, spec.architecture);
  }
  return row;
}

Result<LayerWeights> FindLayer(const ModelSpec& spec, int64_t layer) {
  LayerWeights rows;
  const std::pair<const char*, int*> names[] = {
      {"input_layernorm", &rows.input_norm},
      {"self_attn.q_proj", &rows.q},
      {"self_attn.k_proj", &rows.k},
      {"self_attn.v_proj", &rows.v},
      {"self_attn.q_norm", &rows.q_norm},
      {"self_attn.k_norm", &rows.k_norm},
      {"self_attn.o_proj", &rows.o},
      {"post_attention_layernorm", &rows.post_attention_norm},
      {"mlp.gate_proj", &rows.gate},
      {"mlp.up_proj", &rows.up},
      {"mlp.down_proj", &rows.down},
  };
  for (const auto& [name, row] : names) {
    ASSIGN_OR_RETURN(*row, RowOf(spec, fmt::format("model.layers.{}.{}.weight", layer, name)));
  }
  return rows;
}

Result<WeightRows> FindRows(const ModelSpec& spec) {
  WeightRows rows;
  ASSIGN_OR_RETURN(rows.embedding, RowOf(spec, "model.embed_tokens.weight"));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    ASSIGN_OR_RETURN(LayerWeights found, FindLayer(spec, layer));
    rows.layers.push_back(found);
  }
  ASSIGN_OR_RETURN(rows.final_norm, RowOf(spec, "model.norm.weight"));
  rows.head = rows.embedding;
  if (!spec.tie_word_embeddings) {
    ASSIGN_OR_RETURN(rows.head, RowOf(spec, "lm_head.weight"));
  }
  return rows;
}

class Qwen3 final : public Model {
 public:
  Qwen3(const ModelSpec& spec, Backend* backend, const ModelLimits& limits, WeightRows rows)
      : spec_(spec), backend_(*backend), limits_(limits), rows_(std::move(rows)) {}

  // Allocates tables, activations and the backend's scratch.
  Status Allocate();

  const ModelSpec& spec() const override { return spec_; }
  Backend& backend() override { return backend_; }
  Status Forward(const ForwardBatch& batch, const ModelWeights& weights,
                 std::span<const KvLayer> kv) override;
  Status Logits(std::span<const int32_t> rows, const ModelWeights& weights,
                std::span<float> logits) override;

 private:
  // What one layer reads; views of the caller's batch.
  struct LayerContext {
    const ForwardBatch& batch;
    const ModelWeights& weights;
    const KvLayer& kv;
    const LayerWeights& rows;

    const PackedMatrix* Weight(int row) const {
      return &weights.matrices[static_cast<size_t>(row)];
    }
    int64_t num_tokens() const { return static_cast<int64_t>(batch.token_ids.size()); }
  };

  Status AttentionBlock(const LayerContext& layer);
  Status MlpBlock(const LayerContext& layer);
  Status Norm(Activations x, const PackedMatrix* weight, Activations y);
  Status Rotate(Activations x, int64_t num_heads, std::span<const int32_t> positions);

  const ModelSpec spec_;
  Backend& backend_;
  const ModelLimits limits_;
  const WeightRows rows_;
  RopeTable rope_;
  ActivationBuffer hidden_;  // h: the residual stream, normed in place at the end.
  ActivationBuffer normed_;  // a, m: the input of a block.
  ActivationBuffer delta_;   // What a block adds to h.
  ActivationBuffer q_;
  ActivationBuffer k_;
  ActivationBuffer v_;
  ActivationBuffer attention_;
  ActivationBuffer gate_;
  ActivationBuffer up_;
  ActivationBuffer head_input_;  // Rows of h whose logits are wanted.
};

Status Qwen3::Allocate() {
  const int64_t q_width = spec_.num_heads * spec_.head_dim;
  const int64_t kv_width = spec_.num_kv_heads * spec_.head_dim;
  RETURN_IF_ERROR(backend_.Reserve({
      .max_tokens = std::max(limits_.max_tokens, limits_.max_logit_rows),
      .max_context = limits_.max_context,
      .max_width = std::max({spec_.hidden_size, spec_.intermediate_size, q_width}),
      .max_heads = spec_.num_heads,
      .max_head_dim = spec_.head_dim,
  }));
  ASSIGN_OR_RETURN(rope_, RopeTable::Make(spec_.rope_theta, spec_.head_dim, limits_.max_context));
  const std::pair<ActivationBuffer*, int64_t> widths[] = {{&hidden_, spec_.hidden_size},
                                                          {&normed_, spec_.hidden_size},
                                                          {&delta_, spec_.hidden_size},
                                                          {&q_, q_width},
                                                          {&k_, kv_width},
                                                          {&v_, kv_width},
                                                          {&attention_, q_width},
                                                          {&gate_, spec_.intermediate_size},
                                                          {&up_, spec_.intermediate_size}};
  for (const auto& [buffer, cols] : widths) {
    ASSIGN_OR_RETURN(*buffer,
                     ActivationBuffer::Make(backend_.activation_dtype(), limits_.max_tokens, cols));
  }
  ASSIGN_OR_RETURN(head_input_, ActivationBuffer::Make(backend_.activation_dtype(),
                                                       limits_.max_logit_rows, spec_.hidden_size));
  return OkStatus();
}

Status Qwen3::Norm(Activations x, const PackedMatrix* weight, Activations y) {
  return backend_.RmsNorm({.x = x, .weight = weight, .eps = spec_.rms_norm_eps, .y = y});
}

Status Qwen3::Rotate(Activations x, int64_t num_heads, std::span<const int32_t> positions) {
  return backend_.Rope({.x = x,
                        .num_heads = num_heads,
                        .head_dim = spec_.head_dim,
                        .positions = positions,
                        .cos = rope_.cos(),
                        .sin = rope_.sin()});
}

Status Qwen3::AttentionBlock(const LayerContext& layer) {
  const int64_t tokens = layer.num_tokens();
  const Activations q = q_.Rows(tokens);
  const Activations k = k_.Rows(tokens);
  const Activations v = v_.Rows(tokens);
  const Activations q_heads = q_.Heads(tokens, spec_.num_heads);
  const Activations k_heads = k_.Heads(tokens, spec_.num_kv_heads);

  RETURN_IF_ERROR(
      Norm(hidden_.Rows(tokens), layer.Weight(layer.rows.input_norm), normed_.Rows(tokens)));
  const LinearPart qkv[] = {{.weight = layer.Weight(layer.rows.q), .y = q},
                            {.weight = layer.Weight(layer.rows.k), .y = k},
                            {.weight = layer.Weight(layer.rows.v), .y = v}};
  RETURN_IF_ERROR(backend_.Linear({.x = normed_.Rows(tokens), .parts = qkv}));
  RETURN_IF_ERROR(Norm(q_heads, layer.Weight(layer.rows.q_norm), q_heads));
  RETURN_IF_ERROR(Norm(k_heads, layer.Weight(layer.rows.k_norm), k_heads));
  RETURN_IF_ERROR(Rotate(q, spec_.num_heads, layer.batch.positions));
  RETURN_IF_ERROR(Rotate(k, spec_.num_kv_heads, layer.batch.positions));

  RETURN_IF_ERROR(
      backend_.KvStore({.k = k, .v = v, .segments = layer.batch.segments, .kv = layer.kv}));
  RETURN_IF_ERROR(backend_.Attention(
      {.q = q,
       .y = attention_.Rows(tokens),
       .segments = layer.batch.segments,
       .kv = layer.kv,
       .num_heads = spec_.num_heads,
       .scale = static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec_.head_dim)))}));
  const LinearPart out[] = {{.weight = layer.Weight(layer.rows.o), .y = delta_.Rows(tokens)}};
  RETURN_IF_ERROR(backend_.Linear({.x = attention_.Rows(tokens), .parts = out}));
  return backend_.Add({.x = hidden_.Rows(tokens), .delta = delta_.Rows(tokens)});
}

Status Qwen3::MlpBlock(const LayerContext& layer) {
  const int64_t tokens = layer.num_tokens();
  const Activations gate = gate_.Rows(tokens);
  const Activations up = up_.Rows(tokens);

  RETURN_IF_ERROR(Norm(hidden_.Rows(tokens), layer.Weight(layer.rows.post_attention_norm),
                       normed_.Rows(tokens)));
  const LinearPart gate_up[] = {{.weight = layer.Weight(layer.rows.gate), .y = gate},
                                {.weight = layer.Weight(layer.rows.up), .y = up}};
  RETURN_IF_ERROR(backend_.Linear({.x = normed_.Rows(tokens), .parts = gate_up}));
  RETURN_IF_ERROR(backend_.SiluMul({.gate = gate, .up = up, .y = gate}));
  const LinearPart down[] = {{.weight = layer.Weight(layer.rows.down), .y = delta_.Rows(tokens)}};
  RETURN_IF_ERROR(backend_.Linear({.x = gate, .parts = down}));
  return backend_.Add({.x = hidden_.Rows(tokens), .delta = delta_.Rows(tokens)});
}

Status Qwen3::Forward(const ForwardBatch& batch, const ModelWeights& weights,
                      std::span<const KvLayer> kv) {
  const auto tokens = static_cast<int64_t>(batch.token_ids.size());
  CHECK(tokens <= limits_.max_tokens);
  CHECK(batch.positions.size() == batch.token_ids.size());
  CHECK(weights.matrices.size() == spec_.weights.size());
  CHECK(static_cast<int64_t>(kv.size()) == spec_.num_layers);

  const auto weight = [&](int row) { return &weights.matrices[static_cast<size_t>(row)]; };
  RETURN_IF_ERROR(backend_.Embed(
      {.ids = batch.token_ids, .table = weight(rows_.embedding), .y = hidden_.Rows(tokens)}));
  for (size_t i = 0; i < rows_.layers.size(); ++i) {
    const LayerContext layer = {
        .batch = batch, .weights = weights, .kv = kv[i], .rows = rows_.layers[i]};
    RETURN_IF_ERROR(AttentionBlock(layer));
    RETURN_IF_ERROR(MlpBlock(layer));
  }
  return Norm(hidden_.Rows(tokens), weight(rows_.final_norm), hidden_.Rows(tokens));
}

Status Qwen3::Logits(std::span<const int32_t> rows, const ModelWeights& weights,
                     std::span<float> logits) {
  const auto num_rows = static_cast<int64_t>(rows.size());
  CHECK(num_rows <= limits_.max_logit_rows);
  CHECK(static_cast<int64_t>(logits.size()) == num_rows * spec_.vocab_size);

  RETURN_IF_ERROR(backend_.GatherRows(
      {.x = hidden_.Rows(limits_.max_tokens), .rows = rows, .y = head_input_.Rows(num_rows)}));
  const LinearPart head[] = {{.weight = &weights.matrices[static_cast<size_t>(rows_.head)],
                              .y = {.dtype = DType::kF32,
                                    .data = reinterpret_cast<std::byte*>(logits.data()),
                                    .rows = num_rows,
                                    .cols = spec_.vocab_size,
                                    .stride = spec_.vocab_size}}};
  return backend_.Linear({.x = head_input_.Rows(num_rows), .parts = head});
}

}  // namespace

Result<std::unique_ptr<Model>> MakeQwen3(const ModelSpec& spec, Backend* backend,
                                         const ModelLimits& limits) {
  ASSIGN_OR_RETURN(WeightRows rows, FindRows(spec));
  auto model = std::make_unique<Qwen3>(spec, backend, limits, std::move(rows));
  RETURN_IF_ERROR(model->Allocate());
  return std::unique_ptr<Model>(std::move(model));
}

}  // namespace octavo
