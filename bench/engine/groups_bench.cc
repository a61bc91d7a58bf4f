// The whole engine under a batch of requests: distinct prompts against groups of samples.

#include <fmt/core.h>

#include <condition_variable>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

#include "bench/engine/rollout_bench.h"
#include "octavo/base/random.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

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
    request.sink = sink;
    Must(engine.Submit(std::move(request)));
  }
  countdown.Wait();
  return Now() - start;
}

}  // namespace

void BenchGroups(ShapeArgs args, const GroupsArgs& groups) {
  constexpr int64_t kPromptLen = 128;
  constexpr int64_t kNumNew = 128;
  const int64_t num_requests = groups.num_groups * groups.group_size;
  args.max_total_tokens = num_requests * (kPromptLen + kNumNew) * 5 / 4;
  const std::unique_ptr<Serving> serving = StartShape(args);
  // Prompts alone: their rate, and every page of the pool has been touched once.
  const int64_t warm_len = args.max_total_tokens / num_requests - 1;
  const double prefill_s = RunBatch(*serving->engine, {.num_requests = num_requests,
                                                       .num_prompts = num_requests,
                                                       .prompt_len = warm_len,
                                                       .num_new = 1,
                                                       .seed = 1});
  const double prefill_rate = static_cast<double>(num_requests * warm_len) / prefill_s;
  for (const int64_t num_prompts : {num_requests, groups.num_groups}) {
    const BatchArgs batch = {.num_requests = num_requests,
                             .num_prompts = num_prompts,
                             .prompt_len = kPromptLen,
                             .num_new = kNumNew,
                             .seed = 2 + static_cast<uint64_t>(num_prompts)};
    const EngineStats before = serving->engine->Stats();
    const double seconds = RunBatch(*serving->engine, batch);
    const EngineStats after = serving->engine->Stats();
    const auto num_tokens = static_cast<double>(batch.num_requests * batch.num_new);
    fmt::print(
        "{{\"bench\":\"groups\",\"shape\":\"{}\",\"format\":\"{}\",{},\"backend\":\"{}\","
        "\"requests\":{},\"prompts\":{},\"cached_tokens\":{},\"seconds\":{:.2f},"
        "\"output_tok_per_s\":{:.1f},\"prefill_tok_per_s\":{:.1f}}}\n",
        args.shape, args.format, ArithmeticJson(*serving), serving->backend_name,
        batch.num_requests, num_prompts, after.cached_tokens_total - before.cached_tokens_total,
        seconds, num_tokens / seconds, prefill_rate);
    std::fflush(stdout);
  }
}

}  // namespace octavo
