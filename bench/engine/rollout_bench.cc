// The whole engine on random weights of a folder under bench/shapes. One JSON object a line.
//
//   rollout_bench logprobs SHAPE FORMAT [pairs] [threads]
//       output logprobs against none: decode steps, forward pass and sampling, in pairs
//   rollout_bench groups SHAPE FORMAT [groups] [size] [threads]
//       distinct prompts, then groups of samples of one prompt: output tokens a second; before
//       both, prompts alone
//   rollout_bench digest SHAPE FORMAT [rounds] [threads]
//       the digest of all live weights, against plain reads of them before and after

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <future>
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
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/request.h"
#include "octavo/engine/sequence.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/machine_peaks.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/live_digest.h"
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

std::unique_ptr<Serving> StartShape(const std::string& shape, std::string_view format,
                                    int num_threads, int64_t max_total_tokens = 32768) {
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
  options.engine.max_total_tokens = max_total_tokens;
  return Must(StartServing(options));
}

// Of the median: robust where other programs run beside. The bound is an order statistic: its rank
// is that of the normal approximation of the binomial.
struct Cost {
  double median = 0.0;
  double upper_95 = 0.0;
};
Cost CostOf(std::vector<double> ratios) {
  std::ranges::sort(ratios);
  const auto count = static_cast<double>(ratios.size());
  const double rank = count / 2.0 + 1.645 * std::sqrt(count) / 2.0;
  return {.median = ratios[ratios.size() / 2],
          .upper_95 = ratios[std::min(ratios.size() - 1, static_cast<size_t>(std::ceil(rank)))]};
}

// Decode steps of a batch at one position, over and over: forward pass, logits, sampling at
// temperature 1, with and without logprobs.
class DecodeSteps {
 public:
  DecodeSteps(const ModelSpec& spec, const ModelWeights& weights, Backend& backend, int64_t batch)
      : weights_(weights),
        model_(Must(MakeModel(spec, &backend,
                              {.max_tokens = batch, .max_logit_rows = batch, .max_context = 128}))),
        pool_(batch * kPagesPerSequence),
        sequences_(static_cast<size_t>(batch)),
        pass_(model_.get(), batch, {}) {
    Must(pool_.AllocateMemory(spec, backend));
    for (size_t i = 0; i < sequences_.size(); ++i) {
      Sequence& sequence = sequences_[i];
      sequence.seed = i;
      sequence.tokens = {1};
      sequence.prompt_len = 1;
      for (int64_t page = 0; page < kPagesPerSequence; ++page) {
        sequence.pages.push_back(pool_.Allocate());
      }
      token_ids_.push_back(static_cast<int32_t>(i));
      positions_.push_back(static_cast<int32_t>(kPosition));
      segments_.push_back({.first_row = static_cast<int64_t>(i),
                           .num_rows = 1,
                           .first_position = kPosition,
                           .page_table = sequence.pages});
      tasks_.push_back({.sequence = &sequence,
                        .row = static_cast<int32_t>(i),
                        .position = kPosition + 1,
                        .sample = true});
    }
  }

  // Seconds.
  double Step(bool return_logprob) {
    for (Sequence& sequence : sequences_) {
      sequence.request.return_logprob = return_logprob;
    }
    logprobs_.clear();
    const double start = Now();
    Must(model_->Forward({.token_ids = token_ids_, .positions = positions_, .segments = segments_},
                         weights_, pool_.layers()));
    Must(pass_.Run(tasks_, weights_, [&](const RowTask& /*task*/, RowResult& result) {
      if (return_logprob) {
        logprobs_.push_back(result.chosen);
      }
    }));
    return Now() - start;
  }

 private:
  static constexpr int64_t kPagesPerSequence = 4;
  static constexpr int64_t kPosition = 100;

  const ModelWeights& weights_;
  std::unique_ptr<Model> model_;
  PagePool pool_;
  std::vector<Sequence> sequences_;
  LogitsPass pass_;
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<Segment> segments_;
  std::vector<RowTask> tasks_;
  std::vector<TokenLogprob> logprobs_;
};

void BenchLogprobs(const std::string& shape, std::string_view format, int num_pairs,
                   int num_threads) {
  const std::unique_ptr<Serving> serving = StartShape(shape, format, num_threads);
  const auto measure = [&](const ModelWeights& live, Backend& backend) {
    for (const int64_t batch : {1, 16, 64}) {
      DecodeSteps steps(serving->spec, live, backend, batch);
      steps.Step(false);
      steps.Step(true);
      std::vector<double> ratios;
      std::vector<double> seconds;
      for (int pair = 0; pair < num_pairs; ++pair) {
        double times[2] = {};  // Without, with; which comes first alternates.
        for (const int turn : {0, 1}) {
          const bool with = (pair % 2 == 0) == (turn == 0);
          times[with ? 1 : 0] = steps.Step(with);
        }
        ratios.push_back(times[1] / times[0] - 1.0);
        seconds.push_back(times[0]);
      }
      const Cost cost = CostOf(ratios);
      fmt::print(
          "{{\"bench\":\"logprobs\",\"shape\":\"{}\",\"format\":\"{}\",\"backend\":\"{}\","
          "\"batch\":{},\"pairs\":{},\"ms_per_step\":{:.2f},\"cost_median\":{:.4f},"
          "\"cost_upper_95\":{:.4f}}}\n",
          shape, format, serving->backend_name, batch, num_pairs, Median(seconds) * 1e3,
          cost.median, cost.upper_95);
      std::fflush(stdout);
    }
  };
  std::promise<void> finished;
  serving->engine->RunBetweenSteps([&](const ModelWeights& live, Backend& backend) {
    measure(live, backend);
    finished.set_value();
  });
  finished.get_future().wait();
}

void BenchGroups(const std::string& shape, std::string_view format, int64_t num_groups,
                 int64_t group_size, int num_threads) {
  constexpr int64_t kPromptLen = 128;
  constexpr int64_t kNumNew = 128;
  const int64_t num_requests = num_groups * group_size;
  const std::unique_ptr<Serving> serving =
      StartShape(shape, format, num_threads, num_requests * (kPromptLen + kNumNew) * 5 / 4);
  // Prompts alone: their rate, and nearly every page of the pool has been touched once.
  const double prefill_s = RunBatch(*serving->engine, {.num_requests = num_requests,
                                                       .num_prompts = num_requests,
                                                       .prompt_len = kPromptLen + kNumNew,
                                                       .num_new = 1,
                                                       .seed = 1});
  const double prefill_rate =
      static_cast<double>(num_requests * (kPromptLen + kNumNew)) / prefill_s;
  for (const int64_t num_prompts : {num_requests, num_groups}) {
    const BatchArgs args = {.num_requests = num_requests,
                            .num_prompts = num_prompts,
                            .prompt_len = kPromptLen,
                            .num_new = kNumNew,
                            .seed = 2 + static_cast<uint64_t>(num_prompts)};
    const EngineStats before = serving->engine->Stats();
    const double seconds = RunBatch(*serving->engine, args);
    const EngineStats after = serving->engine->Stats();
    const auto num_tokens = static_cast<double>(args.num_requests * args.num_new);
    fmt::print(
        "{{\"bench\":\"groups\",\"shape\":\"{}\",\"format\":\"{}\",\"backend\":\"{}\","
        "\"requests\":{},\"prompts\":{},\"cached_tokens\":{},\"seconds\":{:.2f},"
        "\"output_tok_per_s\":{:.1f},\"prefill_tok_per_s\":{:.1f}}}\n",
        shape, format, serving->backend_name, args.num_requests, num_prompts,
        after.cached_tokens_total - before.cached_tokens_total, seconds, num_tokens / seconds,
        prefill_rate);
    std::fflush(stdout);
  }
}

// What DigestLiveWeights reads.
std::vector<std::span<const std::byte>> MemoryOf(const ModelWeights& weights) {
  std::vector<std::span<const std::byte>> memory;
  for (const PackedMatrix& matrix : weights.matrices) {
    memory.push_back(matrix.codes.bytes());
    memory.push_back(matrix.scales.bytes());
  }
  return memory;
}

void BenchDigest(const std::string& shape, std::string_view format, int num_rounds,
                 int num_threads) {
  const std::unique_ptr<Serving> serving = StartShape(shape, format, num_threads);
  ThreadPool pool(num_threads > 0 ? num_threads : NumUsableThreads());
  const auto measure = [&](const ModelWeights& live, Backend& backend) {
    const std::vector<std::span<const std::byte>> memory = MemoryOf(live);
    double num_bytes = 0.0;
    for (const std::span<const std::byte> part : memory) {
      num_bytes += static_cast<double>(part.size());
    }
    std::vector<double> rates;
    std::vector<double> reads;
    std::vector<double> shares;
    double before = MeasureReadBandwidth(memory, &pool);
    for (int round = 0; round < num_rounds; ++round) {
      const double start = Now();
      Must(DigestLiveWeights(serving->table, live, backend, &pool).error());
      rates.push_back(num_bytes / (Now() - start));
      const double after = MeasureReadBandwidth(memory, &pool);
      reads.push_back(after);
      shares.push_back(rates.back() / (0.5 * (before + after)));
      before = after;
    }
    std::ranges::sort(shares);
    fmt::print(
        "{{\"bench\":\"digest\",\"shape\":\"{}\",\"format\":\"{}\",\"backend\":\"{}\","
        "\"threads\":{},\"rounds\":{},\"gb\":{:.3f},\"gb_per_s\":{:.2f},\"read_gb_per_s\":{:.2f},"
        "\"read_share\":{:.3f},\"read_share_quartiles\":[{:.3f},{:.3f}]}}\n",
        shape, format, serving->backend_name, pool.num_threads(), num_rounds, num_bytes / 1e9,
        Median(rates) / 1e9, Median(reads) / 1e9, shares[shares.size() / 2],
        shares[shares.size() / 4], shares[3 * shares.size() / 4]);
    std::fflush(stdout);
  };
  std::promise<void> finished;
  serving->engine->RunBetweenSteps([&](const ModelWeights& live, Backend& backend) {
    measure(live, backend);
    finished.set_value();
  });
  finished.get_future().wait();
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
  } else if (what == "digest" && args.size() > 3) {
    BenchDigest(args[2], args[3], number(4, 9), number(5, 0));
  } else {
    fmt::print(stderr,
               "usage: rollout_bench logprobs SHAPE FORMAT [pairs] [threads]\n"
               "       rollout_bench groups SHAPE FORMAT [groups] [size] [threads]\n"
               "       rollout_bench digest SHAPE FORMAT [rounds] [threads]\n");
    return 2;
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
