#include "octavo/sync/weight_delta.h"

#include <fmt/format.h>
#include <zstd.h>

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/sync/checksum.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::json;

constexpr size_t kPositionBytes = sizeof(uint32_t);

// Of the index's metadata; they are texts.
Result<std::string> Text(const Json& metadata, const char* key) {
  const auto found = metadata.find(key);
  if (found == metadata.end() || !found->is_string()) {
    return Corrupt("metadata: {}: expected a text, got {}", key,
                   found == metadata.end() ? "none" : found->type_name());
  }
  return found->get<std::string>();
}

// "000007" is 7.
Result<int64_t> Version(const Json& metadata, const char* key) {
  ASSIGN_OR_RETURN(const std::string text, Text(metadata, key));
  int64_t version = 0;
  const char* end = text.data() + text.size();
  const auto [stop, error] = std::from_chars(text.data(), end, version);
  if (error != std::errc() || stop != end || version < 0) {
    return Corrupt("metadata: {}: expected a number, got \"{}\"", key, text);
  }
  return version;
}

// The index, or nullopt for a folder that is a whole checkpoint.
Result<std::optional<std::string>> ReadDeltaIndex(const std::string& dir, Json* metadata) {
  const std::string path = fmt::format("{}/{}", dir, kShardIndexFile);
  std::error_code error;
  if (!fs::is_directory(dir, error)) {
    return NotFound("{}: no such version has been published", dir);
  }
  if (!fs::exists(path, error)) {
    return std::optional<std::string>();
  }
  ASSIGN_OR_RETURN(std::string text, ReadTextFile(path));
  Json index = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!index.is_object()) {
    return Corrupt("{}: expected a JSON object", path);
  }
  const auto found = index.find("metadata");
  if (found == index.end() || !found->is_object() || !found->contains("delta_encoding")) {
    return std::optional<std::string>();
  }
  *metadata = *found;
  return std::optional(std::move(text));
}

Status CheckSize(size_t expected, size_t got) {
  return expected == got ? OkStatus()
                         : Corrupt("its difference has {} bytes, expected {}", got, expected);
}

// Decompresses into `scratch`, whose size it becomes. More than `bytes_max` are refused before they
// are made.
Status Decompress(std::span<const std::byte> compressed, size_t bytes_max,
                  std::vector<std::byte>* scratch) {
  const unsigned long long announced =
      ZSTD_getFrameContentSize(compressed.data(), compressed.size());
  if (announced == ZSTD_CONTENTSIZE_ERROR) {
    return Corrupt("its difference is no zstd frame");
  }
  if (announced != ZSTD_CONTENTSIZE_UNKNOWN && announced > bytes_max) {
    return Corrupt("its difference has {} bytes, expected at most {}", announced, bytes_max);
  }
  scratch->resize(announced == ZSTD_CONTENTSIZE_UNKNOWN ? bytes_max
                                                        : static_cast<size_t>(announced));
  const size_t written =
      ZSTD_decompress(scratch->data(), scratch->size(), compressed.data(), compressed.size());
  if (ZSTD_isError(written) != 0) {
    return Corrupt("its difference could not be decompressed: {}", ZSTD_getErrorName(written));
  }
  scratch->resize(written);
  return OkStatus();
}

void ApplyXor(std::span<const std::byte> difference, std::span<std::byte> bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] ^= difference[i];
  }
}

Status ApplyOverwrite(std::span<const std::byte> difference, std::span<std::byte> bytes) {
  uint32_t count = 0;
  if (difference.size() < kPositionBytes) {
    return Corrupt("its difference ends before its count");
  }
  std::memcpy(&count, difference.data(), kPositionBytes);
  const size_t values_at = kPositionBytes * (size_t{1} + count);
  RETURN_IF_ERROR(CheckSize(values_at + count, difference.size()));
  for (size_t i = 0; i < count; ++i) {
    uint32_t position = 0;
    std::memcpy(&position, difference.data() + kPositionBytes * (1 + i), kPositionBytes);
    if (position >= bytes.size()) {
      return Corrupt("position {} lies behind its {} bytes", position, bytes.size());
    }
    bytes[position] = difference[values_at + i];
  }
  return OkStatus();
}

const std::string* FindChecksum(const SafetensorsHeader& header, const std::string& name) {
  for (const auto& [key, value] : header.metadata) {
    if (key == name) {
      return &value;
    }
  }
  return nullptr;
}

Result<WeightDelta::Change> ReadChange(const SafetensorsFile& file, const SafetensorsEntry& entry) {
  if (entry.dtype != DType::kU8 || entry.shape.size() != 1) {
    return Corrupt("{}: expected a U8 row, got {} {}", entry.name, DTypeName(entry.dtype),
                   ShapeString(entry.shape));
  }
  const std::string* checksum = FindChecksum(file.header(), entry.name);
  if (checksum == nullptr) {
    return Corrupt("{}: expected its checksum in __metadata__, got none", entry.name);
  }
  return WeightDelta::Change{.compressed = file.View(entry).Bytes(), .checksum = *checksum};
}

// What the index says of a version.
struct DeltaForm {
  int64_t base_version = 0;
  WeightDelta::Encoding encoding = WeightDelta::Encoding::kXor;
  ChecksumKind checksum = ChecksumKind::kXxh3;
};

Result<DeltaForm> ReadForm(const Json& metadata, int64_t version) {
  DeltaForm form;
  ASSIGN_OR_RETURN(const int64_t own_version, Version(metadata, "version"));
  if (own_version != version) {
    return Corrupt("metadata: version: expected {}, got {}", version, own_version);
  }
  ASSIGN_OR_RETURN(form.base_version, Version(metadata, "base_version"));
  ASSIGN_OR_RETURN(const std::string compression, Text(metadata, "compression_format"));
  if (compression != "zstd") {
    return Unsupported("metadata: compression_format: expected zstd, got \"{}\"", compression);
  }
  ASSIGN_OR_RETURN(const std::string encoding, Text(metadata, "delta_encoding"));
  if (encoding != "xor" && encoding != "overwrite") {
    return Unsupported("metadata: delta_encoding: expected xor or overwrite, got \"{}\"", encoding);
  }
  form.encoding =
      encoding == "xor" ? WeightDelta::Encoding::kXor : WeightDelta::Encoding::kOverwrite;
  ASSIGN_OR_RETURN(const std::string checksum, Text(metadata, "checksum_format"));
  const std::optional<ChecksumKind> kind = ParseChecksumKind(checksum);
  if (!kind.has_value()) {
    return Unsupported(
        "metadata: checksum_format: expected xxh3-128, blake3 or adler32, got \"{}\"", checksum);
  }
  form.checksum = *kind;
  return form;
}

}  // namespace

std::string WeightVersionDir(const std::string& source_dir, int64_t version) {
  return fmt::format("{}/weight_v{:06}", source_dir, version);
}

Result<std::optional<WeightDelta>> WeightDelta::Open(const std::string& dir, int64_t version) {
  Json metadata;
  ASSIGN_OR_RETURN(const std::optional<std::string> text, ReadDeltaIndex(dir, &metadata));
  if (!text.has_value()) {
    return std::optional<WeightDelta>();
  }
  WeightDelta delta;
  delta.dir_ = dir;
  const std::string context = fmt::format("{}/{}", dir, kShardIndexFile);
  const Result<DeltaForm> form = ReadForm(metadata, version);
  if (!form.has_value()) {
    return form.error().WithContext(context);
  }
  delta.base_version_ = form->base_version;
  delta.encoding_ = form->encoding;
  delta.checksum_ = form->checksum;
  const Result<ShardIndex> index = ParseShardIndex(*text);
  if (!index.has_value()) {
    return index.error().WithContext(context);
  }
  RETURN_IF_ERROR(delta.ReadFiles(*index));
  return std::optional(std::move(delta));
}

// The files must hold exactly what the index says: a difference that is applied twice undoes
// itself.
Status WeightDelta::ReadFiles(const ShardIndex& index) {
  for (const std::string& name : index.Files()) {
    ASSIGN_OR_RETURN(SafetensorsFile file, SafetensorsFile::Open(fmt::format("{}/{}", dir_, name)));
    for (const SafetensorsEntry& entry : file.header().entries) {
      const std::string* expected = index.FileOf(entry.name);
      if (expected == nullptr || *expected != name) {
        return Corrupt("{}/{}: {}: the index has it {}", dir_, name, entry.name,
                       expected == nullptr ? "nowhere" : "in " + *expected);
      }
      Result<Change> change = ReadChange(file, entry);
      if (!change.has_value()) {
        return change.error().WithContext(fmt::format("{}/{}", dir_, name));
      }
      changes_.emplace(entry.name, std::move(*change));
    }
    files_.push_back(std::move(file));
  }
  for (const auto& [tensor, file] : index.weight_map) {
    if (!changes_.contains(tensor)) {
      return Corrupt("{}/{}: {}: the index has it here, the file does not", dir_, file, tensor);
    }
  }
  return OkStatus();
}

Status WeightDelta::Apply(const std::string& name, std::span<std::byte> bytes,
                          std::vector<std::byte>* scratch) const {
  const auto found = changes_.find(name);
  CHECK(found != changes_.end());
  const Status status = [&]() -> Status {
    const bool is_xor = encoding_ == Encoding::kXor;
    const size_t bytes_max =
        is_xor ? bytes.size() : kPositionBytes + (kPositionBytes + 1) * bytes.size();
    RETURN_IF_ERROR(Decompress(found->second.compressed, bytes_max, scratch));
    if (is_xor) {
      RETURN_IF_ERROR(CheckSize(bytes.size(), scratch->size()));
      ApplyXor(*scratch, bytes);
    } else {
      RETURN_IF_ERROR(ApplyOverwrite(*scratch, bytes));
    }
    const std::string checksum = ChecksumHex(checksum_, bytes);
    return checksum == found->second.checksum
               ? OkStatus()
               : Corrupt("checksum: expected {}, got {}", found->second.checksum, checksum);
  }();
  return status.WithContext(fmt::format("{}: {}", dir_, name));
}

}  // namespace octavo
