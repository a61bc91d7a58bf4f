#pragma once
// model.safetensors.index.json: which file holds which tensor.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

inline constexpr std::string_view kShardIndexFile = "model.safetensors.index.json";

// Whether an index may name `file`: UTF-8 that ends in .safetensors and can lead nowhere else.
bool IsPlainShardName(std::string_view file);

struct ShardIndex {
  std::vector<std::pair<std::string, std::string>> weight_map;  // (tensor, file), sorted by tensor.
  std::optional<int64_t> total_bytes;  // metadata.total_size, when it is a whole number.

  // Null when the index does not name the tensor.
  const std::string* FileOf(std::string_view tensor) const;
  // Each file once, sorted.
  std::vector<std::string> Files() const;
};

// Errors: kCorrupt for what is no index: not JSON, no weight_map of strings, duplicate keys, and
// file names that are not plain *.safetensors names, for a path could lead out of the folder.
Result<ShardIndex> ParseShardIndex(std::string_view text);

}  // namespace octavo
