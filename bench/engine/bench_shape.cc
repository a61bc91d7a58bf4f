// Shapes under bench/shapes with random weights, and figures of what was measured on them.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <future>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "bench/engine/rollout_bench.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

void Fail(std::string_view message) {
  fmt::print(stderr, "rollout_bench: {}\n", message);
  std::exit(1);
}

void Must(const Status& status) {
  if (!status.ok()) {
    Fail(status.message());
  }
}

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

Cost CostOf(std::vector<double> ratios) {
  std::ranges::sort(ratios);
  const auto count = static_cast<double>(ratios.size());
  const double rank = count / 2.0 + 1.645 * std::sqrt(count) / 2.0;
  return {.median = ratios[ratios.size() / 2],
          .upper_95 = ratios[std::min(ratios.size() - 1, static_cast<size_t>(std::ceil(rank)))]};
}

std::unique_ptr<Serving> StartShape(const ShapeArgs& args) {
  ServingOptions options;
  options.model_dir = "bench/shapes/" + args.shape;
  options.load_format = LoadFormat::kDummy;
  options.num_threads = args.num_threads;
  if (args.format != "bf16") {
    const std::optional<WeightFormat> parsed = ParseWeightFormat(args.format);
    if (!parsed.has_value()) {
      Fail(fmt::format("expected a format, got {}", args.format));
    }
    options.policy = PolicyOptions{.format = *parsed, .scope = QuantizeScope::kAll};
  }
  options.engine.context_length = 4096;
  options.engine.max_total_tokens = args.max_total_tokens;
  return Must(StartServing(options));
}

std::string ArithmeticJson(const Arithmetic& arithmetic) {
  return fmt::format(R"("recipe":"{}","emulated":{})", arithmetic.recipe, arithmetic.is_emulated);
}

std::string ArithmeticJson(const Serving& serving) {
  return ArithmeticJson(Arithmetic{.recipe = serving.recipe, .is_emulated = serving.is_emulated});
}

Arithmetic ArithmeticOf(const ShapeWeights& shape, const Backend& backend,
                        std::span<const InputForm> inputs) {
  return {.recipe = RecipeId(backend.recipe(), shape.table, inputs, DType::kBf16),
          .is_emulated = IsEmulated(inputs)};
}

void OnLiveWeights(Serving& serving, FunctionRef<void(const ModelWeights&, Backend&)> fn) {
  std::promise<void> finished;
  serving.engine->RunBetweenSteps([&](const ModelWeights& live, Backend& backend) {
    fn(live, backend);
    finished.set_value();
  });
  finished.get_future().wait();
}

ShapeWeights LoadShape(const ShapeArgs& args) {
  const std::unique_ptr<Serving> serving = StartShape(args);
  std::promise<std::unique_ptr<ModelWeights>> released;
  serving->engine->ReleaseMemory({.kv_cache = true, .weights = true}, [&](auto weights) {
    released.set_value(Must(std::move(weights)));
  });
  return {.spec = serving->spec,
          .weights = released.get_future().get(),
          .table = serving->table,
          .inputs = serving->plan->inputs};
}

std::unique_ptr<Backend> MakeBenchBackend(int num_threads) {
  return Must(MakeCpuBackend(BestIsa(), num_threads > 0 ? num_threads : NumUsableThreads()));
}

}  // namespace octavo
