#pragma once
// Philox4x32-10: a counter-based generator. A draw is a pure function of (seed, counter), so that
// sampling a token needs no state and does not depend on what ran before it.
//
// Source: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC11), Random123's
// philox.h constants.

#include <array>
#include <cstdint>

namespace octavo {

// Four independent uniform 32-bit words for (seed, counter).
std::array<uint32_t, 4> Philox(uint64_t seed, uint64_t counter);

// Uniform in [0, 1): the top 24 bits of the first word of Philox(seed, counter), times 2^-24.
float UniformFloat(uint64_t seed, uint64_t counter);

}  // namespace octavo
