#pragma once
// FunctionRef: a borrowed callable, two words, no allocation. What std::function is not allowed
// to be in the step loop.

#include <memory>
#include <type_traits>
#include <utility>

namespace octavo {

template <typename Signature>
class FunctionRef;

// The callable must outlive the reference. Copyable; calling it is as thread-safe as the callable.
template <typename R, typename... Args>
class FunctionRef<R(Args...)> {
 public:
  template <typename F>
    requires(!std::is_same_v<std::remove_cvref_t<F>, FunctionRef>)
  FunctionRef(F&& callable)  // NOLINT(google-explicit-constructor): passed like a function
      : object_(const_cast<void*>(static_cast<const void*>(std::addressof(callable)))),
        call_([](void* object, Args... args) -> R {
          return (*static_cast<std::remove_reference_t<F>*>(object))(std::forward<Args>(args)...);
        }) {}

  R operator()(Args... args) const { return call_(object_, std::forward<Args>(args)...); }

 private:
  void* object_;
  R (*call_)(void*, Args...);
};

}  // namespace octavo
