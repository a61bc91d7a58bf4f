#include "octavo/checkpoint/safetensors.h"

#include <simdjson.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/unique_keys.h"

namespace octavo {
namespace {

namespace dom = simdjson::dom;

constexpr std::string_view kMetadataKey = "__metadata__";
// Longer names than any module path; keeps messages and tables readable.
constexpr size_t kNameBytesMax = 1024;
// Above the most dimensions that PyTorch or NumPy can hold.
constexpr size_t kRankMax = 64;

static_assert(std::endian::native == std::endian::little, "lengths and tensors are little-endian");

bool HasControlCharacter(std::string_view text) {
  return std::any_of(text.begin(), text.end(), [](char c) {
    const auto byte = static_cast<unsigned char>(c);
    return byte < 0x20 || byte == 0x7F;
  });
}

std::vector<std::string_view> KeysOf(dom::object object) {
  std::vector<std::string_view> keys;
  keys.reserve(object.size());
  for (const dom::key_value_pair field : object) {
    keys.push_back(field.key);
  }
  return keys;
}

Status CheckKeysUnique(dom::object object, std::string_view what) {
  if (const auto twin = FirstDuplicate(KeysOf(object))) {
    return Corrupt("{}: key \"{}\" occurs more than once", what, twin->substr(0, kNameBytesMax));
  }
  return OkStatus();
}

// A list of integers >= 0 that fit int64_t.
std::optional<std::vector<int64_t>> ParseCounts(dom::element element) {
  dom::array array;
  if (element.get(array) != simdjson::SUCCESS) {
    return std::nullopt;
  }
  std::vector<int64_t> counts;
  for (const dom::element item : array) {
    int64_t count = 0;
    if (!item.is<int64_t>() || item.get(count) != simdjson::SUCCESS || count < 0) {
      return std::nullopt;
    }
    counts.push_back(count);
  }
  return counts;
}

Status ParseMetadata(dom::element value, SafetensorsHeader& header) {
  dom::object object;
  if (value.get(object) != simdjson::SUCCESS) {
    return Corrupt("{}: expected an object of strings", kMetadataKey);
  }
  RETURN_IF_ERROR(CheckKeysUnique(object, kMetadataKey));
  for (const dom::key_value_pair field : object) {
    std::string_view text;
    if (field.value.get(text) != simdjson::SUCCESS) {
      return Corrupt("{}: key \"{}\": expected a string", kMetadataKey,
                     field.key.substr(0, kNameBytesMax));
    }
    header.metadata.emplace_back(field.key, text);
  }
  return OkStatus();
}

Status ParseDTypeField(dom::element value, SafetensorsEntry& entry) {
  std::string_view text;
  if (value.get(text) != simdjson::SUCCESS) {
    return Corrupt("tensor {}: dtype: expected a string", entry.name);
  }
  const std::optional<DType> dtype = ParseDType(text);
  if (!dtype) {
    return Unsupported("tensor {}: dtype: expected one of BOOL, U8 to F64, BF16, F8_*; got \"{}\"",
                       entry.name, text.substr(0, 32));
  }
  entry.dtype = *dtype;
  return OkStatus();
}

Status ParseEntryField(const dom::key_value_pair& field, SafetensorsEntry& entry) {
  if (field.key == "dtype") {
    return ParseDTypeField(field.value, entry);
  }
  if (field.key == "shape") {
    auto extents = ParseCounts(field.value);
    if (!extents || extents->size() > kRankMax) {
      return Corrupt("tensor {}: shape: expected a list of at most {} integers >= 0", entry.name,
                     kRankMax);
    }
    entry.shape = *std::move(extents);
    return OkStatus();
  }
  if (field.key == "data_offsets") {
    const auto offsets = ParseCounts(field.value);
    if (!offsets || offsets->size() != 2) {
      return Corrupt("tensor {}: data_offsets: expected two integers >= 0", entry.name);
    }
    entry.begin_bytes = (*offsets)[0];
    entry.end_bytes = (*offsets)[1];
    return OkStatus();
  }
  return Corrupt("tensor {}: expected the keys dtype, shape and data_offsets, got \"{}\"",
                 entry.name, field.key.substr(0, kNameBytesMax));
}

Result<SafetensorsEntry> ParseEntry(const dom::key_value_pair& pair) {
  RETURN_IF_ERROR(CheckTensorName(pair.key));
  SafetensorsEntry entry;
  entry.name = pair.key;
  dom::object object;
  if (pair.value.get(object) != simdjson::SUCCESS) {
    return Corrupt("tensor {}: expected an object", entry.name);
  }
  RETURN_IF_ERROR(CheckKeysUnique(object, "tensor " + entry.name));
  if (object.size() < 3) {
    return Corrupt("tensor {}: expected the keys dtype, shape and data_offsets, got {} of them",
                   entry.name, object.size());
  }
  for (const dom::key_value_pair field : object) {
    RETURN_IF_ERROR(ParseEntryField(field, entry));
  }
  return entry;
}

Status CheckExtent(const SafetensorsEntry& entry, int64_t buffer_bytes) {
  if (entry.begin_bytes > entry.end_bytes || entry.end_bytes > buffer_bytes) {
    return Corrupt("tensor {}: data_offsets: expected begin <= end <= {}, got [{}, {}]", entry.name,
                   buffer_bytes, entry.begin_bytes, entry.end_bytes);
  }
  const std::optional<int64_t> bytes = CheckedTensorBytes(entry.dtype, entry.shape);
  if (!bytes) {
    return Corrupt("tensor {}: shape {}: expected fewer than 2^63 bytes", entry.name,
                   ShapeString(entry.shape));
  }
  if (entry.end_bytes - entry.begin_bytes != *bytes) {
    return Corrupt("tensor {}: expected {} bytes for {} {}, got data_offsets [{}, {}]", entry.name,
                   *bytes, ShapeString(entry.shape), DTypeName(entry.dtype), entry.begin_bytes,
                   entry.end_bytes);
  }
  return OkStatus();
}

// Sorts the entries by place and checks that they tile the buffer. An empty tensor may stand at any
// border.
Status CheckTiling(std::vector<SafetensorsEntry>& entries, int64_t buffer_bytes) {
  std::sort(entries.begin(), entries.end(), [](const auto& a, const auto& b) {
    return std::tie(a.begin_bytes, a.end_bytes, a.name) <
           std::tie(b.begin_bytes, b.end_bytes, b.name);
  });
  int64_t end_bytes = 0;
  for (size_t i = 0; i < entries.size(); ++i) {
    const SafetensorsEntry& entry = entries[i];
    RETURN_IF_ERROR(CheckExtent(entry, buffer_bytes));
    if (entry.begin_bytes < end_bytes) {
      return Corrupt("tensor {}: bytes [{}, {}] overlap tensor {}, which ends at {}", entry.name,
                     entry.begin_bytes, entry.end_bytes, entries[i - 1].name, end_bytes);
    }
    if (entry.begin_bytes > end_bytes) {
      return Corrupt("tensor {}: expected to begin at byte {}, got {}: a gap", entry.name,
                     end_bytes, entry.begin_bytes);
    }
    end_bytes = entry.end_bytes;
  }
  if (end_bytes != buffer_bytes) {
    return Corrupt("expected {} bytes of tensors after the header, got {}", end_bytes,
                   buffer_bytes);
  }
  return OkStatus();
}

// The JSON text between the length field and the buffer.
Result<std::string_view> HeaderText(std::span<const std::byte> file) {
  if (file.size() < kSafetensorsLengthBytes) {
    return Corrupt("expected a safetensors file, got {} bytes", file.size());
  }
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, file.data(), sizeof(header_bytes));
  const uint64_t rest_bytes = file.size() - kSafetensorsLengthBytes;
  if (header_bytes > kSafetensorsHeaderBytesMax) {
    return Corrupt("header length: expected at most {}, got {}", kSafetensorsHeaderBytesMax,
                   header_bytes);
  }
  if (header_bytes > rest_bytes) {
    return Corrupt("header length: expected at most the {} bytes that follow, got {}", rest_bytes,
                   header_bytes);
  }
  const std::string_view text(reinterpret_cast<const char*>(file.data()) + kSafetensorsLengthBytes,
                              static_cast<size_t>(header_bytes));
  if (!text.starts_with('{')) {
    return Corrupt("header: expected JSON that starts with {{");
  }
  return text;
}

}  // namespace

Status CheckTensorName(std::string_view name) {
  if (name.empty() || name.size() > kNameBytesMax || HasControlCharacter(name) ||
      name == kMetadataKey || !simdjson::validate_utf8(name.data(), name.size())) {
    return Corrupt(
        "a tensor name of {} bytes: expected 1 to {} bytes of UTF-8 without control "
        "characters, other than {}",
        name.size(), kNameBytesMax, kMetadataKey);
  }
  return OkStatus();
}

std::optional<int64_t> CheckedTensorBytes(DType dtype, const Shape& shape) {
  // Outermost extent first, as in NumElements, so that it cannot overflow later.
  int64_t bytes = 1;
  for (const int64_t extent : shape) {
    if (extent < 0 || __builtin_mul_overflow(bytes, extent, &bytes)) {
      return std::nullopt;
    }
  }
  if (__builtin_mul_overflow(bytes, DTypeBytes(dtype), &bytes)) {
    return std::nullopt;
  }
  return bytes;
}

Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file) {
  ASSIGN_OR_RETURN(const std::string_view text, HeaderText(file));
  dom::parser parser;
  dom::element root;
  // The parser copies the text behind padding of its own.
  if (const auto error =
          parser.parse(text.data(), text.size(), /*realloc_if_needed=*/true).get(root)) {
    return Corrupt("header: expected JSON: {}", simdjson::error_message(error));
  }
  dom::object object;
  if (root.get(object) != simdjson::SUCCESS) {
    return Corrupt("header: expected a JSON object");
  }
  RETURN_IF_ERROR(CheckKeysUnique(object, "header"));

  SafetensorsHeader header;
  header.buffer_offset_bytes = kSafetensorsLengthBytes + static_cast<int64_t>(text.size());
  for (const dom::key_value_pair field : object) {
    if (field.key == kMetadataKey) {
      RETURN_IF_ERROR(ParseMetadata(field.value, header));
    } else {
      ASSIGN_OR_RETURN(SafetensorsEntry entry, ParseEntry(field));
      header.entries.push_back(std::move(entry));
    }
  }
  RETURN_IF_ERROR(
      CheckTiling(header.entries, static_cast<int64_t>(file.size()) - header.buffer_offset_bytes));
  return header;
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  SafetensorsFile result;
  ASSIGN_OR_RETURN(result.file_, MappedFile::Open(path));
  auto header = ParseSafetensorsHeader(result.file_.bytes());
  if (!header) {
    return header.error().WithContext(path);
  }
  result.header_ = *std::move(header);
  return result;
}

ConstTensorView SafetensorsFile::View(const SafetensorsEntry& entry) const {
  return {entry.dtype, entry.shape,
          file_.bytes().data() + header_.buffer_offset_bytes + entry.begin_bytes};
}

}  // namespace octavo
