#include "octavo/formats/format.h"

#include <array>
#include <optional>
#include <string_view>

namespace octavo {
namespace {

constexpr std::array kFormats = {WeightFormat::kBf16, WeightFormat::kFp8};

}  // namespace

std::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kFp8:
      return "fp8";
  }
  return "unknown";
}

std::optional<WeightFormat> ParseWeightFormat(std::string_view name) {
  for (const WeightFormat format : kFormats) {
    if (WeightFormatName(format) == name) {
      return format;
    }
  }
  return std::nullopt;
}

}  // namespace octavo
