#pragma once
// CHECK: an invariant of ours. When it does not hold, both sides are printed and the program
// aborts. For bad input use Status (status.h).
//
//   CHECK(num_pages == expected);   // one condition each: ==, !=, <, <=, >, >= or a bool
//   DCHECK(row < rows);             // the same, compiled out of release builds (NDEBUG)

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <type_traits>

// CHECK leans on << binding tighter than the comparison behind it, which Clang warns of wherever
// CHECK is used.
#ifdef __clang__
#pragma clang diagnostic ignored "-Woverloaded-shift-op-parentheses"
#endif

namespace octavo {

// Prints "FILE:LINE: check failed: CONDITION (DETAIL)" to stderr and aborts.
[[noreturn]] void FailCheck(const char* file, int line, std::string_view condition,
                            std::string_view detail);

namespace internal {

template <typename T>
std::string Printable(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return fmt::format("{}", static_cast<long long>(value));
  } else if constexpr (fmt::is_formattable<T>::value) {
    return fmt::format("{}", value);
  } else {
    return "?";
  }
}

struct CheckOutcome {
  bool held;
  std::string detail;  // Filled only when the check failed.
};

// Captures the left side of a comparison, so that both sides can be printed.
template <typename L>
struct CheckLeft {
  const L& left;

  template <typename R>
  CheckOutcome Outcome(bool held, const R& right) const {
    return {held, held ? std::string() : Printable(left) + " vs " + Printable(right)};
  }
  template <typename R>
  CheckOutcome operator==(const R& right) const {
    return Outcome(left == right, right);
  }
  template <typename R>
  CheckOutcome operator!=(const R& right) const {
    return Outcome(left != right, right);
  }
  template <typename R>
  CheckOutcome operator<(const R& right) const {
    return Outcome(left < right, right);
  }
  template <typename R>
  CheckOutcome operator<=(const R& right) const {
    return Outcome(left <= right, right);
  }
  template <typename R>
  CheckOutcome operator>(const R& right) const {
    return Outcome(left > right, right);
  }
  template <typename R>
  CheckOutcome operator>=(const R& right) const {
    return Outcome(left >= right, right);
  }
  operator CheckOutcome() const {  // NOLINT(google-explicit-constructor): CHECK(flag)
    return {static_cast<bool>(left), {}};
  }
};

struct CheckDecomposer {
  template <typename L>
  CheckLeft<L> operator<<(const L& left) const {
    return {left};
  }
};

}  // namespace internal

#define CHECK(condition)                                                          \
  do {                                                                            \
    if (const ::octavo::internal::CheckOutcome octavo_outcome =                   \
            ::octavo::internal::CheckDecomposer() << condition;                   \
        !octavo_outcome.held) [[unlikely]] {                                      \
      ::octavo::FailCheck(__FILE__, __LINE__, #condition, octavo_outcome.detail); \
    }                                                                             \
  } while (false)

#ifdef NDEBUG
#define DCHECK(condition) \
  do {                    \
    if (false) {          \
      CHECK(condition);   \
    }                     \
  } while (false)
#else
#define DCHECK(condition) CHECK(condition)
#endif

}  // namespace octavo
