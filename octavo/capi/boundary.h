#pragma once
// The boundary of the C ABI: Status out as status and message, and nothing thrown through it.

#include <cstddef>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/octavo.h"

namespace octavo::capi {

// Writes `status`, which is none of ok, to `error` (may be null) and gives its number.
octavo_status Report(const Status& status, octavo_error* error);

// Gives `text` to the caller, who frees it. Errors: kExhausted.
Status GiveText(std::string_view text, octavo_buf* out);

// Errors: kInvalidArgument for a null pointer.
Status CheckGiven(const void* pointer, std::string_view name);
// Errors: kInvalidArgument for an option struct that is null or has another size than ours, which
// is the only one there has been.
Status CheckStruct(const void* options, size_t expected_bytes, std::string_view name);

// Runs the body of one function: subnormals are kept, and whatever a library throws (out of memory
// above all) becomes a status.
template <typename Body>
octavo_status Run(octavo_error* error, Body&& body) noexcept {
  const ScopedIeeeSubnormals subnormals;
  try {
    const Status status = std::forward<Body>(body)();
    return status.ok() ? OCTAVO_OK : Report(status, error);
  } catch (const std::bad_alloc&) {
    return Report(Status(StatusCode::kExhausted, "out of memory"), error);
  } catch (const std::exception& thrown) {
    return Report(Status(StatusCode::kInternal, thrown.what()), error);
  } catch (...) {
    return Report(Status(StatusCode::kInternal, "unknown"), error);
  }
}

}  // namespace octavo::capi
