// Output logprobs against none, over the live weights of an engine.

#include <fmt/core.h>

#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "bench/engine/decode_steps.h"
#include "bench/engine/rollout_bench.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/serving.h"

namespace octavo {

void BenchLogprobs(const ShapeArgs& args, int num_pairs) {
  const std::unique_ptr<Serving> serving = StartShape(args);
  OnLiveWeights(*serving, [&](const ModelWeights& live, Backend& backend) {
    for (const int64_t batch : {1, 16, 64}) {
      DecodeSteps steps(serving->spec, backend, {.batch = batch, .context = 128});
      steps.Step(live, false);
      steps.Step(live, true);
      std::vector<double> ratios;
      std::vector<double> seconds;
      for (int pair = 0; pair < num_pairs; ++pair) {
        double times[2] = {};  // Without, with; which comes first alternates.
        for (const int turn : {0, 1}) {
          const bool with = (pair % 2 == 0) == (turn == 0);
          times[with ? 1 : 0] = steps.Step(live, with);
        }
        ratios.push_back(times[1] / times[0] - 1.0);
        seconds.push_back(times[0]);
      }
      const Cost cost = CostOf(ratios);
      fmt::print(
          "{{\"bench\":\"logprobs\",\"shape\":\"{}\",\"format\":\"{}\",{},\"backend\":\"{}\","
          "\"batch\":{},\"pairs\":{},\"ms_per_step\":{:.2f},\"cost_median\":{:.4f},"
          "\"cost_upper_95\":{:.4f}}}\n",
          args.shape, args.format, ArithmeticJson(*serving), serving->backend_name, batch,
          num_pairs, Median(seconds) * 1e3, cost.median, cost.upper_95);
      std::fflush(stdout);
    }
  });
}

}  // namespace octavo
