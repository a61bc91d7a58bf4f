#include "octavo/convert/conversion_plan.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/natural_order.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Raised when the same plan would give other bytes than before.
constexpr int kConverterVersion = 1;
constexpr std::string_view kListKey = "modules_to_not_convert";
constexpr std::string_view kOwnKey = "octavo";
constexpr std::string_view kWeightSuffix = ".weight";

// The suffixes under which formats store what belongs to a weight.
constexpr std::array<std::string_view, 7> kScaleSuffixes = {
    "_scale_inv", "_scale", "_scale_2", "_global_scale", ".input_scale", ".k_scale", ".v_scale"};

bool IsScaleName(std::string_view name) {
  return std::ranges::any_of(kScaleSuffixes,
                             [&](std::string_view suffix) { return name.ends_with(suffix); });
}

bool IsFp8DType(DType dtype) {
  return dtype == DType::kF8E4m3 || dtype == DType::kF8E5m2 || dtype == DType::kF8E8m0;
}

bool IsSourceDType(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

bool IsQuantized(const PrecisionTable& table) {
  return std::ranges::any_of(
      table.rows, [](const PrecisionRow& row) { return row.format != WeightFormat::kBf16; });
}

// The rows by name, and the names of all tensors as which they are stored.
struct TableIndex {
  explicit TableIndex(const PrecisionTable& table) {
    for (const PrecisionRow& row : table.rows) {
      rows.emplace(row.name, &row);
      for (StoredTensorSpec& spec : StoredTensorsOf(row)) {
        if (spec.name != row.name) {
          parts.insert(std::move(spec.name));
        }
      }
    }
  }
  const PrecisionRow* Find(std::string_view name) const {
    const auto row = rows.find(name);
    return row == rows.end() ? nullptr : row->second;
  }

  std::map<std::string, const PrecisionRow*, std::less<>> rows;
  std::set<std::string, std::less<>> parts;  // Scales.
};

Status CheckTableIsOfModel(const ModelSpec& spec, const PrecisionTable& table) {
  const bool same =
      std::ranges::equal(spec.weights, table.rows, {}, &WeightSpec::name, &PrecisionRow::name);
  return same ? OkStatus()
              : InvalidArgument("the precision table is not that of a {} of this shape",
                                spec.architecture);
}

// The source is not quantized, or quantized exactly as asked. Returns whether it is the latter.
Result<bool> SourceIsStoredByTable(const Checkpoint& checkpoint, const ModelSpec& spec,
                                   const PrecisionTable& table) {
  ASSIGN_OR_RETURN(const PrecisionTable stored,
                   TableFromQuantizationConfig(spec, checkpoint.config().quantization_config));
  if (!IsQuantized(stored)) {
    return false;
  }
  for (size_t i = 0; i < stored.rows.size(); ++i) {
    if (stored.rows[i].format != table.rows[i].format) {
      return Unsupported(
          "{}: the source is quantized by another table: {} is stored as {} and asked for as {}; "
          "convert from the BF16 checkpoint",
          checkpoint.dir(), stored.rows[i].name, WeightFormatName(stored.rows[i].format),
          WeightFormatName(table.rows[i].format));
    }
  }
  return true;
}

Status CheckSourceTensor(const PrecisionRow& row, const StoredTensor& tensor) {
  if (!IsSourceDType(tensor.view.dtype) || tensor.view.shape != row.shape) {
    return InvalidArgument("{}: expected {} BF16, F16 or F32, got {} {}", row.name,
                           ShapeString(row.shape), ShapeString(tensor.view.shape),
                           DTypeName(tensor.view.dtype));
  }
  return OkStatus();
}

Status CheckAllPresent(const Checkpoint& checkpoint, const PrecisionTable& table,
                       bool passes_through) {
  std::vector<std::string> missing;
  for (const PrecisionRow& row : table.rows) {
    for (const StoredTensorSpec& spec : StoredTensorsOf(row)) {
      const bool needed = passes_through || spec.name == row.name;
      if (needed && checkpoint.Find(spec.name) == nullptr) {
        missing.push_back(spec.name);
      }
    }
  }
  if (missing.empty()) {
    return OkStatus();
  }
  return InvalidArgument("{}: expected tensor {}, which no file holds ({} missing in all)",
                         checkpoint.dir(), missing.front(), missing.size());
}

Status CheckUnknown(const StoredTensor& tensor) {
  if (IsScaleName(tensor.name)) {
    return InvalidArgument("{}: a scale, but no quantized weight that it belongs to", tensor.name);
  }
  if (IsFp8DType(tensor.view.dtype)) {
    return InvalidArgument("{}: {} codes without a known weight and scale", tensor.name,
                           DTypeName(tensor.view.dtype));
  }
  return OkStatus();
}

// What happens to one tensor, with its headers appended to the shard.
Status PlanTensor(const TableIndex& index, const StoredTensor& tensor, ConversionPlan& plan) {
  ShardPlan& shard = plan.shards[static_cast<size_t>(tensor.shard_idx)];
  ConvertStep step = {.source = &tensor, .row = index.Find(tensor.name)};
  const TensorHeader as_is = {tensor.name, tensor.view.dtype, tensor.view.shape};
  if (step.row == nullptr) {
    if (!plan.passes_through || !index.parts.contains(tensor.name)) {
      RETURN_IF_ERROR(CheckUnknown(tensor));
      plan.unknown.push_back(tensor.name);
    }
    shard.headers.push_back(as_is);
  } else if (step.row->format == WeightFormat::kBf16) {
    RETURN_IF_ERROR(CheckSourceTensor(*step.row, tensor));
    step.action = ConvertAction::kKeep;
    shard.headers.push_back(as_is);
  } else if (plan.passes_through) {
    step.action = ConvertAction::kAdopt;
    shard.headers.push_back(as_is);
  } else {
    RETURN_IF_ERROR(CheckSourceTensor(*step.row, tensor));
    step.action = ConvertAction::kTransform;
    for (StoredTensorSpec& spec : StoredTensorsOf(*step.row)) {
      shard.headers.push_back({std::move(spec.name), spec.dtype, std::move(spec.shape)});
    }
  }
  shard.steps.push_back(step);
  plan.bytes_in += tensor.view.NumBytes();
  return OkStatus();
}

// "NAME SIZE SECONDS.NANOSECONDS\n" of a source file: another file, or a changed one, differs.
Result<std::string> FileIdentity(const std::string& dir, const std::string& file) {
  const std::string path = dir + "/" + file;
  struct stat info = {};
  if (stat(path.c_str(), &info) != 0) {
    return NotFound("{}: {}", path, strerror(errno));
  }
  return fmt::format("{} {} {}.{}\n", file, info.st_size, info.st_mtim.tv_sec,
                     info.st_mtim.tv_nsec);
}

Result<std::string> PlanHash(const Checkpoint& checkpoint, const PrecisionTable& table,
                             const ConversionPlan& plan) {
  std::string text =
      fmt::format("octavo convert {}\n{}\n{}\n", kConverterVersion, table.Hash(), plan.config_json);
  for (const ShardPlan& shard : plan.shards) {
    ASSIGN_OR_RETURN(const std::string identity, FileIdentity(checkpoint.dir(), shard.file));
    text += identity;
    for (const TensorHeader& header : shard.headers) {
      text += fmt::format("{} {} {}\n", header.name, DTypeName(header.dtype),
                          ShapeString(header.shape));
    }
  }
  return HashHex(HashText(text));
}

}  // namespace

std::vector<const StoredTensor*> UnknownTensors(const Checkpoint& checkpoint,
                                                const PrecisionTable& table) {
  const TableIndex index(table);
  std::vector<const StoredTensor*> unknown;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (index.Find(tensor.name) == nullptr && !index.parts.contains(tensor.name)) {
      unknown.push_back(&tensor);
    }
  }
  return unknown;
}

std::string QuantizationConfigFor(const PrecisionTable& table,
                                  std::span<const StoredTensor* const> unknown) {
  std::string text = QuantizationConfigJson(table);
  std::vector<std::string> modules =
      text.empty() ? std::vector<std::string>() : ListedModules(text);
  const size_t num_known = modules.size();
  for (const StoredTensor* tensor : unknown) {
    const std::string_view name = tensor->name;
    if (name.ends_with(kWeightSuffix) && tensor->view.shape.size() >= 2) {
      modules.emplace_back(name.substr(0, name.size() - kWeightSuffix.size()));
    }
  }
  if (text.empty() || modules.size() == num_known) {
    return text;
  }
  std::ranges::sort(modules, NaturalLess);
  const OrderedJson config = OrderedJson::parse(text, nullptr, /*allow_exceptions=*/false);
  OrderedJson edited = OrderedJson::object();  // The list stands before our own key, or last.
  for (const auto& [key, value] : config.items()) {
    if (key == kOwnKey) {
      edited[std::string(kListKey)] = modules;
    }
    edited[key] = key == kListKey ? OrderedJson(modules) : value;
  }
  edited[std::string(kListKey)] = modules;
  return edited.dump(2, ' ', false, OrderedJson::error_handler_t::replace);
}

bool HasOwnTable(std::string_view quantization_config) {
  const OrderedJson config =
      OrderedJson::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  return config.is_object() && config.contains(kOwnKey);
}

std::vector<std::string> ListedModules(std::string_view quantization_config) {
  const OrderedJson config =
      OrderedJson::parse(quantization_config, nullptr, /*allow_exceptions=*/false);
  std::vector<std::string> modules;
  if (!config.is_object() || !config.contains(kListKey) || !config[kListKey].is_array()) {
    return modules;
  }
  for (const OrderedJson& entry : config[kListKey]) {
    if (const auto* module = entry.get_ptr<const std::string*>()) {
      modules.push_back(*module);
    }
  }
  return modules;
}

Result<ConversionPlan> PlanConversion(const Checkpoint& checkpoint, const ModelSpec& spec,
                                      const PrecisionTable& table) {
  RETURN_IF_ERROR(CheckTableIsOfModel(spec, table));
  ConversionPlan plan;
  ASSIGN_OR_RETURN(plan.passes_through, SourceIsStoredByTable(checkpoint, spec, table));
  RETURN_IF_ERROR(CheckAllPresent(checkpoint, table, plan.passes_through));
  for (const std::string& file : checkpoint.shard_files()) {
    plan.shards.push_back({.file = file, .headers = {}, .steps = {}});
  }
  const TableIndex index(table);
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    RETURN_IF_ERROR(PlanTensor(index, tensor, plan));
  }
  for (const ShardPlan& shard : plan.shards) {
    for (const TensorHeader& header : shard.headers) {
      plan.bytes_out += NumElements(header.shape) * DTypeBytes(header.dtype);
    }
  }
  plan.config_json = checkpoint.config().config_json;
  if (!plan.passes_through) {
    const auto unknown = UnknownTensors(checkpoint, table);
    ASSIGN_OR_RETURN(
        plan.config_json,
        ConfigJsonWithQuantization(plan.config_json, QuantizationConfigFor(table, unknown)));
  }
  ASSIGN_OR_RETURN(plan.hash, PlanHash(checkpoint, table, plan));
  return plan;
}

}  // namespace octavo
