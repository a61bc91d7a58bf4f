#pragma once
// Cosines and sines of rotary position embeddings, one row a position.

#include <cstdint>
#include <span>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"

namespace octavo {

// Move-only; const is thread-safe.
//   angle[p, i] = p * theta^(-2 i / head_dim),  i in [0, head_dim / 2)
// Everything is computed in FP64 and rounded once to FP32, so that long contexts do not inherit the
// error of an FP32 angle. Source: Su et al., RoFormer (2021), section 3.2.2.
class RopeTable {
 public:
  // Errors: kExhausted. `head_dim` is even.
  static Result<RopeTable> Make(double theta, int64_t head_dim, int64_t num_positions);

  std::span<const float> cos() const { return cos_.As<float>(); }  // [positions, head_dim / 2]
  std::span<const float> sin() const { return sin_.As<float>(); }

 private:
  Buffer cos_;
  Buffer sin_;
};

}  // namespace octavo
