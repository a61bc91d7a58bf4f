#include "octavo/convert/inverse_scales.h"

#include <algorithm>
#include <cstddef>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/source.h"

namespace octavo {
namespace {

constexpr float kInverseScaleMedian = 16.0F;

std::vector<float> ValuesOf(const ConstTensorView& scales) {
  std::vector<float> values(static_cast<size_t>(NumElements(scales.shape)));
  WidenScales(scales, 0, values);
  return values;
}

}  // namespace

void InvertScales(const StoredTensor& scales, InvertedScales* out) {
  out->values = ValuesOf(scales.view);
  std::ranges::transform(out->values, out->values.begin(), [](float s) { return 1.0F / s; });
  out->tensor = scales;
  out->tensor.view = {DType::kF32, scales.view.shape,
                      reinterpret_cast<const std::byte*>(out->values.data())};
}

bool SeemInverse(const ConstTensorView& scales) {
  std::vector<float> values = ValuesOf(scales);
  if (values.empty()) {
    return false;
  }
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle > kInverseScaleMedian;
}

}  // namespace octavo
