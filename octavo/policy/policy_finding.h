#pragma once
// A finding about a policy, and the little of a stored tensor that findings are made from.

#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/tensor.h"

namespace octavo {

// severity: "error" (the checkpoint cannot be served as it says) or "warning" (it can, but not as
// its maker may think).
struct PolicyFinding {
  std::string code;  // Stable, for scripts: "scale-missing", ...
  std::string severity;
  std::string tensor;   // The weight, module or list entry it is about.
  std::string message;  // Names the thing, then expected and actual.
  std::string cure;     // What to do about it.
};

inline PolicyFinding PolicyError(std::string_view code, std::string_view tensor,
                                 std::string message, std::string cure) {
  return {std::string(code), "error", std::string(tensor), std::move(message), std::move(cure)};
}

inline PolicyFinding PolicyWarning(std::string_view code, std::string_view tensor,
                                   std::string message, std::string cure) {
  return {std::string(code), "warning", std::string(tensor), std::move(message), std::move(cure)};
}

struct StoredDType {
  std::string name;
  DType dtype = DType::kBf16;
  Shape shape = {};  // Empty where it is not known: byte scales are then taken for those of groups.
};

}  // namespace octavo
