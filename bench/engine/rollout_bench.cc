// The whole engine on random weights of a folder under bench/shapes. One JSON object a line.
//
//   rollout_bench logprobs SHAPE FORMAT [pairs] [threads]
//       output logprobs against none, in pairs of equal batches
//   rollout_bench groups SHAPE FORMAT [groups] [size] [threads]
//       distinct prompts, then groups of samples of one prompt: output tokens a second

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename T>
T Must(Result<T> result) {
  if (!result.has_value()) {
    fmt::print(stderr, "rollout_bench: {}\n", result.error().message());
    std::exit(1);
  }
  return std::move(*result);
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "rollout_bench: {}\n", status.message());
    std::exit(1);
  }
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

// Counts down the requests of a batch.
class Countdown {
 public:
  explicit Countdown(int64_t count) : count_(count) {}
  void Done() {
    const std::scoped_lock lock(mutex_);
    --count_;
    done_.notify_one();
  }
  void Wait() {
    std::unique_lock lock(mutex_);
    done_.wait(lock, [this] { return count_ == 0; });
  }

 private:
  std::mutex mutex_;
  std::condition_variable done_;
  int64_t count_;  // Guarded by mutex_.
};

class CountdownSink final : public RequestSink {
 public:
  explicit CountdownSink(Countdown* countdown) : countdown_(*countdown) {}
  void OnOutput(RequestOutput output) override {
    if (output.finish.type != FinishType::kNone) {
      countdown_.Done();
    }
  }

 private:
  Countdown& countdown_;
};

struct BatchArgs {
  int64_t num_requests = 0;
  int64_t num_prompts = 0;  // Requests i and i + num_prompts share theirs.
  int64_t prompt_len = 0;
  int64_t num_new = 0;
  bool return_logprob = false;
  uint64_t seed = 0;  // Of the prompts.
};

// Seconds from the first submission to the last answer.
double RunBatch(Engine& engine, const BatchArgs& args) {
  Countdown countdown(args.num_requests);
  const auto sink = std::make_shared<CountdownSink>(&countdown);
  const auto vocab_size = static_cast<uint32_t>(engine.spec().vocab_size);
  const double start = Now();
  for (int64_t i = 0; i < args.num_requests; ++i) {
    Request request;
    request.rid = std::to_string(i);
    for (int64_t j = 0; j < args.prompt_len; ++j) {
      const auto counter = static_cast<uint64_t>(i % args.num_prompts * args.prompt_len + j);
      request.input_ids.push_back(static_cast<int32_t>(Philox(args.seed, counter)[0] % vocab_size));
    }
    request.sampling.max_new_tokens = args.num_new;
    request.sampling.ignore_eos = true;
    request.sampling.seed = i;
    request.return_logprob = args.return_logprob;
    request.sink = sink;
    Must(engine.Submit(std::move(request)));
  }
  countdown.Wait();
  return Now() - start;
}

std::unique_ptr<Serving> StartShape(const std::string& shape, std::string_view format,
                                    int num_threads) {
  ServingOptions options;
  options.model_dir = "bench/shapes/" + shape;
  options.load_format = LoadFormat::kDummy;
  options.num_threads = num_threads;
  if (format != "bf16") {
    const std::optional<WeightFormat> parsed = ParseWeightFormat(format);
    if (!parsed.has_value()) {
      fmt::print(stderr, "rollout_bench: expected a format, got {}\n", format);
      std::exit(2);
    }
    options.policy = PolicyOptions{.format = *parsed};
  }
  options.engine.context_length = 4096;
  options.engine.max_total_tokens = 32768;
  return Must(StartServing(options));
}

// Mean and upper 95% bound of the mean, by Student's t for many pairs.
struct Bound {
  double mean = 0.0;
  double upper = 0.0;
};
Bound UpperBound(std::span<const double> values) {
  const auto count = static_cast<double>(values.size());
  double sum = 0.0;
  double sum_sq = 0.0;
  for (const double value : values) {
    sum += value;
    sum_sq += value * value;
  }
  const double mean = sum / count;
  const double variance = std::max(sum_sq / count - mean * mean, 0.0) * count / (count - 1.0);
  // One-sided 95% quantile of Student's t: 1.73 for 20 pairs, less for more.
  return {.mean = mean, .upper = mean + 1.73 * std::sqrt(variance / count)};
}

// Pairs of equal batches, with and without logprobs, in alternating order; prompts come from the
// prefix cache, so that what is timed is decoding.
void BenchLogprobs(const std::string& shape, std::string_view format, int num_pairs,
                   int num_threads) {
  const std::unique_ptr<Serving> serving = StartShape(shape, format, num_threads);
  for (const int64_t batch : {1, 16, 64}) {
    BatchArgs args = {.num_requests = batch,
                      .num_prompts = batch,
                      .prompt_len = 33,
                      .num_new = batch == 1 ? 32 : 16,
                      .seed = static_cast<uint64_t>(batch)};
    RunBatch(*serving->engine, args);
    std::vector<double> ratios;
    double seconds = 0.0;
    for (int pair = 0; pair < num_pairs; ++pair) {
      double without = 0.0;
      double with = 0.0;
      for (const bool second : {false, true}) {
        args.return_logprob = (pair % 2 == 0) == second;
        (args.return_logprob ? with : without) = RunBatch(*serving->engine, args);
      }
      ratios.push_back(with / without - 1.0);
      seconds += without;
    }
    const Bound bound = UpperBound(ratios);
    fmt::print(
        "{{\"bench\":\"logprobs\",\"shape\":\"{}\",\"format\":\"{}\",\"backend\":\"{}\","
        "\"batch\":{},\"pairs\":{},\"ms_per_step\":{:.2f},\"cost_mean\":{:.4f},"
        "\"cost_median\":{:.4f},\"cost_upper_95\":{:.4f}}}\n",
        shape, format, serving->backend_name, batch, num_pairs,
        seconds * 1e3 / num_pairs / static_cast<double>(args.num_new), bound.mean, Median(ratios),
        bound.upper);
    std::fflush(stdout);
  }
}

void BenchGroups(const std::string& shape, std::string_view format, int64_t num_groups,
                 int64_t group_size, int num_threads) {
  const std::unique_ptr<Serving> serving = StartShape(shape, format, num_threads);
  for (const int64_t num_prompts : {num_groups * group_size, num_groups}) {
    const BatchArgs args = {.num_requests = num_groups * group_size,
                            .num_prompts = num_prompts,
                            .prompt_len = 128,
                            .num_new = 128,
                            .seed = static_cast<uint64_t>(num_prompts)};
    const EngineStats before = serving->engine->Stats();
    const double seconds = RunBatch(*serving->engine, args);
    const EngineStats after = serving->engine->Stats();
    const auto num_tokens = static_cast<double>(args.num_requests * args.num_new);
    fmt::print(
        "{{\"bench\":\"groups\",\"shape\":\"{}\",\"format\":\"{}\",\"backend\":\"{}\","
        "\"requests\":{},\"prompts\":{},\"cached_tokens\":{},\"seconds\":{:.2f},"
        "\"output_tok_per_s\":{:.1f}}}\n",
        shape, format, serving->backend_name, args.num_requests, num_prompts,
        after.cached_tokens_total - before.cached_tokens_total, seconds, num_tokens / seconds);
    std::fflush(stdout);
  }
}

int Main(std::span<char*> args) {
  const std::string_view what = args.size() > 1 ? args[1] : "";
  const auto number = [&](size_t i, int otherwise) {
    return args.size() > i ? std::atoi(args[i]) : otherwise;
  };
  if (what == "logprobs" && args.size() > 3) {
    BenchLogprobs(args[2], args[3], number(4, 20), number(5, 0));
  } else if (what == "groups" && args.size() > 3) {
    BenchGroups(args[2], args[3], number(4, 8), number(5, 8), number(6, 0));
  } else {
    fmt::print(stderr,
               "usage: rollout_bench logprobs SHAPE FORMAT [pairs] [threads]\n"
               "       rollout_bench groups SHAPE FORMAT [groups] [size] [threads]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
