// Any bytes as model.safetensors.index.json: refused, or a map whose files are plain names.

#include <cstddef>
#include <cstdint>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/checkpoint/shard_index.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view text(reinterpret_cast<const char*>(data), num_bytes);
  const auto index = octavo::ParseShardIndex(text);
  if (!index.has_value()) {
    CHECK(!index.error().message().empty());
    return 0;
  }
  for (const auto& [tensor, file] : index->weight_map) {
    CHECK(octavo::IsPlainShardName(file));
    const std::string* found = index->FileOf(tensor);
    CHECK(found == &file);
  }
  return 0;
}
