#pragma once
// For tests: a tensor as a caller of the C ABI has it.

#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/octavo.h"

namespace octavo::capi {

inline constexpr int64_t kRows = 130;
inline constexpr int64_t kCols = 160;

// A dense BF16 tensor and its description.
struct Source {
  explicit Source(Shape given = {kRows, kCols}, unsigned seed = 1)
      : shape(std::move(given)), bytes(RandomBf16(shape, seed).bytes) {}

  octavo_tensor tensor() const {
    return {bytes.data(), OCTAVO_BF16, static_cast<int32_t>(shape.size()), shape.data(), nullptr};
  }
  ConstTensorView view() const { return {DType::kBf16, shape, bytes.data()}; }

  Shape shape;
  std::vector<std::byte> bytes;
};

}  // namespace octavo::capi
