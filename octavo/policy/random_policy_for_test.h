#pragma once
// For tests: a model and a policy from a seed. Not every policy compiles.

#include <fmt/core.h>

#include <array>

#include "octavo/base/random.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {

struct RandomPolicy {
  ModelSpec spec;
  PolicyOptions options;
};

inline RandomPolicy MakeRandomPolicy(uint64_t seed) {
  const std::array<uint32_t, 4> a = Philox(seed, 0);
  const std::array<uint32_t, 4> b = Philox(seed, 1);
  const int num_layers = 2 + static_cast<int>(a[0] % 11);
  RandomPolicy random{.spec = TestSpec({.num_layers = num_layers, .tied = a[1] % 2 == 0}),
                      .options = {.format = WeightFormat::kFp8, .keep = {}}};
  const auto layers = static_cast<uint32_t>(num_layers);
  if (a[2] % 3 == 0) {
    random.options.keep_first = static_cast<int>(a[2] / 3 % (layers / 2 + 1));
  }
  if (a[3] % 2 == 0) {
    random.options.keep_last = static_cast<int>(a[3] / 2 % (layers / 2 + 1));
  }
  const uint32_t layer = b[0] % layers;
  const std::vector<std::string> patterns = {
      "o_proj",
      "mlp.down_proj",
      fmt::format("model.layers.{}", layer),
      fmt::format("layers.{}.self_attn.", layer),
      fmt::format("layers.{}.mlp", layer),
      fmt::format("model.layers.{}.mlp.*_proj", layer),
      fmt::format("*.{}.self_attn.*", layer),
      "*.self_attn.o_*",
      fmt::format("layers.{}.self_attn.q_proj", layer),  // Splits a set.
      "q_norm",                                          // Wins nowhere.
  };
  const uint32_t num_keeps = b[1] % 3;
  for (uint32_t i = 0; i < num_keeps; ++i) {
    random.options.keep.push_back(patterns[b[2 + i] % patterns.size()]);
  }
  return random;
}

}  // namespace octavo
