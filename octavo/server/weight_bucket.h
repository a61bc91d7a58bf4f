#pragma once
// A bucket of tensors as a sender of weights posts it: one complete safetensors buffer. Its
// __metadata__ may hold the checksum of each tensor, "KIND:NAME" -> hexadecimal digits, KIND as
// ParseChecksumKind knows it; "__pad__.N" is a filler between tensors.

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

struct Bucket {
  std::vector<BucketTensor> tensors;
  // Names the first tensor whose bytes are not those that its sender had; ok when all are, or when
  // the bucket has no checksums.
  Status damage;
};

// The views point into `bytes`, at any alignment. Every check of the container is done before the
// first tensor is handed out. Errors: those of ParseSafetensorsHeader; kCorrupt for a checksum of a
// tensor that is not there.
Result<Bucket> ParseBucket(std::string_view bytes);

}  // namespace octavo
