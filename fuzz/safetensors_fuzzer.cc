// Any bytes as a safetensors file: refused, or a header whose tensors tile the buffer. Then the
// same bytes as header text and buffer, parted at the first NUL, with a length field that fits:
// what lies behind the length checks is reached without guessing it.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"

namespace {

void CheckFile(std::span<const std::byte> file) {
  const auto header = octavo::ParseSafetensorsHeader(file);
  if (!header.has_value()) {
    CHECK(!header.error().message().empty());
    return;
  }
  int64_t end_bytes = 0;
  for (const octavo::SafetensorsEntry& entry : header->entries) {
    CHECK(octavo::CheckTensorName(entry.name).ok());
    CHECK(entry.begin_bytes == end_bytes);
    const octavo::ConstTensorView view{entry.dtype, entry.shape, nullptr};
    CHECK(entry.end_bytes - entry.begin_bytes == view.NumBytes());
    end_bytes = entry.end_bytes;
  }
  CHECK(header->buffer_offset_bytes + end_bytes == static_cast<int64_t>(file.size()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  CheckFile(std::as_bytes(std::span(data, num_bytes)));

  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  const std::string_view text = input.substr(0, input.find('\0'));
  const uint64_t num_text_bytes = text.size();
  std::string file(sizeof(num_text_bytes), '\0');
  std::memcpy(file.data(), &num_text_bytes, sizeof(num_text_bytes));
  file += text;
  if (text.size() < input.size()) {
    file += input.substr(text.size() + 1);
  }
  CheckFile(std::as_bytes(std::span(file.data(), file.size())));
  return 0;
}
