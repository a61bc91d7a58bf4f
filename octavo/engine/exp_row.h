#pragma once
// The weights that a sampler draws from.

#include <span>

namespace octavo {

// weights[i] = ExpF32(row[i] - max). Same bits on every processor (kernels/math.h).
// Shapes: row [vocab], weights [vocab]. Thread-safe; allocates nothing.
void ExpRow(std::span<const float> row, float max, std::span<float> weights);

}  // namespace octavo
