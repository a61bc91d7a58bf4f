#pragma once
// The safetensors container, read.
//
//   bytes 0..7    header length N, little-endian
//   bytes 8..8+N  JSON: {NAME: {"dtype", "shape", "data_offsets": [begin, end]}, ...} and maybe
//                 "__metadata__": {string: string}; spaces may follow
//   the rest      the buffer; offsets count from its start; row-major, little-endian
//
// Everything is checked before a tensor is handed out: the tensors tile the buffer without overlap
// or gap. Source: huggingface/safetensors README, "Format"; docs/formats.md.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"

namespace octavo {

// Longest header that is read: the bound of the reference implementation.
inline constexpr int64_t kSafetensorsHeaderBytesMax = 100'000'000;
// Bytes of the length field in front of the header.
inline constexpr int64_t kSafetensorsLengthBytes = 8;

struct SafetensorsEntry {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  int64_t begin_bytes = 0;  // Into the buffer; any alignment.
  int64_t end_bytes = 0;    // begin_bytes + bytes of the tensor.
};

struct SafetensorsHeader {
  int64_t buffer_offset_bytes = 0;        // Of the buffer in the file: 8 + header length.
  std::vector<SafetensorsEntry> entries;  // In the order of the buffer.
  std::vector<std::pair<std::string, std::string>> metadata;  // __metadata__, in file order.
};

// What a name must be, for reader and writer alike: 1 to 1024 bytes of UTF-8 without control
// characters, other than "__metadata__". Errors: kCorrupt, not quoting the name.
Status CheckTensorName(std::string_view name);

// Bytes of a tensor; nullopt when an extent is negative or the bytes do not fit int64_t.
std::optional<int64_t> CheckedTensorBytes(DType dtype, const Shape& shape);

// `file` is a whole file, of which only the header is read. A pure function.
// Errors: kCorrupt for what breaks the container format; kUnsupported for a dtype that no view of
// ours can carry (such as F4 or F6_E2M3), by tensor and dtype, rather than bytes without a type.
Result<SafetensorsHeader> ParseSafetensorsHeader(std::span<const std::byte> file);

// One file, mapped. Move-only; const is thread-safe.
class SafetensorsFile {
 public:
  // Errors: those of MappedFile::Open and ParseSafetensorsHeader, naming the path.
  static Result<SafetensorsFile> Open(const std::string& path);

  const SafetensorsHeader& header() const { return header_; }
  // `entry` is one of header().entries. The view lives as long as this file; its data may stand at
  // any alignment.
  ConstTensorView View(const SafetensorsEntry& entry) const;

 private:
  MappedFile file_;
  SafetensorsHeader header_;
};

}  // namespace octavo
