#include "octavo/model/spec/stacked_experts.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// "…mlp.experts." for "…mlp.experts.7.gate_proj.weight".
std::string_view ContainerOf(const WeightSpec& weight) {
  std::string_view name = ModuleOfWeight(weight.name);
  name = name.substr(0, name.rfind('.'));  // "…mlp.experts.7"
  return name.substr(0, name.rfind('.') + 1);
}

// Both tensors of one layer, without slices. `first` is the layer's first expert row.
std::pair<StackedSource, StackedSource> EmptySources(const ModelSpec& spec,
                                                     const WeightSpec& first) {
  const MoeSpec& moe = spec.moe;
  const std::string container(ContainerOf(first));
  StackedSource gate_up{.name = container + "gate_up_proj",
                        .layer = first.layer,
                        .shape = {moe.num_experts, 2 * moe.intermediate_size, spec.hidden_size},
                        .slices = {}};
  StackedSource down{.name = container + "down_proj",
                     .layer = first.layer,
                     .shape = {moe.num_experts, spec.hidden_size, moe.intermediate_size},
                     .slices = {}};
  return {std::move(gate_up), std::move(down)};
}

}  // namespace

std::vector<StackedSource> StackedSourcesOf(const ModelSpec& spec) {
  std::vector<StackedSource> sources;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    if (!IsExpertRole(weight.role)) {
      continue;
    }
    if (sources.empty() || sources.back().layer != weight.layer) {
      auto [gate_up, down] = EmptySources(spec, weight);
      sources.push_back(std::move(gate_up));
      sources.push_back(std::move(down));
    }
    const int64_t num_rows = weight.shape[0];
    const bool is_down = weight.role == Role::kExpertDown;
    StackedSource& source = sources[sources.size() - (is_down ? 1 : 2)];
    source.slices.push_back({.weight = static_cast<int>(i),
                             .expert = weight.expert,
                             .row_begin = weight.role == Role::kExpertUp ? num_rows : 0,
                             .num_rows = num_rows});
  }
  return sources;
}

Status CheckStackedShape(const StackedSource& source, const Shape& shape) {
  if (shape == source.shape) {
    return OkStatus();
  }
  CHECK(source.shape.size() == size_t{3});
  const Shape input_first = {source.shape[0], source.shape[2], source.shape[1]};
  if (shape == input_first) {
    return Unsupported(
        "{}: expected {} (experts, outputs, inputs), got {}: stacked experts with inputs first, as "
        "Llama-4 and gpt-oss store them",
        source.name, ShapeString(source.shape), ShapeString(shape));
  }
  return InvalidArgument("{}: expected {}, got {}", source.name, ShapeString(source.shape),
                         ShapeString(shape));
}

}  // namespace octavo
