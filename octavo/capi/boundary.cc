#include "octavo/capi/boundary.h"

#include <algorithm>
#include <cstddef>
#include <cstdlib>
#include <cstring>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/version.h"
#include "octavo/octavo.h"

namespace octavo::capi {

static_assert(static_cast<int>(StatusCode::kInvalidArgument) == OCTAVO_INVALID_ARGUMENT);
static_assert(static_cast<int>(StatusCode::kNotFound) == OCTAVO_NOT_FOUND);
static_assert(static_cast<int>(StatusCode::kCorrupt) == OCTAVO_CORRUPT);
static_assert(static_cast<int>(StatusCode::kUnsupported) == OCTAVO_UNSUPPORTED);
static_assert(static_cast<int>(StatusCode::kExhausted) == OCTAVO_EXHAUSTED);
static_assert(static_cast<int>(StatusCode::kUnavailable) == OCTAVO_UNAVAILABLE);
static_assert(static_cast<int>(StatusCode::kCancelled) == OCTAVO_CANCELLED);
static_assert(static_cast<int>(StatusCode::kInternal) == OCTAVO_INTERNAL);

octavo_status Report(const Status& status, octavo_error* error) {
  const auto code = static_cast<octavo_status>(status.code());
  if (error != nullptr) {
    const std::string_view text = status.message();
    size_t length = std::min<size_t>(text.size(), OCTAVO_MESSAGE_BYTES - 1);
    while (length > 0 && length < text.size() && (text[length] & 0xC0) == 0x80) {
      --length;  // No half of a UTF-8 character.
    }
    error->status = code;
    std::memcpy(error->message, text.data(), length);
    error->message[length] = '\0';
  }
  return code;
}

Status GiveText(std::string_view text, octavo_buf* out) {
  // malloc: octavo_buf_free frees without knowing the size.
  char* data = static_cast<char*>(std::malloc(text.size() + 1));
  if (data == nullptr) {
    return Exhausted("no memory for {} bytes of text", text.size());
  }
  std::memcpy(data, text.data(), text.size());
  data[text.size()] = '\0';
  out->data = data;
  out->size = text.size();
  return OkStatus();
}

Status CheckGiven(const void* pointer, std::string_view name) {
  return pointer != nullptr ? OkStatus()
                            : InvalidArgument("{}: expected a pointer, got NULL", name);
}

Status CheckStruct(const void* options, size_t expected_bytes, std::string_view name) {
  RETURN_IF_ERROR(CheckGiven(options, name));
  size_t actual = 0;
  std::memcpy(&actual, options, sizeof(actual));
  return actual == expected_bytes
             ? OkStatus()
             : InvalidArgument("{}: expected struct_size {}, got {}", name, expected_bytes, actual);
}

}  // namespace octavo::capi

const char* octavo_status_name(octavo_status status) {
  return status >= OCTAVO_OK && status <= OCTAVO_INTERNAL
             ? octavo::StatusCodeName(static_cast<octavo::StatusCode>(status)).data()
             : "unknown";
}

int32_t octavo_abi_version(void) { return OCTAVO_ABI_VERSION; }

const char* octavo_version(void) { return octavo::Version().data(); }

void octavo_buf_free(octavo_buf* buf) {
  if (buf != nullptr) {
    std::free(buf->data);
    *buf = {};
  }
}
