#pragma once
// A bucket of tensors as a sender of weights posts it: one complete safetensors buffer.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"

namespace octavo {

struct BucketTensor {
  std::string name;
  ConstTensorView view;
};

// The views point into `bytes`, at any alignment. Every check of the container is done before the
// first tensor is handed out. Errors: those of ParseSafetensorsHeader.
Result<std::vector<BucketTensor>> ParseBucket(std::string_view bytes);

}  // namespace octavo
