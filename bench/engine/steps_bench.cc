// Decode steps of several formats, in turns.

#include <fmt/core.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "bench/engine/decode_steps.h"
#include "bench/engine/rollout_bench.h"
#include "octavo/base/float_env.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/kernels/backend.h"

namespace octavo {
namespace {

// From here on, in tokens of all sequences, a cell takes half of the rounds.
constexpr int64_t kManyTokens = 32768;
// What stays free beside a cell's pages: activations, logits, other programs.
constexpr int64_t kSpareBytes = int64_t{1} << 30;

void PrintSkipped(const StepsArgs& args, const DecodeShape& cell, int64_t kv_bytes,
                  int64_t free_bytes) {
  fmt::print(
      "{{\"bench\":\"steps\",\"shape\":\"{}\",\"batch\":{},\"context\":{},\"skipped\":\"the KV "
      "pool "
      "takes {:.1f} GB, and {:.1f} GB are free\"}}\n",
      args.shape, cell.batch, cell.context, static_cast<double>(kv_bytes) / 1e9,
      static_cast<double>(free_bytes) / 1e9);
  std::fflush(stdout);
}

void BenchCell(const StepsArgs& args, const std::vector<ShapeWeights>& shapes, Backend& backend,
               const DecodeShape& cell) {
  const bool has_many = cell.batch * cell.context >= kManyTokens;
  const int num_rounds = has_many ? (args.num_rounds + 1) / 2 : args.num_rounds;
  DecodeSteps steps(shapes[0].spec, backend, cell);
  for (const ShapeWeights& shape : shapes) {
    steps.Step(*shape.weights, false);
  }
  std::vector<std::vector<double>> seconds(shapes.size());
  for (int round = 0; round < num_rounds; ++round) {
    for (size_t turn = 0; turn < shapes.size(); ++turn) {  // Who comes first alternates.
      const size_t i = (turn + static_cast<size_t>(round)) % shapes.size();
      seconds[i].push_back(steps.Step(*shapes[i].weights, false));
    }
  }
  const auto arithmetic = [&](const ShapeWeights& shape) {
    return ArithmeticOf(shape, backend, shape.inputs);
  };
  const Arithmetic base = arithmetic(shapes[0]);
  for (size_t i = 1; i < shapes.size(); ++i) {
    std::vector<double> ratios;
    for (size_t round = 0; round < seconds[i].size(); ++round) {
      ratios.push_back(seconds[i][round] / seconds[0][round]);
    }
    const Cost cost = CostOf(ratios);
    fmt::print(
        "{{\"bench\":\"steps\",\"shape\":\"{}\",\"format\":\"{}\",{},\"base\":\"{}\",\"base_"
        "recipe\":\"{}\",\"base_emulated\":{},"
        "\"backend\":\"{}\",\"threads\":{},\"batch\":{},\"context\":{},\"rounds\":{},"
        "\"ms_per_step\":{:.2f},\"base_ms_per_step\":{:.2f},\"ratio_median\":{:.4f},"
        "\"ratio_upper_95\":{:.4f}}}\n",
        args.shape, args.formats[i], ArithmeticJson(arithmetic(shapes[i])), args.formats[0],
        base.recipe, base.is_emulated, backend.name(), backend.pool().num_threads(), cell.batch,
        cell.context, num_rounds, Median(seconds[i]) * 1e3, Median(seconds[0]) * 1e3, cost.median,
        cost.upper_95);
    std::fflush(stdout);
  }
}

}  // namespace

void BenchSteps(const StepsArgs& args) {
  const ScopedFlushSubnormals flush;
  std::vector<ShapeWeights> shapes;
  for (const std::string& format : args.formats) {
    shapes.push_back(LoadShape({.shape = args.shape,
                                .format = format,
                                .num_threads = args.num_threads,
                                .max_total_tokens = 4096}));
  }
  const std::unique_ptr<Backend> backend = MakeBenchBackend(args.num_threads);
  for (const int64_t batch : {1, 8, 64}) {
    for (const int64_t context : {128, 1024, 4096}) {
      const DecodeShape cell = {.batch = batch, .context = context};
      const int64_t kv_bytes = KvBytesOf(shapes[0].spec, *backend, cell);
      const int64_t free_bytes = Must(AvailableMemoryBytes());
      if (kv_bytes + kSpareBytes > free_bytes) {
        PrintSkipped(args, cell, kv_bytes, free_bytes);
      } else {
        BenchCell(args, shapes, *backend, cell);
      }
    }
  }
}

}  // namespace octavo
