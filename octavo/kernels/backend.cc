#include "octavo/kernels/backend.h"

#include <array>
#include <optional>
#include <string_view>

namespace octavo {
namespace {

constexpr std::array kIsas = {Isa::kAmx, Isa::kAvx512, Isa::kAvx2, Isa::kScalar};

}  // namespace

std::string_view IsaName(Isa isa) {
  switch (isa) {
    case Isa::kAmx:
      return "amx";
    case Isa::kAvx512:
      return "avx512";
    case Isa::kAvx2:
      return "avx2";
    case Isa::kScalar:
      return "scalar";
  }
  return "unknown";
}

std::optional<Isa> ParseIsa(std::string_view name) {
  for (const Isa isa : kIsas) {
    if (IsaName(isa) == name) {
      return isa;
    }
  }
  return std::nullopt;
}

}  // namespace octavo
