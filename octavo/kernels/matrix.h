#pragma once
// Weights as kernels see them: canonical views (HF layout, the truth) and packed ones (whatever the
// backend computes with; a pure function of the canonical bytes).

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/buffer.h"
#include "octavo/formats/format.h"

namespace octavo {

// y = x W^T with W [rows, cols] = [out, in]. Views; the tensors they came from must outlive them.
struct CanonicalMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const std::byte> codes;  // bf16: BF16 bits [rows, cols]; fp8: E4M3 [rows, cols].
  std::span<const float> scales;     // fp8: [ceil(rows/128), ceil(cols/128)]; bf16: empty.
};

// The same in a backend's layout. Made by Backend::Pack, and only readable by that backend.
// Vectors (norm weights) are kept as one canonical BF16 row.
struct PackedMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  Buffer codes;
  Buffer scales;
};

}  // namespace octavo
