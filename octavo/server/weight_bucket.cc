#include "octavo/server/weight_bucket.h"

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/sync/checksum.h"

namespace octavo {
namespace {

constexpr std::string_view kFiller = "__pad__.";

// Sorts out what is no checksum: other tools write things of their own into __metadata__.
Status CheckSums(const SafetensorsHeader& header, Bucket* bucket) {
  std::unordered_map<std::string_view, const BucketTensor*> by_name;
  for (const BucketTensor& tensor : bucket->tensors) {
    by_name.emplace(tensor.name, &tensor);
  }
  for (const auto& [key, expected] : header.metadata) {
    const size_t colon = key.find(':');
    const std::optional<ChecksumKind> kind =
        colon == std::string::npos ? std::nullopt
                                   : ParseChecksumKind(std::string_view(key).substr(0, colon));
    if (!kind.has_value()) {
      continue;
    }
    const std::string_view name = std::string_view(key).substr(colon + 1);
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      return Corrupt("__metadata__: {}: expected the name of a tensor of the bucket", key);
    }
    if (const std::string actual = ChecksumHex(*kind, found->second->view.Bytes());
        actual != expected && bucket->damage.ok()) {
      bucket->damage =
          Corrupt("{}: damaged on the way: expected {} {}, got {}", name,
                  std::string_view(key).substr(0, colon), expected.substr(0, 64), actual);
    }
  }
  return OkStatus();
}

}  // namespace

Result<Bucket> ParseBucket(std::string_view bytes) {
  const std::span<const std::byte> file = std::as_bytes(std::span(bytes));
  ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(file));
  Bucket bucket;
  bucket.tensors.reserve(header.entries.size());
  for (SafetensorsEntry& entry : header.entries) {
    if (entry.name.starts_with(kFiller)) {
      continue;
    }
    const int64_t offset = header.buffer_offset_bytes + entry.begin_bytes;
    bucket.tensors.push_back(
        {std::move(entry.name), {entry.dtype, std::move(entry.shape), file.data() + offset}});
  }
  RETURN_IF_ERROR(CheckSums(header, &bucket));
  return bucket;
}

}  // namespace octavo
