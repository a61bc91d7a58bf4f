#include "octavo/policy/table_text.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/keep_pattern.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/table_sizes.h"

namespace octavo {
namespace {

constexpr std::string_view kModelPrefix = "model.";
constexpr std::string_view kWeightSuffix = ".weight";
constexpr const char* kUnits[] = {"KiB", "MiB", "GiB", "TiB"};
constexpr size_t kMaxNearest = 3;
constexpr size_t kNearNameBytesMax = 256;  // A longer text is no misspelling.

void AddUnique(const std::string& text, std::vector<std::string>* out) {
  if (std::ranges::find(*out, text) == out->end()) {
    out->push_back(text);
  }
}

// What is printed for one decoder layer, or for a run of them.
struct LayerLine {
  int first = 0;
  int last = 0;
  std::vector<std::pair<std::string, std::string>> formats;  // Column and format, forward order.
  std::vector<std::string> rules;                            // Of the linear weights, each once.
  int64_t stored_bytes = 0;
  int64_t bf16_bytes = 0;
};

// "q", "gate": the role without its group. Routed and shared experts are one column each, however
// many there are.
std::string_view ColumnOf(Role role) {
  if (IsExpertRole(role)) {
    return "experts";
  }
  const std::string_view name = RoleName(role);
  return name.starts_with("shared_expert.") ? "shared" : name.substr(name.rfind('.') + 1);
}

void AddFormat(const PrecisionRow& row, LayerLine* layer) {
  const std::string_view column = ColumnOf(row.role);
  const std::string_view format = WeightFormatName(row.format);
  for (auto& [known, shown] : layer->formats) {
    if (known == column) {
      shown = shown == format ? shown : "mixed";
      return;
    }
  }
  layer->formats.emplace_back(column, format);
}

std::vector<LayerLine> LayerLines(const PrecisionTable& table) {
  std::vector<LayerLine> layers;
  for (const PrecisionRow& row : table.rows) {
    if (row.layer < 0) {
      continue;
    }
    if (layers.empty() || layers.back().last != row.layer) {
      layers.push_back({.first = row.layer, .last = row.layer, .formats = {}, .rules = {}});
    }
    LayerLine& layer = layers.back();
    layer.stored_bytes += StoredBytes(row);
    layer.bf16_bytes += Bf16Bytes(row);
    if (IsLinearRole(row.role)) {
      AddFormat(row, &layer);
      AddUnique(row.rule, &layer.rules);
    }
  }
  return layers;
}

std::vector<LayerLine> MergeRuns(std::vector<LayerLine> layers) {
  std::vector<LayerLine> runs;
  for (LayerLine& layer : layers) {
    if (!runs.empty() && runs.back().formats == layer.formats && runs.back().rules == layer.rules) {
      runs.back().last = layer.last;
      runs.back().stored_bytes += layer.stored_bytes;
      runs.back().bf16_bytes += layer.bf16_bytes;
    } else {
      runs.push_back(std::move(layer));
    }
  }
  return runs;
}

bool HaveSameColumns(const LayerLine& a, const LayerLine& b) {
  return std::ranges::equal(a.formats, b.formats, {}, &std::pair<std::string, std::string>::first,
                            &std::pair<std::string, std::string>::first);
}

// Of a column of formats: as wide as its widest text.
size_t FormatWidth(const std::vector<LayerLine>& runs) {
  size_t width = 5;
  for (const LayerLine& run : runs) {
    for (const auto& [column, format] : run.formats) {
      width = std::max({width, column.size(), format.size()});
    }
  }
  return width;
}

std::string LayerMap(const std::vector<LayerLine>& runs) {
  const size_t width = FormatWidth(runs);
  std::string text;
  const LayerLine* last = nullptr;
  for (const LayerLine& run : runs) {
    if (last == nullptr || !HaveSameColumns(*last, run)) {
      text += fmt::format("{:<10}", "layers");
      for (const auto& [column, format] : run.formats) {
        text += fmt::format(" {:<{}}", column, width);
      }
      text += fmt::format(" {:>11} {:>11}  {}\n", "stored", "as bf16", "rule");
    }
    last = &run;
    text +=
        fmt::format("{:<10}", run.first == run.last ? fmt::format("{}", run.first)
                                                    : fmt::format("{}-{}", run.first, run.last));
    for (const auto& [column, format] : run.formats) {
      text += fmt::format(" {:<{}}", format, width);
    }
    text += fmt::format(" {:>11} {:>11}  {}\n", BytesText(run.stored_bytes),
                        BytesText(run.bf16_bytes), fmt::join(run.rules, ", "));
  }
  return text;
}

// The weights outside the decoder layers, one line each.
std::string OutsideText(const PrecisionTable& table) {
  std::string text;
  for (const PrecisionRow& row : table.rows) {
    if (row.layer < 0) {
      text += fmt::format("{:<40} {:<5} {:>11}  {}\n", row.name, WeightFormatName(row.format),
                          BytesText(StoredBytes(row)), row.rule);
    }
  }
  return text;
}

std::string TotalsText(const PrecisionTable& table) {
  std::string text;
  int64_t stored_bytes = 0;
  int64_t bf16_bytes = 0;
  const std::vector<FormatSize> sizes = FormatSizesOf(table);
  size_t width = 5;
  for (const FormatSize& size : sizes) {
    width = std::max(width, WeightFormatName(size.format).size());
  }
  for (const FormatSize& size : sizes) {
    text += fmt::format("{:<{}} {:>6} weights {:>11} ({} as bf16)\n", WeightFormatName(size.format),
                        width, size.num_tensors, BytesText(size.stored_bytes),
                        BytesText(size.bf16_bytes));
    stored_bytes += size.stored_bytes;
    bf16_bytes += size.bf16_bytes;
  }
  const double percent =
      bf16_bytes == 0 ? 100.0
                      : 100.0 * static_cast<double>(stored_bytes) / static_cast<double>(bf16_bytes);
  return text + fmt::format("{:<{}} {:>6} weights {:>11} ({} as bf16, {:.1f} %)\nhash  {}", "all",
                            width, table.rows.size(), BytesText(stored_bytes),
                            BytesText(bf16_bytes), percent, table.Hash());
}

// Nearest by spelling; otherwise the first weights below `name`, when it is a path to several.
std::vector<std::string> NearRows(const PrecisionTable& table, std::string_view name) {
  if (name.size() > kNearNameBytesMax) {
    return {};
  }
  std::vector<std::string> below;
  std::vector<std::string> modules;
  for (const PrecisionRow& row : table.rows) {
    modules.emplace_back(ModuleOfWeight(row.name));
    if (below.size() < kMaxNearest && !name.empty() && IsDottedRun(name, row.name)) {
      below.push_back(modules.back());
    }
  }
  if (!below.empty()) {
    return below;
  }
  std::vector<std::string> near = NearestNames(ModuleOfWeight(name), modules, kMaxNearest);
  if (near.empty() && !name.starts_with(kModelPrefix)) {
    near =
        NearestNames(std::string(kModelPrefix).append(ModuleOfWeight(name)), modules, kMaxNearest);
  }
  return near;
}

}  // namespace

std::string BytesText(int64_t num_bytes) {
  if (num_bytes < 1024) {
    return fmt::format("{} B", num_bytes);
  }
  double value = static_cast<double>(num_bytes) / 1024.0;
  size_t unit_idx = 0;
  while (value >= 1024.0 && unit_idx + 1 < std::size(kUnits)) {
    value /= 1024.0;
    ++unit_idx;
  }
  return fmt::format("{:.1f} {}", value, kUnits[unit_idx]);
}

std::string TableToText(const PrecisionTable& table) {
  return fmt::format("{}\n{}\n{}", LayerMap(MergeRuns(LayerLines(table))), OutsideText(table),
                     TotalsText(table));
}

Result<const PrecisionRow*> FindRow(const PrecisionTable& table, std::string_view name) {
  const std::string_view module = ModuleOfWeight(StripTrailingDots(name));
  std::vector<std::string> forms = {std::string(name), std::string(module).append(kWeightSuffix)};
  forms.push_back(std::string(kModelPrefix).append(forms[1]));
  if (module.starts_with(kModelPrefix)) {
    forms.push_back(forms[1].substr(kModelPrefix.size()));
  }
  for (const std::string& form : forms) {
    if (const PrecisionRow* row = table.Find(form)) {
      return row;
    }
  }
  const std::vector<std::string> near = NearRows(table, StripTrailingDots(name));
  return NotFound(
      "{}: the model has no such weight{}", name,
      near.empty() ? std::string() : fmt::format("; nearest: {}", fmt::join(near, ", ")));
}

Result<std::string> ExplainRow(const PrecisionTable& table, std::string_view name) {
  ASSIGN_OR_RETURN(const PrecisionRow* row, FindRow(table, name));
  std::string text = fmt::format("{}: {}\n", row->name, WeightFormatName(row->format));
  text += fmt::format("  role    {}{}, {}\n", RoleName(row->role),
                      row->layer < 0 ? std::string() : fmt::format(", layer {}", row->layer),
                      ShapeString(row->shape));
  text += fmt::format("  rule    {}\n  reason  {}\n", row->rule, row->reason);
  text += fmt::format("  beats   {}\n", row->shadowed.empty()
                                            ? std::string("no other rule")
                                            : fmt::format("{}", fmt::join(row->shadowed, ", ")));
  for (const StoredTensorSpec& tensor : StoredTensorsOf(*row, table.layout)) {
    text += fmt::format("  stored  {} {} {}\n", tensor.name, DTypeName(tensor.dtype),
                        ShapeString(tensor.shape));
  }
  return text + fmt::format("  bytes   {} ({} as bf16)", StoredBytes(*row), Bf16Bytes(*row));
}

}  // namespace octavo
