#pragma once
// Status and Result<T>: how a function says that its input, a file, a peer or memory failed it.
//
// A Status is either ok or a code with a message. The message names the thing, then what was
// expected and what came. Our own bugs are CHECKs (check.h), never a Status.

#include <fmt/core.h>

#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/check.h"

namespace octavo {

enum class StatusCode {
  kOk,
  kInvalidArgument,  // The caller's input is wrong; the same call cannot succeed.
  kNotFound,         // A named thing does not exist.
  kCorrupt,          // A file or message breaks its own format.
  kUnsupported,      // Well formed, but not built here. Never a silent fallback.
  kExhausted,        // Memory, pages, a queue or a bound is used up.
  kUnavailable,      // Try again later: busy, starting, stopping, a peer away.
  kCancelled,        // The caller or an operator stopped it.
  kInternal,         // A system call failed in a way that is nobody's input.
};

// "invalid argument", "not found", ...: lower case, for messages.
std::string_view StatusCodeName(StatusCode code);

// Value type; cheap when ok. Thread-compatible.
class [[nodiscard]] Status {
 public:
  Status() = default;
  Status(StatusCode code, std::string message) : code_(code), message_(std::move(message)) {}

  bool ok() const { return code_ == StatusCode::kOk; }
  StatusCode code() const { return code_; }
  const std::string& message() const { return message_; }

  // The same code with "context: " in front of the message. An ok Status stays ok.
  Status WithContext(std::string_view context) const&;

 private:
  StatusCode code_ = StatusCode::kOk;
  std::string message_;
};

inline Status OkStatus() { return {}; }

template <typename... Args>
Status InvalidArgument(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kInvalidArgument, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status NotFound(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kNotFound, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Corrupt(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kCorrupt, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Unsupported(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kUnsupported, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Exhausted(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kExhausted, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Unavailable(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kUnavailable, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Cancelled(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kCancelled, fmt::format(format, std::forward<Args>(args)...)};
}
template <typename... Args>
Status Internal(fmt::format_string<Args...> format, Args&&... args) {
  return {StatusCode::kInternal, fmt::format(format, std::forward<Args>(args)...)};
}

// A T or the Status that says why there is none. The names are those of std::expected.
template <typename T>
class [[nodiscard]] Result {
 public:
  Result(T value) : value_(std::move(value)) {}      // NOLINT(google-explicit-constructor)
  Result(Status error) : error_(std::move(error)) {  // NOLINT(google-explicit-constructor)
    CHECK(!error_.ok());
  }

  bool has_value() const { return value_.has_value(); }
  explicit operator bool() const { return has_value(); }

  const T& value() const& { return CheckedValue(); }
  T& value() & { return const_cast<T&>(std::as_const(*this).CheckedValue()); }
  T&& value() && { return std::move(value()); }
  const T& operator*() const& { return value(); }
  T& operator*() & { return value(); }
  T&& operator*() && { return std::move(value()); }
  const T* operator->() const { return &value(); }
  T* operator->() { return &value(); }

  // Ok when there is a value.
  const Status& error() const { return error_; }

 private:
  const T& CheckedValue() const {
    if (!value_.has_value()) {
      FailCheck(__FILE__, __LINE__, "Result::value() of an error", error_.message());
    }
    return *value_;
  }

  std::optional<T> value_;
  Status error_;
};

#define OCTAVO_CONCAT_INNER(a, b) a##b
#define OCTAVO_CONCAT(a, b) OCTAVO_CONCAT_INNER(a, b)

#define RETURN_IF_ERROR(expr)                                           \
  do {                                                                  \
    if (::octavo::Status octavo_status = (expr); !octavo_status.ok()) { \
      return octavo_status;                                             \
    }                                                                   \
  } while (false)

// ASSIGN_OR_RETURN(auto file, MappedFile::Open(path));
#define ASSIGN_OR_RETURN(declaration, expr) \
  ASSIGN_OR_RETURN_IMPL(OCTAVO_CONCAT(octavo_result_, __LINE__), declaration, expr)
#define ASSIGN_OR_RETURN_IMPL(result, declaration, expr) \
  auto result = (expr);                                  \
  if (!result.has_value()) {                             \
    return result.error();                               \
  }                                                      \
  declaration = std::move(result).value()

}  // namespace octavo
