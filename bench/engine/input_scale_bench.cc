// What the input scale modes of NVFP4 cost. The mode stands in each packed matrix and changes
// nothing of its bytes, so one set of weights serves all three.

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string_view>
#include <vector>

#include "bench/engine/decode_steps.h"
#include "bench/engine/rollout_bench.h"
#include "octavo/base/float_env.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

struct Mode {
  std::string_view name;
  InputForm input;
};
// The first is what the others are measured against.
constexpr std::array kModes = {Mode{"static", InputForm::kNvfp4Static},
                               Mode{"token", InputForm::kNvfp4Token},
                               Mode{"pow2", InputForm::kNvfp4Pow2}};

// As a calibration would give it for inputs of order 1: amax / 2688.
constexpr float kStaticScale = 4.0F / 2688.0F;

void SetMode(InputForm input, ModelWeights* weights) {
  for (PackedMatrix& matrix : weights->matrices) {
    if (matrix.format == WeightFormat::kNvfp4) {
      matrix.input = input;
      matrix.input_scale = kStaticScale;
    }
  }
}

void BenchBatch(const InputScaleArgs& args, const ShapeWeights& shape, Backend& backend,
                int64_t batch) {
  DecodeSteps steps(shape.spec, backend, {.batch = batch, .context = 128});
  const auto step = [&](size_t mode) {
    SetMode(kModes[mode].input, shape.weights.get());
    return steps.Step(*shape.weights, false);
  };
  for (size_t mode = 0; mode < kModes.size(); ++mode) {
    step(mode);
  }
  std::array<std::vector<double>, kModes.size()> seconds;
  std::array<size_t, kModes.size()> order = {0, 1, 2};
  for (int round = 0; round < args.num_rounds; ++round) {
    for (const size_t mode : order) {
      seconds[mode].push_back(step(mode));
    }
    std::ranges::next_permutation(order);  // All six orders, so that nobody always follows another.
  }
  const auto arithmetic = [&](size_t mode) {
    std::vector<InputForm> inputs = shape.inputs;
    std::ranges::replace(inputs, InputForm::kNvfp4Token, kModes[mode].input);
    return ArithmeticOf(shape, backend, inputs);
  };
  for (size_t mode = 1; mode < kModes.size(); ++mode) {
    std::vector<double> costs;
    costs.reserve(seconds[mode].size());
    for (size_t round = 0; round < seconds[mode].size(); ++round) {
      costs.push_back(seconds[mode][round] / seconds[0][round] - 1.0);
    }
    const Cost cost = CostOf(costs);
    fmt::print(
        "{{\"bench\":\"input-scale\",\"shape\":\"{}\",\"mode\":\"{}\",{},\"base\":\"{}\",\"base_"
        "recipe\":\"{}\","
        "\"backend\":\"{}\",\"threads\":{},\"batch\":{},\"pairs\":{},\"ms_per_step\":{:.2f},"
        "\"cost_median\":{:.4f},\"cost_upper_95\":{:.4f}}}\n",
        args.shape, kModes[mode].name, ArithmeticJson(arithmetic(mode)), kModes[0].name,
        arithmetic(0).recipe, backend.name(), backend.pool().num_threads(), batch, args.num_rounds,
        Median(seconds[mode]) * 1e3, cost.median, cost.upper_95);
    std::fflush(stdout);
  }
}

}  // namespace

void BenchInputScale(const InputScaleArgs& args) {
  const ScopedFlushSubnormals flush;
  const ShapeWeights shape = LoadShape({.shape = args.shape,
                                        .format = "nvfp4",
                                        .num_threads = args.num_threads,
                                        .max_total_tokens = 4096});
  const std::unique_ptr<Backend> backend = MakeBenchBackend(args.num_threads);
  for (const int64_t batch : {1, 16, 64}) {
    BenchBatch(args, shape, *backend, batch);
  }
}

}  // namespace octavo
