#include "octavo/formats/format.h"

#include <array>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace octavo {
namespace {

constexpr std::array kFormats = {WeightFormat::kBf16,      WeightFormat::kFp8,
                                 WeightFormat::kFp8Ue8m0,  WeightFormat::kFp8Channel,
                                 WeightFormat::kFp8Tensor, WeightFormat::kMxfp8,
                                 WeightFormat::kNvfp4};

}  // namespace

std::span<const WeightFormat> AllWeightFormats() { return kFormats; }

std::string_view WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return "bf16";
    case WeightFormat::kFp8:
      return "fp8";
    case WeightFormat::kFp8Ue8m0:
      return "fp8-ue8m0";
    case WeightFormat::kFp8Channel:
      return "fp8-channel";
    case WeightFormat::kFp8Tensor:
      return "fp8-tensor";
    case WeightFormat::kMxfp8:
      return "mxfp8";
    case WeightFormat::kNvfp4:
      return "nvfp4";
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

int64_t ColsMultipleOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kMxfp8:
      return 32;
    case WeightFormat::kNvfp4:
      return 16;
    default:
      return 1;
  }
}

bool SharesScale(WeightFormat format) {
  return format == WeightFormat::kFp8Tensor || format == WeightFormat::kNvfp4;
}

}  // namespace octavo
