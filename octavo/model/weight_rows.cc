#include "octavo/model/weight_rows.h"

#include <fmt/core.h>

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

Result<int> FindRow(const ModelSpec& spec, const std::string& name) {
  const int row = FindWeight(spec, name);
  if (row < 0) {
    return InvalidArgument("{}: the model table of {} has no such weight", name, spec.architecture);
  }
  return row;
}

LayerRows::LayerRows(const ModelSpec& spec, int64_t layer)
    : spec_(spec), prefix_(fmt::format("{}layers.{}.", spec.prefix, layer)) {}

Result<int> LayerRows::Named(std::string_view name) const {
  return FindRow(spec_, fmt::format("{}{}", prefix_, name));
}

Result<int> LayerRows::Weight(std::string_view module) const {
  return FindRow(spec_, fmt::format("{}{}.weight", prefix_, module));
}

Result<LinearRows> LayerRows::Linear(std::string_view module) const {
  LinearRows rows;
  ASSIGN_OR_RETURN(rows.weight, Weight(module));
  rows.bias = FindWeight(spec_, fmt::format("{}{}.bias", prefix_, module));
  return rows;
}

}  // namespace octavo
