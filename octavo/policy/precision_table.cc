#include "octavo/policy/precision_table.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

const PrecisionRow* PrecisionTable::Find(std::string_view name) const {
  const auto row = std::ranges::find(rows, name, &PrecisionRow::name);
  return row == rows.end() ? nullptr : &*row;
}

std::string PrecisionTable::Hash() const {
  std::vector<std::string> lines;
  lines.reserve(rows.size());
  for (const PrecisionRow& row : rows) {
    lines.push_back(fmt::format("{} {}\n", row.name, WeightFormatName(row.format)));
  }
  // Names hold no byte below the blank that follows them, so lines sort as their names do.
  std::ranges::sort(lines);
  std::string text;
  for (const std::string& line : lines) {
    text += line;
  }
  return HashHex(HashText(text));
}

std::string_view QuantizeScopeName(QuantizeScope scope) {
  switch (scope) {
    case QuantizeScope::kExperts:
      return "experts";
    case QuantizeScope::kMlp:
      return "mlp";
    case QuantizeScope::kAll:
      return "all";
  }
  return "unknown";
}

std::optional<QuantizeScope> ParseQuantizeScope(std::string_view name) {
  for (const QuantizeScope scope :
       {QuantizeScope::kExperts, QuantizeScope::kMlp, QuantizeScope::kAll}) {
    if (QuantizeScopeName(scope) == name) {
      return scope;
    }
  }
  return std::nullopt;
}

namespace {

// X of docs/formats.md: the name without its final ".weight".
std::string ModuleName(const PrecisionRow& row) { return std::string(ModuleOfWeight(row.name)); }

StoredTensorSpec InputScaleOf(const PrecisionRow& row) {
  return {ModuleName(row) + ".input_scale",
          DType::kF32,
          {},
          StoredPart::kInputScale,
          /*is_optional=*/true};
}

std::vector<StoredTensorSpec> Nvfp4Tensors(const PrecisionRow& row, StoredLayout layout) {
  const std::string module = ModuleName(row);
  const Shape codes = {row.shape[0], row.shape[1] / 2};
  const Shape groups = {row.shape[0], row.shape[1] / ColsMultipleOf(row.format)};
  if (layout == StoredLayout::kCompressedTensors) {
    return {
        {module + ".weight_packed", DType::kU8, codes, StoredPart::kCodes},
        {module + ".weight_scale", DType::kF8E4m3, groups, StoredPart::kScales},
        {module + ".weight_global_scale", DType::kF32, {1}, StoredPart::kTensorDivisor},
        {module + ".input_global_scale",
         DType::kF32,
         {1},
         StoredPart::kInputDivisor,
         /*is_optional=*/true},
    };
  }
  return {
      {row.name, DType::kU8, codes, StoredPart::kCodes},
      {module + ".weight_scale", DType::kF8E4m3, groups, StoredPart::kScales},
      {module + ".weight_scale_2", DType::kF32, {}, StoredPart::kTensorScale},
      InputScaleOf(row),
  };
}

}  // namespace

std::vector<StoredTensorSpec> StoredTensorsOf(const PrecisionRow& row, StoredLayout layout) {
  if (row.format == WeightFormat::kBf16) {
    return {{row.name, DType::kBf16, row.shape, StoredPart::kCodes}};
  }
  CHECK(row.shape.size() == 2U);
  const int64_t rows = row.shape[0];
  const int64_t cols = row.shape[1];
  const StoredTensorSpec codes = {row.name, DType::kF8E4m3, row.shape, StoredPart::kCodes};
  const std::string scale = ModuleName(row) + ".weight_scale";
  const std::string inv = layout == StoredLayout::kCompressedTensors ? "" : "_inv";
  switch (row.format) {
    case WeightFormat::kBf16:
      break;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return {codes,
              {scale + inv,
               DType::kF32,
               {NumFp8Blocks(rows), NumFp8Blocks(cols)},
               StoredPart::kScales}};
    case WeightFormat::kFp8Channel:
      return {codes, {scale, DType::kF32, {rows, 1}, StoredPart::kScales}};
    case WeightFormat::kFp8Tensor:
      return {codes, {scale, DType::kF32, {}, StoredPart::kTensorScale}};
    case WeightFormat::kMxfp8:
      return {codes,
              {scale + inv,
               DType::kU8,
               {rows, cols / ColsMultipleOf(row.format)},
               StoredPart::kScales}};
    case WeightFormat::kNvfp4:
      return Nvfp4Tensors(row, layout);
  }
  return {};
}

std::vector<StoredTensorSpec> AcceptedTensorsOf(const PrecisionRow& row, StoredLayout layout) {
  std::vector<StoredTensorSpec> tensors = StoredTensorsOf(row, layout);
  if (row.format == WeightFormat::kFp8Tensor) {
    tensors.push_back(InputScaleOf(row));
  }
  return tensors;
}

std::vector<std::vector<int>> SharedScaleSets(const ModelSpec& spec, const PrecisionTable& table) {
  std::vector<std::vector<int>> sets;
  for (FusedSet& set : FusedSetsOf(spec)) {
    const auto row = static_cast<size_t>(set.members.front());
    if (SharesScale(table.rows[row].format)) {
      sets.push_back(std::move(set.members));
    }
  }
  return sets;
}

}  // namespace octavo
