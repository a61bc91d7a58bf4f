#include "octavo/server/weight_bucket.h"

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/safetensors.h"

namespace octavo {

Result<std::vector<BucketTensor>> ParseBucket(std::string_view bytes) {
  const std::span<const std::byte> file = std::as_bytes(std::span(bytes));
  ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(file));
  std::vector<BucketTensor> tensors;
  tensors.reserve(header.entries.size());
  for (SafetensorsEntry& entry : header.entries) {
    const int64_t offset = header.buffer_offset_bytes + entry.begin_bytes;
    tensors.push_back(
        {std::move(entry.name), {entry.dtype, std::move(entry.shape), file.data() + offset}});
  }
  return tensors;
}

}  // namespace octavo
