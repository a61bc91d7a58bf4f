#include "octavo/sync/canonical_file.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/convert/digest.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/stored_bytes.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

constexpr size_t kAlignment = 8;  // Of the first tensor.

int64_t BytesOf(const TensorDigestLine& line) {
  return NumElements(line.shape) * DTypeBytes(line.dtype);
}

// Length, JSON, blanks.
std::string HeaderOf(const std::vector<TensorDigestLine>& lines) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  int64_t at = 0;
  for (const TensorDigestLine& line : lines) {
    json[line.name] = {{"dtype", std::string(DTypeName(line.dtype))},
                       {"shape", line.shape},
                       {"data_offsets", {at, at + BytesOf(line)}}};
    at += BytesOf(line);
  }
  std::string text = json.dump();
  text.append((kAlignment - text.size() % kAlignment) % kAlignment, ' ');
  std::string header;
  for (int64_t i = 0; i < kSafetensorsLengthBytes; ++i) {  // Little-endian.
    header.push_back(static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i)));
  }
  return header + text;
}

}  // namespace

CanonicalFile::CanonicalFile(std::vector<TensorDigestLine> lines) : header_(HeaderOf(lines)) {
  auto at = static_cast<int64_t>(header_.size());
  entries_.reserve(lines.size());
  for (TensorDigestLine& line : lines) {
    const int64_t num_bytes = BytesOf(line);
    entries_.push_back({.line = std::move(line), .begin_bytes = at, .end_bytes = at + num_bytes});
    at += num_bytes;
  }
}

int64_t CanonicalFile::num_bytes() const {
  return entries_.empty() ? static_cast<int64_t>(header_.size()) : entries_.back().end_bytes;
}

Status CanonicalFile::Read(const WeightPlan& plan, const ModelWeights& weights,
                           const Backend& backend, int64_t begin_bytes,
                           std::span<std::byte> out) const {
  const int64_t end_bytes = begin_bytes + static_cast<int64_t>(out.size());
  if (begin_bytes < 0 || end_bytes > num_bytes()) {
    return InvalidArgument("bytes {} to {}: expected a range within the {} bytes of the file",
                           begin_bytes, end_bytes, num_bytes());
  }
  const auto header_bytes = static_cast<int64_t>(header_.size());
  if (begin_bytes < header_bytes) {
    const int64_t count = std::min(end_bytes, header_bytes) - begin_bytes;
    std::memcpy(out.data(), header_.data() + begin_bytes, static_cast<size_t>(count));
  }
  const auto first =
      std::ranges::upper_bound(entries_, begin_bytes, {}, &CanonicalEntry::end_bytes);
  for (auto entry = first; entry != entries_.end() && entry->begin_bytes < end_bytes; ++entry) {
    const int64_t from = std::max(begin_bytes, entry->begin_bytes);
    const int64_t to = std::min(end_bytes, entry->end_bytes);
    ASSIGN_OR_RETURN(const StoredView stored, FindStored(plan, weights, entry->line.name));
    CHECK(stored.num_bytes() == entry->end_bytes - entry->begin_bytes);
    RETURN_IF_ERROR(ReadStoredBytes(
        stored, backend, from - entry->begin_bytes,
        out.subspan(static_cast<size_t>(from - begin_bytes), static_cast<size_t>(to - from))));
  }
  return OkStatus();
}

}  // namespace octavo
