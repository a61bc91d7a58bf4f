// Any bytes as a safetensors file: refused, or a header whose tensors tile the buffer.

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/check.h"
#include "octavo/checkpoint/safetensors.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const auto header = octavo::ParseSafetensorsHeader(std::as_bytes(std::span(data, num_bytes)));
  if (!header.has_value()) {
    CHECK(!header.error().message().empty());
    return 0;
  }
  int64_t end_bytes = 0;
  for (const octavo::SafetensorsEntry& entry : header->entries) {
    CHECK(octavo::CheckTensorName(entry.name).ok());
    CHECK(entry.begin_bytes == end_bytes);
    const octavo::ConstTensorView view{entry.dtype, entry.shape, nullptr};
    CHECK(entry.end_bytes - entry.begin_bytes == view.NumBytes());
    end_bytes = entry.end_bytes;
  }
  CHECK(header->buffer_offset_bytes + end_bytes == static_cast<int64_t>(num_bytes));
  return 0;
}
