#pragma once
// EngineLatencies: what requests waited for, as the engine sees it: from Engine::Submit to the end
// of the step that brought the token.

#include <array>

#include "octavo/engine/histogram.h"

namespace octavo {

// Upper bounds in seconds. From what a small model on one core does to a request of an hour.
inline constexpr std::array<double, 22> kRequestSecondsBounds = {
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5,  1,    2.5,
    5,     10,     25,    50,   100,   200,  400, 800,  1600, 3200, 6400};
inline constexpr std::array<double, 18> kTokenSecondsBounds = {
    0.0005, 0.001, 0.0025, 0.005, 0.0075, 0.01, 0.015, 0.025, 0.04,
    0.06,   0.1,   0.2,    0.4,   0.8,    1.6,  4,     10,    60};

// A value type, all in seconds.
struct EngineLatencies {
  Histogram queue{kRequestSecondsBounds};        // To the first step; each request that started.
  Histogram first_token{kRequestSecondsBounds};  // Each request that sampled a token.
  // Between two tokens of a request, pauses and retractions included; each token but the first.
  Histogram inter_token{kTokenSecondsBounds};
  // To the last output; each request that was neither aborted nor failed.
  Histogram end_to_end{kRequestSecondsBounds};
};

}  // namespace octavo
