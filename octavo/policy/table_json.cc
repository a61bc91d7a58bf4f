#include "octavo/policy/table_json.h"

#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_sizes.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

Json RowJson(const PrecisionRow& row) {
  return {{"name", row.name},
          {"role", RoleName(row.role)},
          {"layer", row.layer < 0 ? Json() : Json(row.layer)},
          {"shape", row.shape},
          {"format", WeightFormatName(row.format)},
          {"rule", row.rule},
          {"reason", row.reason},
          {"shadowed", row.shadowed},
          {"stored_bytes", StoredBytes(row)},
          {"bf16_bytes", Bf16Bytes(row)}};
}

// Replacing, because no text that a user gave may make this throw.
std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace

std::string RowToJson(const PrecisionRow& row) { return Dump(RowJson(row)); }

std::string TableToJson(const PrecisionTable& table) {
  Json tensors = Json::array();
  for (const PrecisionRow& row : table.rows) {
    tensors.push_back(RowJson(row));
  }
  Json formats = Json::object();
  int64_t stored_bytes = 0;
  int64_t bf16_bytes = 0;
  for (const FormatSize& size : FormatSizesOf(table)) {
    formats[std::string(WeightFormatName(size.format))] = {{"tensors", size.num_tensors},
                                                           {"stored_bytes", size.stored_bytes},
                                                           {"bf16_bytes", size.bf16_bytes}};
    stored_bytes += size.stored_bytes;
    bf16_bytes += size.bf16_bytes;
  }
  return Dump({{"format", WeightFormatName(table.format)},
               {"hash", table.Hash()},
               {"tensors", std::move(tensors)},
               {"formats", std::move(formats)},
               {"stored_bytes", stored_bytes},
               {"bf16_bytes", bf16_bytes}});
}

}  // namespace octavo
