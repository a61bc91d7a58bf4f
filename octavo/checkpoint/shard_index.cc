#include "octavo/checkpoint/shard_index.h"

#include <simdjson.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/unique_keys.h"

namespace octavo {
namespace {

namespace dom = simdjson::dom;

Status CheckKeysUnique(dom::object object, std::string_view what) {
  std::vector<std::string_view> keys;
  for (const dom::key_value_pair field : object) {
    keys.push_back(field.key);
  }
  if (const auto twin = FirstDuplicate(std::move(keys))) {
    return Corrupt("{}: key \"{}\" occurs more than once", what, twin->substr(0, 256));
  }
  return OkStatus();
}

Status ParseWeightMap(dom::object map, ShardIndex& index) {
  RETURN_IF_ERROR(CheckKeysUnique(map, "weight_map"));
  for (const dom::key_value_pair field : map) {
    std::string_view file;
    if (field.value.get(file) != simdjson::SUCCESS) {
      return Corrupt("weight_map: {}: expected a file name", field.key.substr(0, 256));
    }
    if (!IsPlainShardName(file)) {
      return Corrupt("weight_map: {}: expected the plain name of a *.safetensors file, got \"{}\"",
                     field.key.substr(0, 256), file.substr(0, 256));
    }
    index.weight_map.emplace_back(field.key, file);
  }
  std::sort(index.weight_map.begin(), index.weight_map.end());
  return OkStatus();
}

}  // namespace

bool IsPlainShardName(std::string_view file) {
  return file.ends_with(".safetensors") && !file.starts_with('.') && file.size() <= 255 &&
         file.find("..") == std::string_view::npos &&
         simdjson::validate_utf8(file.data(), file.size()) &&
         std::none_of(file.begin(), file.end(), [](char c) {
           return c == '/' || c == '\\' || static_cast<unsigned char>(c) < 0x20 || c == 0x7F;
         });
}

const std::string* ShardIndex::FileOf(std::string_view tensor) const {
  const auto place = std::lower_bound(
      weight_map.begin(), weight_map.end(), tensor,
      [](const auto& pair, std::string_view name) { return std::string_view(pair.first) < name; });
  return place != weight_map.end() && place->first == tensor ? &place->second : nullptr;
}

std::vector<std::string> ShardIndex::Files() const {
  std::set<std::string> files;
  for (const auto& [tensor, file] : weight_map) {
    files.insert(file);
  }
  return {files.begin(), files.end()};
}

Result<ShardIndex> ParseShardIndex(std::string_view text) {
  dom::parser parser;
  dom::element root;
  if (const auto error = parser.parse(text.data(), text.size()).get(root)) {
    return Corrupt("expected a JSON object: {}", simdjson::error_message(error));
  }
  dom::object object;
  dom::object map;
  if (root.get(object) != simdjson::SUCCESS || object.at_key("weight_map").get(map)) {
    return Corrupt("expected an object with a weight_map");
  }
  RETURN_IF_ERROR(CheckKeysUnique(object, "index"));
  ShardIndex index;
  RETURN_IF_ERROR(ParseWeightMap(map, index));
  // Tools write total_size as an integer, as a float or wrongly; it decides nothing here.
  double total = 0.0;
  if (object["metadata"]["total_size"].get(total) == simdjson::SUCCESS && total >= 0.0 &&
      total < 9e15 && std::floor(total) == total) {
    index.total_bytes = static_cast<int64_t>(total);
  }
  return index;
}

}  // namespace octavo
