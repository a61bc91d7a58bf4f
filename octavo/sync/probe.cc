#include "octavo/sync/probe.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/engine/request.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

constexpr int64_t kMiB = int64_t{1} << 20;
// Rows of activations are held as FP32 at most, and once more in the form that a kernel reads.
constexpr int64_t kActivationBytes = 8;

int64_t InMiB(int64_t bytes) { return (bytes + kMiB - 1) / kMiB; }

int NumProbeThreads() { return std::max(1, NumUsableThreads() / 2); }

int64_t LongestOf(std::span<const ProbeSequence> sequences) {
  int64_t longest = 0;
  for (const ProbeSequence& sequence : sequences) {
    longest = std::max(longest, static_cast<int64_t>(sequence.input_ids.size()));
  }
  return longest;
}

// The options of the engine that scores. A sequence alone is cut into the same chunks as on the
// serving engine, for none is longer than the longest.
EngineOptions OptionsFor(const Serving& serving, std::span<const ProbeSequence> sequences) {
  const int64_t longest = LongestOf(sequences);
  EngineOptions options;
  options.max_total_tokens = (longest / kPageTokens + 1) * kPageTokens;
  options.kv_cache_dtype = serving.kv_cache_dtype;
  options.max_running_requests = 1;
  options.chunk_tokens = std::min(serving.chunk_tokens, longest);
  options.context_length = std::min(longest + 1, serving.engine->Stats().context_length);
  options.prefix_cache = false;
  options.random_seed = 0;
  return options;
}

// Widths of everything that a forward pass holds of one token.
int64_t ActivationWidth(const ModelSpec& spec) {
  const int64_t heads = spec.num_heads * std::max(spec.head_dim, spec.mla.kv_lora_rank) +
                        2 * spec.num_kv_heads * spec.head_dim;
  const int64_t experts = spec.moe.top_k * (2 * spec.moe.intermediate_size + 2 * spec.hidden_size) +
                          2 * spec.moe.shared_intermediate_size + spec.moe.num_experts;
  return 6 * spec.hidden_size + 3 * heads + 3 * spec.intermediate_size + experts;
}

// One value handed over from another thread.
template <typename T>
class Awaited {
 public:
  void Set(T value) {
    const std::lock_guard lock(mutex_);
    value_ = std::move(value);
    ready_.notify_one();
  }
  T Wait() {
    std::unique_lock lock(mutex_);
    ready_.wait(lock, [this] { return value_.has_value(); });
    return *std::move(value_);
  }

 private:
  std::mutex mutex_;
  std::condition_variable ready_;
  std::optional<T> value_;
};

// A request that is scored and generates nothing comes in one piece.
class OutputSink final : public RequestSink {
 public:
  void OnOutput(RequestOutput output) override {
    if (!output.input_logprobs.empty()) {
      input_logprobs_ = std::move(output.input_logprobs);
    }
    if (output.finish.type != FinishType::kNone) {
      output.input_logprobs = std::move(input_logprobs_);
      done_.Set(std::move(output));
    }
  }
  RequestOutput Wait() { return done_.Wait(); }

 private:
  std::vector<std::pair<std::optional<float>, int32_t>> input_logprobs_;  // The engine's thread.
  Awaited<RequestOutput> done_;
};

void GiveWeights(Engine& engine, std::unique_ptr<ModelWeights> weights) {
  const auto done = std::make_shared<Awaited<bool>>();
  engine.SwapWeights(std::move(weights), "probe", InFlight::kRetract,
                     [done](const SwapReport&, std::unique_ptr<ModelWeights>) { done->Set(true); });
  done->Wait();
}

std::unique_ptr<ModelWeights> TakeWeights(Engine& engine) {
  using Taken = Result<std::unique_ptr<ModelWeights>>;
  const auto done = std::make_shared<Awaited<Taken>>();
  engine.ReleaseMemory({.weights = true}, [done](Taken taken) { done->Set(std::move(taken)); });
  Taken taken = done->Wait();
  CHECK(taken.has_value());  // Nothing runs any more.
  return *std::move(taken);
}

Result<std::vector<float>> ScoreOne(Engine& engine, const ProbeSequence& sequence, size_t idx) {
  const auto sink = std::make_shared<OutputSink>();
  Request request;
  request.rid = fmt::format("probe-{}", idx);
  request.input_ids = sequence.input_ids;
  request.sampling.max_new_tokens = 0;
  request.return_logprob = true;
  request.logprob_start_len = sequence.first_scored() - 1;  // Its own entry is absent.
  request.sink = sink;
  if (const Status status = engine.Submit(std::move(request)); !status.ok()) {
    return status.WithContext(fmt::format("sequences[{}]", idx));
  }
  const RequestOutput output = sink->Wait();
  if (output.finish.type == FinishType::kError || output.finish.type == FinishType::kAbort) {
    return Corrupt("sequences[{}]: {}", idx, output.finish.message);
  }
  CHECK(output.input_logprobs.size() == sequence.logprobs.size() + 1);
  std::vector<float> scores;
  scores.reserve(sequence.logprobs.size());
  for (size_t i = 1; i < output.input_logprobs.size(); ++i) {
    CHECK(output.input_logprobs[i].first.has_value());
    scores.push_back(*output.input_logprobs[i].first);
  }
  return scores;
}

Status CheckSequence(const ProbeSequence& sequence, int64_t vocab_size, int64_t context_length) {
  const auto num_ids = static_cast<int64_t>(sequence.input_ids.size());
  if (sequence.logprobs.empty() || sequence.first_scored() < 1) {
    return InvalidArgument(
        "expected logprobs of 1 to {} last ones of its {} input_ids, for the first has none, got "
        "{}",
        num_ids - 1, num_ids, sequence.logprobs.size());
  }
  if (num_ids >= context_length) {
    return InvalidArgument("input_ids: expected fewer than {} (context length), got {}",
                           context_length, num_ids);
  }
  for (size_t i = 0; i < sequence.input_ids.size(); ++i) {
    if (sequence.input_ids[i] < 0 || sequence.input_ids[i] >= vocab_size) {
      return InvalidArgument("input_ids[{}]: expected a token id in [0, {}), got {}", i, vocab_size,
                             sequence.input_ids[i]);
    }
  }
  for (size_t i = 0; i < sequence.logprobs.size(); ++i) {
    if (!std::isfinite(sequence.logprobs[i]) || sequence.logprobs[i] > 0.0) {
      return InvalidArgument("logprobs[{}]: expected a finite number of at most 0, got {}", i,
                             sequence.logprobs[i]);
    }
  }
  return OkStatus();
}

std::string FiguresText(const ProbeFigures& figures) {
  return fmt::format(
      "sequence {}, position {}, token {}: expected {:.6f}, got {:.6f}; over {} tokens of {} "
      "sequences |dlogp| is {:.6g} in the mean and {:.6g} at most, k3 {:.6g}",
      figures.sequence, figures.position, figures.token_id, figures.expected, figures.got,
      figures.num_tokens, figures.num_sequences, figures.mean_dlogp, figures.max_dlogp, figures.k3);
}

}  // namespace

std::string ProbeBudget::Text() const {
  return fmt::format("{} MiB: {} kv, {} activations; available: {}", InMiB(TotalBytes()),
                     InMiB(kv_bytes), InMiB(activation_bytes),
                     available_bytes.has_value() ? fmt::format("{} MiB", InMiB(*available_bytes))
                                                 : std::string("unknown"));
}

Status CheckProbe(const Serving& serving, std::span<const ProbeSequence> sequences) {
  if (sequences.empty()) {
    return InvalidArgument("sequences: expected at least one, got none");
  }
  const int64_t context_length = serving.engine->Stats().context_length;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const Status status = CheckSequence(sequences[i], serving.spec.vocab_size, context_length);
    RETURN_IF_ERROR(status.WithContext(fmt::format("sequences[{}]", i)));
  }
  return OkStatus();
}

Result<ProbeBudget> PlanProbe(const Serving& serving, std::span<const ProbeSequence> sequences) {
  const ModelSpec& spec = serving.spec;
  const EngineOptions options = OptionsFor(serving, sequences);
  const KvShape kv = KvShapeOf(spec, options.kv_cache_dtype);
  const Result<int64_t> available = AvailableMemoryBytes();
  const int64_t page_bytes = spec.num_layers * serving.updater->live().backend().KvPageBytes(kv);
  const int64_t logit_rows = MaxLogitRows(spec.vocab_size, options.chunk_tokens);
  // The table of rotations has two FP32 values for each pair of a head's dimensions.
  const int64_t rope_bytes = options.context_length * kv.head_dim * int64_t{sizeof(float)};
  const ProbeBudget budget{
      .kv_bytes = options.max_total_tokens / kPageTokens * page_bytes,
      .activation_bytes = options.chunk_tokens * ActivationWidth(spec) * kActivationBytes +
                          logit_rows * spec.vocab_size * int64_t{sizeof(float)} + rope_bytes,
      .available_bytes = available.has_value() ? std::optional(*available) : std::nullopt};
  if (budget.available_bytes.has_value() && budget.TotalBytes() > *budget.available_bytes) {
    return Exhausted("the probe needs {} bytes ({}): send shorter sequences", budget.TotalBytes(),
                     budget.Text());
  }
  return budget;
}

Result<std::vector<std::vector<float>>> ScoreProbe(const Serving& serving,
                                                   std::span<const ProbeSequence> sequences,
                                                   std::unique_ptr<ModelWeights>* weights) {
  RETURN_IF_ERROR(CheckProbe(serving, sequences));
  ASSIGN_OR_RETURN(const ProbeBudget budget, PlanProbe(serving, sequences));
  LOG(INFO, "probe sequences={} memory=\"{}\"", sequences.size(), budget.Text());
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                   MakeCpuBackend(serving.isa, NumProbeThreads()));
  // It starts without weights: whatever fails here leaves them where they are.
  ASSIGN_OR_RETURN(const std::unique_ptr<Engine> engine,
                   Engine::Start(std::move(backend), serving.spec, std::make_unique<ModelWeights>(),
                                 serving.config.eos_token_ids, "", OptionsFor(serving, sequences)));
  GiveWeights(*engine, std::move(*weights));
  std::vector<std::vector<float>> scores;
  scores.reserve(sequences.size());
  Status status;
  for (size_t i = 0; i < sequences.size() && status.ok(); ++i) {
    Result<std::vector<float>> score = ScoreOne(*engine, sequences[i], i);
    status = score.error();
    if (score.has_value()) {
      scores.push_back(*std::move(score));
    }
  }
  *weights = TakeWeights(*engine);
  RETURN_IF_ERROR(status);
  return scores;
}

ProbeFigures CompareProbe(std::span<const ProbeSequence> sequences,
                          std::span<const std::vector<float>> scores) {
  CHECK(sequences.size() == scores.size());
  ProbeFigures figures{.num_sequences = static_cast<int64_t>(sequences.size())};
  double sum = 0.0;
  double sum_k3 = 0.0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const ProbeSequence& sequence = sequences[i];
    CHECK(scores[i].size() == sequence.logprobs.size());
    for (size_t j = 0; j < scores[i].size(); ++j) {
      const double got = scores[i][j];
      const double d = sequence.logprobs[j] - got;
      sum += std::abs(d);
      sum_k3 += std::expm1(d) - d;
      if (figures.num_tokens++ == 0 || std::abs(d) > figures.max_dlogp) {
        const int64_t position = sequence.first_scored() + static_cast<int64_t>(j);
        figures.max_dlogp = std::abs(d);
        figures.sequence = static_cast<int64_t>(i);
        figures.position = position;
        figures.token_id = sequence.input_ids[static_cast<size_t>(position)];
        figures.expected = sequence.logprobs[j];
        figures.got = got;
      }
    }
  }
  const auto count = static_cast<double>(std::max<int64_t>(figures.num_tokens, 1));
  figures.mean_dlogp = sum / count;
  figures.k3 = sum_k3 / count;
  return figures;
}

Status CheckLimits(const ProbeFigures& figures, const ProbeLimits& limits) {
  if (limits.max_dlogp.has_value() && !(figures.max_dlogp <= *limits.max_dlogp)) {
    return InvalidArgument("the probe failed: a |dlogp| of {:.6g} is above max_dlogp = {}; {}",
                           figures.max_dlogp, *limits.max_dlogp, FiguresText(figures));
  }
  if (limits.max_mean_dlogp.has_value() && !(figures.mean_dlogp <= *limits.max_mean_dlogp)) {
    return InvalidArgument(
        "the probe failed: the mean |dlogp|, {:.6g}, is above max_mean_dlogp = {}; largest at {}",
        figures.mean_dlogp, *limits.max_mean_dlogp, FiguresText(figures));
  }
  return OkStatus();
}

}  // namespace octavo
