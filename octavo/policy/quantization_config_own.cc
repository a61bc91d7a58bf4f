#include "octavo/policy/quantization_config_own.h"

#include <fmt/core.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

// A change of the key's meaning raises it.
constexpr int kSchema = 2;
constexpr std::string_view kExpertsPart = ".experts.";
constexpr std::string_view kCompressedTensors = "compressed-tensors";
constexpr std::string_view kDefaultLayout = "default";

// An expert's name in three parts: "….experts.", "17", ".up_proj.weight".
struct ExpertName {
  std::string_view head;
  int expert = -1;  // -1: no expert's name; then `head` is all of it.
  std::string_view tail;
};

ExpertName SplitExpert(std::string_view name) {
  const size_t found = name.find(kExpertsPart);
  if (found == std::string_view::npos) {
    return {name, -1, {}};
  }
  const size_t begin = found + kExpertsPart.size();
  int expert = -1;
  const auto [end, error] = std::from_chars(name.data() + begin, name.data() + name.size(), expert);
  if (error != std::errc() || expert < 0 || end == name.data() + name.size() || *end != '.') {
    return {name, -1, {}};
  }
  return {name.substr(0, begin), expert, name.substr(static_cast<size_t>(end - name.data()))};
}

bool DecidedAlike(const PrecisionRow& a, const PrecisionRow& b) {
  return a.format == b.format && a.rule == b.rule && a.reason == b.reason &&
         a.shadowed == b.shadowed;
}

// Rows that stand as one: `last` is the number of the run's last expert.
struct Run {
  const PrecisionRow* first = nullptr;
  int last = -1;
};

std::vector<Run> RunsOf(const PrecisionTable& table) {
  std::vector<Run> runs;
  std::map<std::pair<std::string_view, std::string_view>, size_t> open;  // (head, tail) -> run.
  for (const PrecisionRow& row : table.rows) {
    const ExpertName name = SplitExpert(row.name);
    const auto found = name.expert < 0 ? open.end() : open.find({name.head, name.tail});
    if (found != open.end()) {
      Run& run = runs[found->second];
      if (run.last + 1 == name.expert && DecidedAlike(*run.first, row)) {
        run.last = name.expert;
        continue;
      }
    }
    if (name.expert >= 0) {
      open[{name.head, name.tail}] = runs.size();
    }
    runs.push_back({&row, name.expert});
  }
  return runs;
}

// The string at `key`, or null when it is absent or of another type.
const std::string* StringAt(const Json& object, std::string_view key) {
  const auto found = object.find(key);
  return found == object.end() ? nullptr : found->get_ptr<const std::string*>();
}

Status BadOwnKey(std::string_view what) { return Corrupt("quantization_config.octavo: {}", what); }

Result<WeightFormat> ReadFormat(const WeightSpec& weight, const Json& json) {
  const std::string* name = StringAt(json, "format");
  const std::optional<WeightFormat> format =
      name == nullptr ? std::nullopt : ParseWeightFormat(*name);
  if (!format) {
    return Unsupported("quantization_config.octavo: {}: format {} is not known here", weight.name,
                       name == nullptr ? "none" : *name);
  }
  if (*format != WeightFormat::kBf16 && !IsLinearRole(weight.role)) {
    return BadOwnKey(fmt::format("{}: a weight of role {} is never stored as {}", weight.name,
                                 RoleName(weight.role), *name));
  }
  if (weight.shape.size() == 2 && weight.shape[1] % ColsMultipleOf(*format) != 0) {
    return BadOwnKey(fmt::format("{}: rows of {} values are never stored as {}", weight.name,
                                 weight.shape[1], *name));
  }
  return *format;
}

Status ReadShadowed(const WeightSpec& weight, const Json& json, PrecisionRow* row) {
  const auto shadowed = json.find("shadowed");
  if (shadowed == json.end()) {
    return OkStatus();
  }
  if (!shadowed->is_array()) {
    return BadOwnKey(fmt::format("{}: shadowed: expected a list", weight.name));
  }
  for (const Json& loser : *shadowed) {
    if (!loser.is_string()) {
      return BadOwnKey(fmt::format("{}: shadowed: expected strings", weight.name));
    }
    row->shadowed.push_back(loser.get<std::string>());
  }
  return OkStatus();
}

Result<PrecisionRow> ReadOwnRow(const WeightSpec& weight, const Json& json, const Json& reasons) {
  const std::string* role = StringAt(json, "role");
  if (role == nullptr || *role != RoleName(weight.role)) {
    return BadOwnKey(fmt::format("{}: expected role {}, got {}", weight.name, RoleName(weight.role),
                                 role == nullptr ? "none" : *role));
  }
  ASSIGN_OR_RETURN(const WeightFormat format, ReadFormat(weight, json));
  const std::string* rule = StringAt(json, "rule");
  if (rule == nullptr) {
    return BadOwnKey(fmt::format("{}: has no rule", weight.name));
  }
  const std::string* reason = StringAt(json, "reason");
  if (reason == nullptr) {
    reason = StringAt(reasons, *rule);
  }
  if (reason == nullptr) {
    return BadOwnKey(fmt::format("{}: rule {} has no reason", weight.name, *rule));
  }
  PrecisionRow row{weight.name, weight.role, weight.layer, weight.shape,
                   format,      *rule,       *reason,      {}};
  RETURN_IF_ERROR(ReadShadowed(weight, json, &row));
  return row;
}

// The weights that one element of `table` is about: their positions in the spec.
Result<std::vector<int>> WeightsOf(const ModelSpec& spec, const Json& json) {
  const std::string* name = json.is_object() ? StringAt(json, "name") : nullptr;
  if (name == nullptr) {
    return BadOwnKey(fmt::format("table: expected an object with a name, got {}",
                                 json.is_object() ? "none" : json.type_name()));
  }
  int first = -1;
  int last = -1;
  const ExpertName parts = SplitExpert(*name);
  if (const auto experts = json.find("experts"); experts != json.end()) {
    const bool is_pair = experts->is_array() && experts->size() == 2 &&
                         (*experts)[0].is_number_integer() && (*experts)[1].is_number_integer();
    const int64_t begin = is_pair ? (*experts)[0].get<int64_t>() : -1;
    const int64_t end = is_pair ? (*experts)[1].get<int64_t>() : -1;
    if (parts.expert < 0 || begin != parts.expert || end < begin || end >= spec.moe.num_experts) {
      return BadOwnKey(fmt::format("{}: experts: expected [{}, up to {}]", *name, parts.expert,
                                   spec.moe.num_experts - 1));
    }
    first = static_cast<int>(begin);
    last = static_cast<int>(end);
  }
  std::vector<int> weights;
  for (int expert = first; expert <= last; ++expert) {
    const std::string full =
        expert < 0 ? *name : fmt::format("{}{}{}", parts.head, expert, parts.tail);
    const int weight = FindWeight(spec, full);
    if (weight < 0) {
      return BadOwnKey(fmt::format("table: {} is no weight of this model", full));
    }
    weights.push_back(weight);
  }
  return weights;
}

Status ReadRows(const ModelSpec& spec, const Json& rows, const Json& reasons,
                PrecisionTable* table) {
  std::vector<bool> seen(spec.weights.size(), false);
  size_t next = 0;  // The first weight without a row: forward order names it first.
  table->rows.resize(spec.weights.size());
  for (const Json& json : rows) {
    ASSIGN_OR_RETURN(const std::vector<int> weights, WeightsOf(spec, json));
    while (next < seen.size() && seen[next]) {
      ++next;
    }
    if (next == seen.size() || static_cast<size_t>(weights.front()) != next) {
      return BadOwnKey(fmt::format(
          "table: expected {}, got the row of {}",
          next == seen.size() ? "no further row" : "the row of " + spec.weights[next].name,
          spec.weights[static_cast<size_t>(weights.front())].name));
    }
    for (const int weight : weights) {
      const auto i = static_cast<size_t>(weight);
      if (seen[i]) {
        return BadOwnKey(fmt::format("table: {} stands there twice", spec.weights[i].name));
      }
      seen[i] = true;
      ASSIGN_OR_RETURN(table->rows[i], ReadOwnRow(spec.weights[i], json, reasons));
    }
  }
  for (size_t i = 0; i < seen.size(); ++i) {
    if (!seen[i]) {
      return BadOwnKey(fmt::format("table: expected {} weights, {} is missing", seen.size(),
                                   spec.weights[i].name));
    }
  }
  return OkStatus();
}

// Format and layout of a table, without rows.
Result<PrecisionTable> ReadHead(const Json& own) {
  PrecisionTable table;
  const std::string* format_name = StringAt(own, "format");
  const std::optional<WeightFormat> format =
      format_name == nullptr ? std::nullopt : ParseWeightFormat(*format_name);
  if (!format) {
    return Unsupported("quantization_config.octavo: format {} is not known here",
                       format_name == nullptr ? "none" : *format_name);
  }
  table.format = *format;
  if (own.contains("layout")) {
    const std::string* layout = StringAt(own, "layout");
    if (layout == nullptr || (*layout != kCompressedTensors && *layout != kDefaultLayout)) {
      return Unsupported("quantization_config.octavo: layout: expected {}, got {}",
                         kCompressedTensors, layout == nullptr ? "none" : *layout);
    }
    if (*layout == kCompressedTensors) {
      table.layout = StoredLayout::kCompressedTensors;
    }
  }
  return table;
}

}  // namespace

std::string OwnTableJson(const PrecisionTable& table) {
  OrderedJson reasons = OrderedJson::object();
  OrderedJson rows = OrderedJson::array();
  for (const Run& run : RunsOf(table)) {
    const PrecisionRow& row = *run.first;
    OrderedJson out = {{"name", row.name}, {"role", RoleName(row.role)}};
    if (const int expert = SplitExpert(row.name).expert; run.last > expert) {
      out["experts"] = {expert, run.last};
    }
    out["format"] = WeightFormatName(row.format);
    out["rule"] = row.rule;
    // A rule gives one reason; only a row that differs carries its own.
    if (!reasons.contains(row.rule)) {
      reasons[row.rule] = row.reason;
    } else if (reasons[row.rule] != row.reason) {
      out["reason"] = row.reason;
    }
    if (!row.shadowed.empty()) {
      out["shadowed"] = row.shadowed;
    }
    rows.push_back(std::move(out));
  }
  OrderedJson own = {{"schema", kSchema}, {"format", WeightFormatName(table.format)}};
  if (table.layout == StoredLayout::kCompressedTensors) {
    own["layout"] = kCompressedTensors;
  }
  own["hash"] = table.Hash();
  own["reasons"] = std::move(reasons);
  own["table"] = std::move(rows);
  return own.dump(-1, ' ', /*ensure_ascii=*/false, OrderedJson::error_handler_t::replace);
}

Result<PrecisionTable> ReadOwnTable(const ModelSpec& spec, std::string_view own_json) {
  const Json own = Json::parse(own_json, nullptr, /*allow_exceptions=*/false);
  if (!own.is_object()) {
    return BadOwnKey("expected an object");
  }
  const auto schema = own.find("schema");
  if (schema == own.end() || !schema->is_number_integer() || *schema < 1 || *schema > kSchema) {
    return Unsupported(
        "quantization_config.octavo: schema: expected 1 to {}, got {}", kSchema,
        schema == own.end() ? "none" : schema->dump(-1, ' ', true, Json::error_handler_t::replace));
  }
  ASSIGN_OR_RETURN(PrecisionTable table, ReadHead(own));
  const auto rows = own.find("table");
  const auto reasons = own.find("reasons");
  if (rows == own.end() || !rows->is_array() || reasons == own.end() || !reasons->is_object()) {
    return BadOwnKey("expected a table and its reasons");
  }
  RETURN_IF_ERROR(ReadRows(spec, *rows, *reasons, &table));
  const std::string* hash = StringAt(own, "hash");
  if (hash == nullptr || *hash != table.Hash()) {
    return BadOwnKey(fmt::format("hash: the table gives {}, the file says {}", table.Hash(),
                                 hash == nullptr ? "none" : *hash));
  }
  return table;
}

}  // namespace octavo
