// The whole engine on random weights of a folder under bench/shapes: the modes, by name.

#include "bench/engine/rollout_bench.h"

#include <fmt/core.h>

#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {
namespace {

constexpr std::string_view kUsage =
    "usage: rollout_bench logprobs SHAPE FORMAT [pairs] [threads]\n"
    "       rollout_bench groups SHAPE FORMAT [groups] [size] [threads]\n"
    "       rollout_bench digest SHAPE FORMAT [rounds] [threads]\n"
    "       rollout_bench steps SHAPE [rounds] [threads] [FORMAT,FORMAT...]\n"
    "       rollout_bench input-scale SHAPE [rounds] [threads]\n"
    "SHAPE is a folder of bench/shapes; threads 0 means all. One JSON object a line.\n";

std::vector<std::string> SplitAtCommas(std::string_view text) {
  std::vector<std::string> parts;
  while (true) {
    const size_t comma = text.find(',');
    parts.emplace_back(text.substr(0, comma));
    if (comma == std::string_view::npos) {
      return parts;
    }
    text.remove_prefix(comma + 1);
  }
}

int Main(std::span<char*> args) {
  const auto text = [&](size_t i, const char* otherwise) {
    return std::string(args.size() > i ? args[i] : otherwise);
  };
  const auto number = [&](size_t i, int otherwise) {
    return args.size() > i ? std::atoi(args[i]) : otherwise;
  };
  const auto shape = [&](size_t threads_at) {
    return ShapeArgs{.shape = args[2], .format = args[3], .num_threads = number(threads_at, 0)};
  };
  const std::string what = text(1, "");
  if (what == "logprobs" && args.size() > 3) {
    BenchLogprobs(shape(5), number(4, 20));
  } else if (what == "groups" && args.size() > 3) {
    BenchGroups(shape(6), {.num_groups = number(4, 8), .group_size = number(5, 8)});
  } else if (what == "digest" && args.size() > 3) {
    BenchDigest(shape(5), number(4, 9));
  } else if (what == "steps" && args.size() > 2) {
    BenchSteps({.shape = args[2],
                .formats = SplitAtCommas(text(5, "bf16,fp8")),
                .num_rounds = number(3, 11),
                .num_threads = number(4, 0)});
  } else if (what == "input-scale" && args.size() > 2) {
    BenchInputScale({.shape = args[2], .num_rounds = number(3, 30), .num_threads = number(4, 0)});
  } else {
    fmt::print(stderr, "{}", kUsage);
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
