// The engine beside its forward passes. One JSON object a line.
//
//   engine_bench logits [threads]           from logits to tokens, a vocabulary of 151936
//   engine_bench scheduler                  a step of the scheduler with up to 16384 that wait

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/prefix_cache.h"
#include "octavo/engine/request.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/sequence.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"

namespace octavo {
namespace {

constexpr int64_t kVocab = 151936;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

template <typename T>
T Must(Result<T> result) {
  if (!result.has_value()) {
    fmt::print(stderr, "engine_bench: {}\n", result.error().message());
    std::exit(1);
  }
  return std::move(*result);
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "engine_bench: {}\n", status.message());
    std::exit(1);
  }
}

double Median(std::vector<double> values) {
  const auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
  std::ranges::nth_element(values, middle);
  return *middle;
}

// --- logits -------------------------------------------------------------------------------------

// A model that has only a head: its logits are made beforehand, peaked as those of trained models
// are, and copied out.
class HeadOnly final : public Model {
 public:
  HeadOnly(Backend* backend, int64_t num_rows) : backend_(*backend) {
    spec_.vocab_size = kVocab;
    logits_.resize(static_cast<size_t>(num_rows * kVocab));
    for (size_t i = 0; i < logits_.size(); ++i) {
      // Sums of uniforms, tails to the left, a few tokens far ahead.
      const float u = UniformFloat(1, i);
      logits_[i] = 6.0F * u - 3.0F + (u > 0.9999F ? 12.0F * UniformFloat(2, i) : 0.0F);
    }
  }
  const ModelSpec& spec() const override { return spec_; }
  Backend& backend() override { return backend_; }
  Status Forward(const ForwardBatch& /*batch*/, const ModelWeights& /*weights*/,
                 std::span<const KvLayer> /*kv*/) override {
    return OkStatus();
  }
  Status Logits(std::span<const int32_t> rows, const ModelWeights& /*weights*/,
                std::span<float> logits) override {
    const double start = Now();
    std::copy_n(logits_.begin(), rows.size() * kVocab, logits.begin());
    seconds += Now() - start;
    return OkStatus();
  }

  double seconds = 0.0;  // In Logits.

 private:
  Backend& backend_;
  ModelSpec spec_;
  std::vector<float> logits_;
};

struct SamplingCase {
  const char* name;
  SamplingParams params;
  bool return_logprob = false;
};

std::vector<SamplingCase> SamplingCases() {
  SamplingParams greedy;
  greedy.temperature = 0.0F;
  SamplingParams tempered;
  tempered.temperature = 0.8F;
  SamplingParams top_p = tempered;
  top_p.top_p = 0.95F;
  SamplingParams top_k = tempered;
  top_k.top_k = 50;
  return {{"greedy", greedy, false},     {"greedy+logprob", greedy, true},
          {"plain", {}, false},          {"plain+logprob", {}, true},
          {"tempered", tempered, false}, {"tempered+logprob", tempered, true},
          {"top_p", top_p, false},       {"top_p+logprob", top_p, true},
          {"top_k", top_k, false},       {"top_k+logprob", top_k, true}};
}

void BenchLogits(int num_threads) {
  const std::unique_ptr<Backend> backend = Must(MakeCpuBackend(BestIsa(), num_threads));
  constexpr int64_t kRows = 64;
  HeadOnly model(backend.get(), kRows);
  const ModelWeights weights;
  LogitsPass pass(&model, MaxLogitRows(kVocab, kRows), {0});
  for (const SamplingCase& sampling : SamplingCases()) {
    std::vector<Sequence> sequences(kRows);
    std::vector<RowTask> tasks;
    for (int64_t i = 0; i < kRows; ++i) {
      Sequence& sequence = sequences[static_cast<size_t>(i)];
      sequence.request.sampling = sampling.params;
      sequence.request.return_logprob = sampling.return_logprob;
      sequence.seed = static_cast<uint64_t>(i);
      sequence.tokens = {1};
      sequence.prompt_len = 1;
      tasks.push_back(
          {.sequence = &sequence, .row = static_cast<int32_t>(i), .position = 1, .sample = true});
    }
    for (const size_t num_rows : {size_t{1}, size_t{16}, size_t{64}}) {
      std::vector<double> seconds;
      for (int repeat = 0; repeat < 15; ++repeat) {
        model.seconds = 0.0;
        const double start = Now();
        Must(pass.Run(std::span(tasks).first(num_rows), weights,
                      [](const RowTask& /*task*/, RowResult& /*result*/) {}));
        seconds.push_back(Now() - start - model.seconds);
      }
      fmt::print("{{\"bench\":\"logits\",\"sampling\":\"{}\",\"rows\":{},\"us_per_row\":{:.1f}}}\n",
                 sampling.name, num_rows, Median(seconds) * 1e6 / static_cast<double>(num_rows));
    }
  }
}

// --- scheduler ----------------------------------------------------------------------------------

std::unique_ptr<Sequence> NewSequence(int64_t arrival, bool is_group) {
  auto sequence = std::make_unique<Sequence>();
  sequence->arrival = arrival;
  sequence->request.rid = std::to_string(arrival);
  sequence->request.sampling.max_new_tokens = 64;
  const auto seed = static_cast<uint64_t>(is_group ? 0 : arrival);
  for (uint64_t i = 0; i < 100; ++i) {
    sequence->tokens.push_back(static_cast<int32_t>(Philox(seed, i)[0] % kVocab));
  }
  sequence->prompt_len = 100;
  sequence->scored = true;
  return sequence;
}

struct SchedulerTimes {
  double enqueue_us = 0.0;  // A request.
  double median_us = 0.0;   // A step.
  double max_us = 0.0;
  double us_per_token = 0.0;  // All steps, per row planned.
  int64_t num_steps = 0;
};

SchedulerTimes TimeScheduler(int64_t num_requests, bool is_group) {
  PagePool pool(4096);
  PrefixCache cache(&pool, true);
  Scheduler scheduler({.chunk_tokens = 512, .max_running = 256}, &pool, &cache);
  double start = Now();
  for (int64_t i = 0; i < num_requests; ++i) {
    scheduler.Enqueue(NewSequence(i, is_group));
  }
  SchedulerTimes times;
  times.enqueue_us = (Now() - start) * 1e6 / static_cast<double>(num_requests);
  std::vector<double> steps;
  int64_t num_rows = 0;
  double total = 0.0;
  while (!scheduler.running().empty() || !scheduler.queue().empty()) {
    start = Now();
    const StepPlan& plan = scheduler.Plan(Admission::kAll, {});
    scheduler.CommitPlan();
    num_rows += static_cast<int64_t>(plan.token_ids.size());
    for (Sequence* sequence : plan.sequences) {
      if (sequence->num_pending() == 0) {
        sequence->tokens.push_back(static_cast<int32_t>(sequence->arrival % kVocab));
        if (sequence->num_generated() == sequence->request.sampling.max_new_tokens) {
          scheduler.Remove(sequence);
        }
      }
    }
    steps.push_back((Now() - start) * 1e6);
    total += steps.back();
  }
  times.median_us = Median(steps);
  times.max_us = std::ranges::max(steps);
  times.us_per_token = total / static_cast<double>(num_rows);
  times.num_steps = static_cast<int64_t>(steps.size());
  return times;
}

void BenchScheduler() {
  for (const bool is_group : {false, true}) {
    for (const int64_t num_requests : {256, 1024, 4096, 16384}) {
      const SchedulerTimes times = TimeScheduler(num_requests, is_group);
      fmt::print(
          "{{\"bench\":\"scheduler\",\"requests\":{},\"prompts\":\"{}\",\"steps\":{},"
          "\"enqueue_us\":{:.2f},\"step_us_median\":{:.1f},\"step_us_max\":{:.1f},"
          "\"us_per_row\":{:.3f}}}\n",
          num_requests, is_group ? "equal" : "distinct", times.num_steps, times.enqueue_us,
          times.median_us, times.max_us, times.us_per_token);
    }
  }
}

int Main(std::span<char*> args) {
  const std::string_view what = args.size() > 1 ? args[1] : "";
  const auto number = [&](size_t i, int otherwise) {
    return args.size() > i ? std::atoi(args[i]) : otherwise;
  };
  if (what == "logits") {
    BenchLogits(number(2, NumUsableThreads()));
  } else if (what == "scheduler") {
    BenchScheduler();
  } else {
    fmt::print(stderr, "usage: engine_bench logits [threads] | scheduler\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
