#include "octavo/convert/conversion_plan.h"

#include <fmt/core.h>
#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/source.h"
#include "octavo/convert/source_tensors.h"
#include "octavo/convert/stored_check.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using OrderedJson = nlohmann::ordered_json;

// Raised when the same plan would give other bytes than before.
constexpr int kConverterVersion = 2;
constexpr std::string_view kListKey = "modules_to_not_convert";
constexpr std::string_view kOwnKey = "octavo";
constexpr std::string_view kWeightSuffix = ".weight";

Status CheckTableIsOfModel(const ModelSpec& spec, const PrecisionTable& table) {
  const bool same =
      std::ranges::equal(spec.weights, table.rows, {}, &WeightSpec::name, &PrecisionRow::name);
  return same ? OkStatus()
              : InvalidArgument("the precision table is not that of a {} of this shape",
                                spec.architecture);
}

// Names an engine's loader does not need: a multi-token-prediction layer may leave its copies of
// the embedding and the head to the model's own.
bool MayBeAbsent(const WeightSpec& weight) {
  return weight.is_mtp && (weight.role == Role::kEmbedding || weight.role == Role::kLmHead);
}

Status CheckAllPresent(const Checkpoint& checkpoint, const ModelSpec& spec,
                       const SourceTensors& sources) {
  std::set<int> mtp_layers;  // Of which something is stored.
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    if (spec.weights[i].is_mtp && sources.weights[i].has_value()) {
      mtp_layers.insert(spec.weights[i].layer);
    }
  }
  std::vector<std::string> missing;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    const bool needed =
        !weight.is_mtp || (mtp_layers.contains(weight.layer) && !MayBeAbsent(weight));
    if (needed && !sources.weights[i].has_value()) {
      missing.push_back(weight.name);
    }
  }
  if (missing.empty()) {
    return OkStatus();
  }
  return InvalidArgument("{}: expected tensor {}, which no file holds ({} missing in all)",
                         checkpoint.dir(), missing.front(), missing.size());
}

// Whether codes and scales of `source` are what `row` is stored as, names and dtypes aside.
bool Holds(const WeightSource& source, const PrecisionRow& row) {
  const bool is_power_of_two_block =
      source.format == WeightFormat::kFp8Ue8m0 && row.format == WeightFormat::kFp8;
  return source.format == row.format || is_power_of_two_block;
}

// Whether a weight is stored exactly as a converter would store it.
bool IsStoredAs(const FoundWeight& found, const PrecisionRow& row, StoredLayout layout) {
  if (found.is_stacked || !Holds(found.source, row)) {
    return false;
  }
  if (row.format == WeightFormat::kBf16) {
    return true;  // Kept weights have the dtype that they came with.
  }
  return std::ranges::all_of(StoredTensorsOf(row, layout), [&](const StoredTensorSpec& spec) {
    const StoredTensor* tensor = found.Find(spec.part);
    return tensor != nullptr && tensor->name == spec.name &&
           CheckStoredType(row, spec, tensor->view).ok();
  });
}

// The source is what the table asks for, in tensors and in configuration.
bool PassesThrough(const Checkpoint& checkpoint, const ModelSpec& spec, const PrecisionTable& table,
                   const SourceTensors& sources) {
  const std::string& config = checkpoint.config().quantization_config;
  const auto stored = config.empty() ? Result<PrecisionTable>(NotFound("no quantization_config"))
                                     : TableFromQuantizationConfig(spec, config);
  if (!stored || stored->layout != table.layout) {
    return false;
  }
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const std::optional<FoundWeight>& found = sources.weights[i];
    if (stored->rows[i].format != table.rows[i].format ||
        (found.has_value() && !IsStoredAs(*found, table.rows[i], table.layout))) {
      return false;
    }
  }
  return true;
}

ConvertAction ActionFor(const WeightSource& source, const PrecisionRow& row, bool passes_through) {
  const bool is_plain = source.format == WeightFormat::kBf16;
  if (row.format == WeightFormat::kBf16) {
    return is_plain ? ConvertAction::kKeep : ConvertAction::kDecode;
  }
  if (passes_through) {
    return ConvertAction::kPassThrough;
  }
  if (Holds(source, row)) {
    return ConvertAction::kAdopt;
  }
  if (source.format == WeightFormat::kFp8Ue8m0 && row.format == WeightFormat::kMxfp8) {
    return ConvertAction::kBlocksToGroups;
  }
  if (source.format == WeightFormat::kMxfp8 && row.format == WeightFormat::kFp8Ue8m0) {
    return ConvertAction::kGroupsToBlocks;
  }
  return ConvertAction::kEncode;
}

// The scale or divisor of one element that `spec` stores, from what the source has of either.
float AdoptedValue(const FoundWeight& found, StoredPart part) {
  const auto value_of = [&](StoredPart scale, StoredPart divisor) {
    const bool want_divisor = part == divisor;
    const StoredTensor* tensor = found.Find(part);
    const bool same = tensor != nullptr;
    if (!same) {
      tensor = found.Find(want_divisor ? scale : divisor);
    }
    float value = 1.0F;
    if (tensor != nullptr) {
      WidenScales(tensor->view, 0, {&value, 1});
    }
    return same ? value : 1.0F / value;
  };
  if (part == StoredPart::kTensorScale || part == StoredPart::kTensorDivisor) {
    return value_of(StoredPart::kTensorScale, StoredPart::kTensorDivisor);
  }
  return value_of(StoredPart::kInputScale, StoredPart::kInputDivisor);
}

// What the step writes.
std::vector<StepOutput> OutputsOf(const ConvertStep& step, const FoundWeight& found,
                                  StoredLayout layout) {
  std::vector<StepOutput> outputs;
  if (step.action == ConvertAction::kKeep) {
    StoredTensorSpec spec = StoredTensorsOf(*step.row, layout).front();
    spec.dtype = found.source.codes.dtype;
    return {{.spec = std::move(spec)}};
  }
  if (step.action == ConvertAction::kPassThrough) {
    for (const SourcePart& part : found.parts) {
      const ConstTensorView& view = part.tensor->view;
      outputs.push_back(
          {.spec = {part.tensor->name, view.dtype, view.shape, part.part}, .from = part.tensor});
    }
    return outputs;
  }
  for (StoredTensorSpec& spec : StoredTensorsOf(*step.row, layout)) {
    StepOutput output = {.spec = std::move(spec)};
    const bool is_single =
        output.spec.part != StoredPart::kCodes && output.spec.part != StoredPart::kScales;
    if (step.action == ConvertAction::kAdopt) {
      output.from = is_single ? nullptr : found.Find(output.spec.part);
      output.value = is_single ? AdoptedValue(found, output.spec.part) : 1.0F;
    }
    outputs.push_back(std::move(output));
  }
  return outputs;
}

void SetAction(ConvertAction action, const FoundWeight& found, StoredLayout layout,
               ConvertStep& step) {
  step.action = action;
  step.outputs = OutputsOf(step, found, layout);
}

ConvertStep StepFor(const FoundWeight& found, const PrecisionRow& row, int row_idx,
                    const ConversionPlan& plan) {
  ConvertStep step;
  step.name = row.name;
  step.row = &row;
  step.row_idx = row_idx;
  step.source = found.source;
  for (const SourcePart& part : found.parts) {
    const bool is_input =
        part.part == StoredPart::kInputScale || part.part == StoredPart::kInputDivisor;
    step.input_scale = is_input ? part.tensor : step.input_scale;
  }
  SetAction(ActionFor(found.source, row, plan.passes_through), found, plan.layout, step);
  if (found.is_stacked) {
    step.bytes_in = found.source.codes.NumBytes();
    step.note = fmt::format("a slice of {}", found.parts.front().tensor->name);
  } else {
    for (const SourcePart& part : found.parts) {
      step.bytes_in += part.tensor->view.NumBytes();
    }
  }
  if (step.action == ConvertAction::kKeep && found.source.codes.dtype != DType::kBf16) {
    step.note += fmt::format("{}kept as {}", step.note.empty() ? "" : ", ",
                             DTypeName(found.source.codes.dtype));
  }
  return step;
}

ConvertStep CopyStep(const StoredTensor& tensor) {
  ConvertStep step;
  step.name = tensor.name;
  step.source = PlainSource({DType::kU8, {tensor.view.NumBytes()}, tensor.view.data});
  step.outputs = {{.spec = {tensor.name, tensor.view.dtype, tensor.view.shape}, .from = &tensor}};
  step.bytes_in = tensor.view.NumBytes();
  step.note = "not in the model's weight table: kept as it is";
  return step;
}

// The steps by row, while the plan is made; null where there is none.
using StepsByRow = std::vector<ConvertStep*>;

// A set is encoded whole or adopted whole: one member encoded anew would not share the scale of the
// others.
void PlanAmaxSets(const ModelSpec& spec, const PrecisionTable& table, const SourceTensors& sources,
                  const StepsByRow& steps, ConversionPlan& plan) {
  std::vector<std::vector<int>> sets = SharedScaleSets(spec, table);
  std::set<int> in_sets;
  for (const std::vector<int>& members : sets) {
    in_sets.insert(members.begin(), members.end());
  }
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (SharesScale(table.rows[i].format) && !in_sets.contains(static_cast<int>(i))) {
      sets.push_back({static_cast<int>(i)});
    }
  }
  for (std::vector<int>& members : sets) {
    std::erase_if(members, [&](int row) { return steps[static_cast<size_t>(row)] == nullptr; });
    const auto is_encoded = [&](int row) {
      return steps[static_cast<size_t>(row)]->action == ConvertAction::kEncode;
    };
    if (std::ranges::none_of(members, is_encoded)) {
      continue;
    }
    for (const int row : members) {
      const auto idx = static_cast<size_t>(row);
      if (!is_encoded(row)) {
        SetAction(ConvertAction::kEncode, *sources.weights[idx], plan.layout, *steps[idx]);
      }
    }
    plan.amax_sets.push_back(std::move(members));
  }
}

// Says so where adopted members of a set have scales of their own: engines take one for all.
void NoteUnsharedScales(const ModelSpec& spec, const PrecisionTable& table,
                        const SourceTensors& sources, const StepsByRow& steps) {
  for (const std::vector<int>& members : SharedScaleSets(spec, table)) {
    for (const int row : members) {
      const auto idx = static_cast<size_t>(row);
      const auto first = static_cast<size_t>(members.front());
      const bool adopted = steps[idx] != nullptr && steps[first] != nullptr &&
                           steps[idx]->action != ConvertAction::kEncode;
      if (adopted && sources.weights[idx]->source.tensor_scale !=
                         sources.weights[first]->source.tensor_scale) {
        steps[idx]->note = fmt::format("its scale is not that of {}, with which engines fuse it",
                                       table.rows[first].name);
      }
    }
  }
}

// Whether the step writes the activation scale that its source holds.
bool CarriesInputScale(const ConvertStep& step) {
  if (step.action == ConvertAction::kPassThrough) {
    return true;
  }
  return step.action == ConvertAction::kAdopt &&
         std::ranges::any_of(step.outputs, [](const StepOutput& output) {
           return output.spec.part == StoredPart::kInputScale ||
                  output.spec.part == StoredPart::kInputDivisor;
         });
}

// Says so where calibrated scales of activations end here: what is written has them computed at run
// time. A scale of 1 says the same.
void NoteDroppedInputScales(ConversionPlan& plan) {
  int64_t num_dropped = 0;
  std::string_view first;
  for (ShardPlan& shard : plan.shards) {
    for (ConvertStep& step : shard.steps) {
      if (step.input_scale == nullptr || CarriesInputScale(step)) {
        continue;
      }
      float value = 0.0F;
      WidenScales(step.input_scale->view, 0, {&value, 1});
      if (value == 1.0F) {
        continue;
      }
      step.note += fmt::format("{}its activation scale {} is not carried over",
                               step.note.empty() ? "" : ", ", value);
      first = num_dropped++ == 0 ? std::string_view(step.input_scale->name) : first;
    }
  }
  if (num_dropped > 0) {
    plan.warnings.push_back(fmt::format(
        "{} scales of activations, such as {}, are not carried over: what is written has them "
        "computed at run time",
        num_dropped, first));
  }
}

void FinishShard(ShardPlan& shard, ConversionPlan& plan) {
  std::ranges::sort(shard.steps, {}, &ConvertStep::name);
  for (ConvertStep& step : shard.steps) {
    step.first_header = shard.headers.size();
    plan.bytes_in += step.bytes_in;
    for (const StepOutput& output : step.outputs) {
      shard.headers.push_back({output.spec.name, output.spec.dtype, output.spec.shape});
      plan.bytes_out += NumElements(output.spec.shape) * DTypeBytes(output.spec.dtype);
    }
  }
}

// Fills in the shards and the sets.
void PlanSteps(const Checkpoint& checkpoint, const ModelSpec& spec, const PrecisionTable& table,
               const SourceTensors& sources, ConversionPlan& plan) {
  for (const std::string& file : checkpoint.shard_files()) {
    plan.shards.push_back({.file = file, .headers = {}, .steps = {}});
  }
  std::vector<ConvertStep> steps;
  steps.reserve(table.rows.size());  // Pointers into it stay.
  StepsByRow by_row(table.rows.size());
  for (size_t i = 0; i < table.rows.size(); ++i) {
    if (sources.weights[i].has_value()) {
      steps.push_back(StepFor(*sources.weights[i], table.rows[i], static_cast<int>(i), plan));
      by_row[i] = &steps.back();
    }
  }
  PlanAmaxSets(spec, table, sources, by_row, plan);
  NoteUnsharedScales(spec, table, sources, by_row);
  const auto shard_of = [&](const StoredTensor& tensor) -> ShardPlan& {
    return plan.shards[static_cast<size_t>(tensor.shard_idx)];
  };
  for (ConvertStep& step : steps) {
    const FoundWeight& found = *sources.weights[static_cast<size_t>(step.row_idx)];
    shard_of(*found.parts.front().tensor).steps.push_back(std::move(step));
  }
  for (const StoredTensor* tensor : sources.others) {
    plan.unknown.push_back(tensor->name);
    shard_of(*tensor).steps.push_back(CopyStep(*tensor));
  }
  for (ShardPlan& shard : plan.shards) {
    FinishShard(shard, plan);
  }
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
  std::string text = fmt::format("octavo convert {}\n{} {} {}\n{}\n{}\n", kConverterVersion,
                                 table.Hash(), static_cast<int>(plan.layout), plan.direct,
                                 plan.config_json, plan.hf_quant_config_json);
  if (!plan.inverted.empty()) {
    text += "source scales divide\n";
  }
  for (const ShardPlan& shard : plan.shards) {
    ASSIGN_OR_RETURN(const std::string identity, FileIdentity(checkpoint.dir(), shard.file));
    text += identity;
    for (const TensorHeader& header : shard.headers) {
      text += fmt::format("{} {} {}\n", header.name, DTypeName(header.dtype),
                          ShapeString(header.shape));
    }
    for (const ConvertStep& step : shard.steps) {
      text += fmt::format("{} {}\n", step.name, static_cast<int>(step.action));
    }
  }
  return HashHex(HashText(text));
}

}  // namespace

std::vector<const StoredTensor*> UnknownTensors(const Checkpoint& checkpoint,
                                                const PrecisionTable& table) {
  std::set<std::string> known;
  for (const PrecisionRow& row : table.rows) {
    known.insert(row.name);
    for (StoredTensorSpec& spec : StoredTensorsOf(row, table.layout)) {
      known.insert(std::move(spec.name));
    }
  }
  std::vector<const StoredTensor*> unknown;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (!known.contains(tensor.name)) {
      unknown.push_back(&tensor);
    }
  }
  return unknown;
}

std::vector<std::string> UnknownModules(std::span<const StoredTensor* const> unknown) {
  std::vector<std::string> modules;
  for (const StoredTensor* tensor : unknown) {
    const std::string_view name = tensor->name;
    if (name.ends_with(kWeightSuffix) && tensor->view.shape.size() >= 2) {
      modules.emplace_back(name.substr(0, name.size() - kWeightSuffix.size()));
    }
  }
  return modules;
}

std::string QuantizationConfigFor(const PrecisionTable& table,
                                  std::span<const StoredTensor* const> unknown) {
  return QuantizationConfigJson(table, UnknownModules(unknown));
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
                                      const PrecisionTable& table, const PlanOptions& options) {
  RETURN_IF_ERROR(CheckTableIsOfModel(spec, table));
  ASSIGN_OR_RETURN(SourceTensors sources, FindSources(checkpoint, spec, options.source));
  RETURN_IF_ERROR(CheckAllPresent(checkpoint, spec, sources));
  ConversionPlan plan;
  plan.layout = table.layout;
  plan.direct = options.direct;
  plan.passes_through =
      !options.source.scales_divide && PassesThrough(checkpoint, spec, table, sources);
  PlanSteps(checkpoint, spec, table, sources, plan);
  NoteDroppedInputScales(plan);
  plan.config_json = checkpoint.config().config_json;
  if (plan.passes_through) {
    const auto text = ReadTextFile(fmt::format("{}/{}", checkpoint.dir(), kHfQuantConfigFile));
    plan.hf_quant_config_json = text ? *text : "";
  } else {
    plan.hf_quant_config_json = HfQuantConfigJson(table, UnknownModules(sources.others));
    ASSIGN_OR_RETURN(
        plan.config_json,
        ConfigJsonWithQuantization(plan.config_json, QuantizationConfigFor(table, sources.others)));
  }
  plan.inverted = std::move(sources.inverted);
  ASSIGN_OR_RETURN(plan.hash, PlanHash(checkpoint, table, plan));
  return plan;
}

}  // namespace octavo
