#include "octavo/policy/manifest.h"

#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/model/spec/text_prefix.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

// Beyond any model; products of two stay in range.
constexpr int64_t kExtentMax = int64_t{1} << 31;
constexpr size_t kRankMax = 4;

constexpr std::string_view kCompressedTensors = "compressed-tensors";

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

Json PartsJson(const PrecisionRow& row, StoredLayout layout) {
  Json parts = Json::array();
  if (row.format == WeightFormat::kBf16) {
    return parts;
  }
  for (const StoredTensorSpec& spec : AcceptedTensorsOf(row, layout)) {
    parts.push_back({{"name", spec.name},
                     {"kind", StoredPartName(spec.part)},
                     {"dtype", DTypeName(spec.dtype)},
                     {"shape", spec.shape},
                     {"optional", spec.is_optional}});
  }
  return parts;
}

Json RowJson(const Manifest& manifest, size_t row_idx) {
  const PrecisionRow& row = manifest.table.rows[row_idx];
  const int group = manifest.group_of[row_idx];
  return {{"name", row.name},
          {"role", RoleName(row.role)},
          {"layer", row.layer < 0 ? Json() : Json(row.layer)},
          {"shape", row.shape},
          {"format", WeightFormatName(row.format)},
          {"rule", row.rule},
          {"dtypes", {"BF16", "F16", "F32"}},
          {"parts", PartsJson(row, manifest.table.layout)},
          {"group", group < 0 ? Json() : Json(group)},
          {"optional", static_cast<bool>(manifest.is_optional[row_idx])}};
}

Status Bad(std::string_view where, std::string_view expected, const Json& actual) {
  return Corrupt("manifest: {}: expected {}, got {}", where, expected, Dump(actual).substr(0, 100));
}

// The member, or a null that is there for everybody.
const Json& At(const Json& object, const char* key) {
  static const Json kNull;
  const auto found = object.find(key);
  return found == object.end() ? kNull : *found;
}

Result<std::string> TextAt(const Json& object, const char* key) {
  const Json& value = At(object, key);
  return value.is_string() ? Result<std::string>(value.get<std::string>())
                           : Result<std::string>(Bad(key, "a string", value));
}

Result<Shape> ShapeAt(const Json& object) {
  const Json& value = At(object, "shape");
  if (!value.is_array() || value.size() > kRankMax) {
    return Bad("shape", "a list of at most 4 extents", value);
  }
  Shape shape;
  for (const Json& extent : value) {
    if (!extent.is_number_integer() || extent < 0 || extent > kExtentMax) {
      return Bad("shape", "extents", value);
    }
    shape.push_back(extent.get<int64_t>());
  }
  return shape;
}

Result<WeightFormat> FormatAt(const Json& object) {
  ASSIGN_OR_RETURN(const std::string name, TextAt(object, "format"));
  const std::optional<WeightFormat> format = ParseWeightFormat(name);
  return format.has_value()
             ? Result<WeightFormat>(*format)
             : Result<WeightFormat>(Unsupported("manifest: format {} is not known here", name));
}

Result<Role> RoleAt(const Json& object) {
  ASSIGN_OR_RETURN(const std::string name, TextAt(object, "role"));
  for (int i = 0; i <= static_cast<int>(Role::kMtpProjection); ++i) {
    if (RoleName(static_cast<Role>(i)) == name) {
      return static_cast<Role>(i);
    }
  }
  return Unsupported("manifest: role {} is not known here", name);
}

// A number of at least 0, or null for -1.
Result<int> IndexAt(const Json& object, const char* key) {
  const Json& value = At(object, key);
  if (value.is_null()) {
    return -1;
  }
  if (!value.is_number_integer() || value < 0 || value > kExtentMax) {
    return Bad(key, "a number or null", value);
  }
  return value.get<int>();
}

Status ReadRow(const Json& json, Manifest* manifest) {
  if (!json.is_object()) {
    return Bad("tensors", "objects", json);
  }
  PrecisionRow row;
  ASSIGN_OR_RETURN(row.name, TextAt(json, "name"));
  ASSIGN_OR_RETURN(row.role, RoleAt(json));
  ASSIGN_OR_RETURN(row.layer, IndexAt(json, "layer"));
  ASSIGN_OR_RETURN(row.shape, ShapeAt(json));
  ASSIGN_OR_RETURN(row.format, FormatAt(json));
  ASSIGN_OR_RETURN(row.rule, TextAt(json, "rule"));
  if (row.format != WeightFormat::kBf16 && row.shape.size() != 2) {
    return Bad(row.name, "a matrix for " + std::string(WeightFormatName(row.format)),
               At(json, "shape"));
  }
  ASSIGN_OR_RETURN(const int group, IndexAt(json, "group"));
  const Json& is_optional = At(json, "optional");
  if (!is_optional.is_boolean()) {
    return Bad("optional", "true or false", is_optional);
  }
  manifest->table.rows.push_back(std::move(row));
  manifest->group_of.push_back(group);
  manifest->is_optional.push_back(is_optional.get<bool>());
  return OkStatus();
}

Status ReadStacked(const Json& list, Manifest* manifest) {
  if (!list.is_array()) {
    return Bad("stacked", "a list", list);
  }
  for (const Json& json : list) {
    if (!json.is_object()) {
      return Bad("stacked", "objects", json);
    }
    ManifestStacked stacked;
    ASSIGN_OR_RETURN(stacked.name, TextAt(json, "name"));
    ASSIGN_OR_RETURN(stacked.shape, ShapeAt(json));
    manifest->stacked.push_back(std::move(stacked));
  }
  return OkStatus();
}

}  // namespace

Manifest MakeManifest(const ModelSpec& spec, const PrecisionTable& table,
                      const std::vector<bool>& is_held) {
  CHECK(spec.weights.size() == table.rows.size());
  Manifest manifest = {.table = table};
  manifest.group_of.assign(table.rows.size(), -1);
  int group = 0;
  for (const std::vector<int>& members : SharedScaleSets(spec, table)) {
    for (const int row : members) {
      manifest.group_of[static_cast<size_t>(row)] = group;
    }
    ++group;
  }
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const bool is_live = i < is_held.size() && is_held[i];
    manifest.is_optional.push_back(spec.weights[i].is_mtp && !is_live);
  }
  for (StackedSource& source : StackedSourcesOf(spec)) {
    manifest.stacked.push_back({std::move(source.name), std::move(source.shape)});
  }
  if (spec.tie_word_embeddings) {
    manifest.tied_head = HeadNameOf(spec.prefix);
  }
  return manifest;
}

std::string ManifestToJson(const Manifest& manifest) {
  const bool is_compressed = manifest.table.layout == StoredLayout::kCompressedTensors;
  Json tensors = Json::array();
  for (size_t i = 0; i < manifest.table.rows.size(); ++i) {
    tensors.push_back(RowJson(manifest, i));
  }
  Json stacked = Json::array();
  for (const ManifestStacked& source : manifest.stacked) {
    stacked.push_back({{"name", source.name}, {"shape", source.shape}});
  }
  return Dump({{"weight_version", manifest.weight_version},
               {"format", WeightFormatName(manifest.table.format)},
               {"layout", is_compressed ? kCompressedTensors : "default"},
               {"table_hash", manifest.table.Hash()},
               {"tensors", std::move(tensors)},
               {"stacked", std::move(stacked)},
               {"tied_head", manifest.tied_head.empty() ? Json() : Json(manifest.tied_head)}});
}

Result<Manifest> ParseManifest(std::string_view json) {
  const Json root =
      IsShallowJson(json) ? Json::parse(json, nullptr, /*allow_exceptions=*/false) : Json();
  if (!root.is_object()) {
    return Corrupt("manifest: expected a JSON object, got '{}'", json.substr(0, 100));
  }
  Manifest manifest;
  ASSIGN_OR_RETURN(manifest.weight_version, TextAt(root, "weight_version"));
  ASSIGN_OR_RETURN(manifest.table.format, FormatAt(root));
  ASSIGN_OR_RETURN(const std::string layout, TextAt(root, "layout"));
  if (layout != kCompressedTensors && layout != "default") {
    return Unsupported("manifest: layout {} is not known here", layout);
  }
  manifest.table.layout =
      layout == kCompressedTensors ? StoredLayout::kCompressedTensors : StoredLayout::kDefault;
  const Json& tensors = At(root, "tensors");
  if (!tensors.is_array()) {
    return Bad("tensors", "a list", tensors);
  }
  for (const Json& tensor : tensors) {
    RETURN_IF_ERROR(ReadRow(tensor, &manifest));
  }
  RETURN_IF_ERROR(ReadStacked(At(root, "stacked"), &manifest));
  if (const Json& tied_head = At(root, "tied_head"); !tied_head.is_null()) {
    ASSIGN_OR_RETURN(manifest.tied_head, TextAt(root, "tied_head"));
  }
  ASSIGN_OR_RETURN(const std::string hash, TextAt(root, "table_hash"));
  if (hash != manifest.table.Hash()) {
    return Corrupt("manifest: table_hash: expected {}, got {}", manifest.table.Hash(), hash);
  }
  return manifest;
}

std::string_view StoredPartName(StoredPart part) {
  switch (part) {
    case StoredPart::kCodes:
      return "codes";
    case StoredPart::kScales:
      return "scales";
    case StoredPart::kTensorScale:
      return "tensor_scale";
    case StoredPart::kTensorDivisor:
      return "tensor_divisor";
    case StoredPart::kInputScale:
      return "input_scale";
    case StoredPart::kInputDivisor:
      return "input_divisor";
  }
  return "unknown";
}

}  // namespace octavo
