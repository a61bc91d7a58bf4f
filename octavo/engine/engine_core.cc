#include "octavo/engine/engine_core.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/log.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/logits_pass.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/engine/request.h"
#include "octavo/engine/scheduler.h"
#include "octavo/engine/sequence.h"
#include "octavo/engine/validate.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

Result<PoolBudget> PoolFor(const EngineOptions& options, int64_t context_length,
                           int64_t token_bytes) {
  const Result<int64_t> available = AvailableMemoryBytes();
  return ChoosePool(
      {.max_total_tokens = options.max_total_tokens,
       .pool_bytes = options.kv_cache_bytes,
       .memory_fraction = options.kv_cache_fraction,
       .context_length = context_length,
       .max_running = options.max_running_requests,
       .token_bytes = token_bytes,
       .available_bytes = available.has_value() ? std::optional(*available) : std::nullopt});
}

// The cache in FP8 holds BF16 activations; those of the fp32 recipe are not rounded.
Status CheckKvDtype(DType dtype, const Backend& backend) {
  if (dtype != DType::kBf16 && dtype != DType::kF8E4m3) {
    return InvalidArgument("kv_cache_dtype: expected BF16 or F8_E4M3, got {}", DTypeName(dtype));
  }
  if (dtype == DType::kF8E4m3 && backend.activation_dtype() != DType::kBf16) {
    return Unsupported("kv_cache_dtype {} on the backend {}", DTypeName(dtype), backend.name());
  }
  return OkStatus();
}

Status CheckOptions(const EngineOptions& options, const ModelSpec& spec) {
  if (options.chunk_tokens < 1) {
    return InvalidArgument("chunk_tokens: expected at least 1, got {}", options.chunk_tokens);
  }
  if (options.max_running_requests < 1) {
    return InvalidArgument("max_running_requests: expected at least 1, got {}",
                           options.max_running_requests);
  }
  if (options.max_queued_requests < 0) {
    return InvalidArgument("max_queued_requests: expected 0 or more, got {}",
                           options.max_queued_requests);
  }
  if (options.stale_prefix_versions < 0) {
    return InvalidArgument("stale_prefix_versions: expected 0 or more, got {}",
                           options.stale_prefix_versions);
  }
  if (options.return_routed_experts && spec.moe.num_experts == 0) {
    return InvalidArgument("return_routed_experts: expected a mixture of experts, got {}",
                           spec.architecture);
  }
  if (options.context_length < 0 || options.context_length > spec.max_position_embeddings) {
    return InvalidArgument("context_length: expected a value in [0, {}], got {}",
                           spec.max_position_embeddings, options.context_length);
  }
  return OkStatus();
}

int64_t SecondOf(EngineClock::time_point time) {
  return std::chrono::duration_cast<std::chrono::seconds>(time.time_since_epoch()).count();
}

}  // namespace

Result<std::unique_ptr<EngineCore>> EngineCore::Create(Init init) {
  const EngineOptions& options = init.options;
  const ModelSpec& spec = *init.spec;
  RETURN_IF_ERROR(CheckOptions(options, spec));
  RETURN_IF_ERROR(CheckKvDtype(options.kv_cache_dtype, *init.backend));
  const int64_t context =
      options.context_length != 0 ? options.context_length : spec.max_position_embeddings;
  ASSIGN_OR_RETURN(std::unique_ptr<Model> model,
                   MakeModel(spec, init.backend.get(),
                             {.max_tokens = options.chunk_tokens,
                              .max_logit_rows = MaxLogitRows(spec.vocab_size, options.chunk_tokens),
                              .max_context = context}));
  const int64_t page_bytes =
      spec.num_layers * init.backend->KvPageBytes(KvShapeOf(spec, options.kv_cache_dtype));
  ASSIGN_OR_RETURN(const PoolBudget pool, PoolFor(options, context, page_bytes / kPageTokens));
  const RequestLimits limits = {.vocab_size = spec.vocab_size,
                                .context_length = context,
                                .max_total_tokens = pool.tokens,
                                .has_routed_experts = options.return_routed_experts,
                                .stale_prefix_versions = options.stale_prefix_versions};
  const DType kv_dtype = options.kv_cache_dtype;
  auto core = std::make_unique<EngineCore>(std::move(init), std::move(model), limits);
  RETURN_IF_ERROR(core->pool_.AllocateMemory(core->spec(), *core->backend_, kv_dtype));
  if (limits.has_routed_experts) {
    RETURN_IF_ERROR(core->pool_.AllocateExperts(core->spec()));
  }
  LOG(INFO,
      "engine backend={} kv_tokens={} kv_bytes={} kv_dtype={} kv_rule=\"{}\" context={} "
      "max_running={} chunk_tokens={}",
      core->backend_->name(), pool.tokens, pool.tokens / kPageTokens * page_bytes,
      DTypeName(kv_dtype), pool.rule, context, core->max_running_, core->tasks_.capacity());
  return core;
}

EngineCore::EngineCore(Init init, std::unique_ptr<Model> model, const RequestLimits& limits)
    : backend_(std::move(init.backend)),
      model_(std::move(model)),
      weights_(std::move(init.weights)),
      weight_version_(std::move(init.weight_version)),
      eos_token_ids_(std::move(init.eos_token_ids)),
      limits_(limits),
      max_running_(std::min(init.options.max_running_requests, init.options.chunk_tokens)),
      rids_(*init.rids),
      publish_(std::move(init.publish)),
      pool_(limits.max_total_tokens / kPageTokens),
      cache_(&pool_, init.options.prefix_cache, limits.stale_prefix_versions),
      scheduler_({.chunk_tokens = init.options.chunk_tokens,
                  .max_running = max_running_,
                  .stale_prefix_versions = limits.stale_prefix_versions},
                 &pool_, &cache_),
      logits_pass_(model_.get(), MaxLogitRows(limits.vocab_size, init.options.chunk_tokens),
                   eos_token_ids_),
      last_step_end_(EngineClock::now()) {
  tasks_.reserve(static_cast<size_t>(init.options.chunk_tokens));
  std::random_device entropy;
  seed_source_ = init.options.random_seed.value_or((uint64_t{entropy()} << 32) | entropy());
}

void EngineCore::Add(Request request, EngineClock::time_point submitted) {
  auto sequence = std::make_unique<Sequence>();
  sequence->arrival = next_arrival_++;
  sequence->prompt_len = static_cast<int64_t>(request.input_ids.size());
  sequence->submitted = submitted;
  sequence->held = held();
  if (request.sampling.seed.has_value()) {
    sequence->seed = static_cast<uint64_t>(*request.sampling.seed);
  } else {
    // 53 bits, so that the reported seed survives every JSON reader.
    const std::array<uint32_t, 4> words =
        Philox(seed_source_, static_cast<uint64_t>(sequence->arrival));
    sequence->seed = ((uint64_t{words[0]} << 32) | words[1]) >> 11;
  }
  sequence->tokens = std::move(request.input_ids);
  sequence->output.rid = request.rid;
  sequence->output.seed = static_cast<int64_t>(sequence->seed);
  sequence->output.prompt_tokens = sequence->prompt_len;
  sequence->scored = !request.return_logprob || request.logprob_start_len < 0;
  sequence->request = std::move(request);
  ++totals_.requests;
  totals_.prompt_tokens += sequence->prompt_len;
  Sequence* added = sequence.get();
  scheduler_.Enqueue(std::move(sequence));
  if (!added->request.version_demand.IsMet(weight_version_)) {
    EndVersionConflict(added);
  }
}

bool EngineCore::Step() {
  if (held()) {
    ReportSwaps();
    return false;
  }
  // While a draining swap waits, only what has begun goes on.
  const Admission admission = swaps_.empty() ? Admission::kAll : Admission::kStartedOnly;
  const StepPlan& plan = scheduler_.Plan(admission, EngineClock::now());
  ReportSwaps();
  if (plan.token_ids.empty()) {
    stepping_ = false;
    return false;
  }
  Status status = model_->Forward(
      {.token_ids = plan.token_ids, .positions = plan.positions, .segments = plan.segments},
      *weights_, pool_.layers());
  if (status.ok()) {
    CollectTasks(plan);
    if (pool_.experts().enabled()) {
      pool_.experts().Record(plan.segments, model_->RoutedExperts());
    }
    scheduler_.CommitPlan();
    status = logits_pass_.Run(tasks_, *weights_, [this](const RowTask& task, RowResult& result) {
      Deliver(task, result);
    });
  }
  totals_.computed_tokens += static_cast<int64_t>(plan.token_ids.size());
  Settle(plan, status);
  last_step_end_ = EngineClock::now();
  stepping_ = true;
  return true;
}

// The rows of a step whose logits somebody wants, in order.
void EngineCore::CollectTasks(const StepPlan& plan) {
  tasks_.clear();
  for (size_t i = 0; i < plan.sequences.size(); ++i) {
    AddTasks(plan.sequences[i], plan.segments[i]);
  }
}

void EngineCore::AddTasks(Sequence* sequence, const Segment& segment) {
  const Request& request = sequence->request;
  const int64_t end = segment.first_position + segment.num_rows;
  if (!sequence->scored) {
    RequestOutput& output = sequence->output;
    const int64_t start = request.logprob_start_len;
    if (output.input_logprobs.empty() && start < end && start < sequence->prompt_len) {
      // Nothing predicts the first scored position here: its logprob is absent.
      output.input_logprobs.emplace_back(std::nullopt,
                                         sequence->tokens[static_cast<size_t>(start)]);
      if (request.top_logprobs_num > 0) {
        output.input_top_logprobs.emplace_back();
      }
      if (!request.token_ids_logprob.empty()) {
        output.input_ids_logprobs.emplace_back();
      }
    }
    // The row at position p predicts the token at p + 1.
    const int64_t last = std::min(end, sequence->prompt_len - 1);
    for (int64_t p = std::max(segment.first_position, start); p < last; ++p) {
      const int64_t row = segment.first_row + p - segment.first_position;
      tasks_.push_back({.sequence = sequence,
                        .row = static_cast<int32_t>(row),
                        .position = p + 1,
                        .sample = false});
    }
  }
  const bool wants_token = request.sampling.max_new_tokens > 0 || request.return_logprob;
  if (end == sequence->num_tokens() && wants_token) {
    tasks_.push_back({.sequence = sequence,
                      .row = static_cast<int32_t>(segment.first_row + segment.num_rows - 1),
                      .position = end,
                      .sample = true});
  }
}

// Books one row's result. What follows from it - snapshots, endings - waits for Settle, since later
// rows of the step may belong to the same sequence.
void EngineCore::Deliver(const RowTask& task, RowResult& result) {
  Sequence& sequence = *task.sequence;
  if (sequence.output.finish.type != FinishType::kNone) {
    return;  // An earlier row of this step ended it.
  }
  if (!result.finite) {
    sequence.output.finish = {
        .type = FinishType::kError,
        .message = fmt::format("logits for position {} are not finite", task.position)};
    return;
  }
  if (task.sample) {
    DeliverSample(sequence, result);
  } else {
    DeliverScore(sequence, result);
  }
}

void EngineCore::DeliverScore(Sequence& sequence, RowResult& result) {
  RequestOutput& output = sequence.output;
  output.input_logprobs.emplace_back(result.chosen.logprob, result.chosen.id);
  if (sequence.request.top_logprobs_num > 0) {
    output.input_top_logprobs.push_back(std::move(result.top));
  }
  if (!sequence.request.token_ids_logprob.empty()) {
    output.input_ids_logprobs.push_back(std::move(result.ids));
  }
}

void EngineCore::DeliverSample(Sequence& sequence, RowResult& result) {
  sequence.scored = true;  // The whole prompt has run.
  const Request& request = sequence.request;
  RequestOutput& output = sequence.output;
  output.mixed_context = output.mixed_context || sequence.mixed;
  if (request.return_logprob) {
    output.new_logprobs.push_back(result.chosen);
    if (request.top_logprobs_num > 0) {
      output.new_top_logprobs.push_back(std::move(result.top));
    }
    if (!request.token_ids_logprob.empty()) {
      output.new_ids_logprobs.push_back(std::move(result.ids));
    }
  }
  if (request.sampling.max_new_tokens == 0) {
    output.finish.type = FinishType::kLength;  // Scoring: the logprob is all that was wanted.
    return;
  }
  const int32_t id = result.chosen.id;
  sequence.tokens.push_back(id);
  output.new_ids.push_back(id);
  if (output.versions.empty() || output.versions.back().version != weight_version_ ||
      output.versions.back().digest != weights_->digest) {
    output.versions.push_back(
        {.version = weight_version_, .num_tokens = 0, .digest = weights_->digest});
  }
  ++output.versions.back().num_tokens;
  ++totals_.generated_tokens;
  output.finish = TestFinish(sequence, id);
}

// The order of docs/api.md: budget, token ids, strings.
FinishReason EngineCore::TestFinish(Sequence& sequence, int32_t id) {
  const SamplingParams& params = sequence.request.sampling;
  if (sequence.num_generated() >= params.max_new_tokens) {
    return {.type = FinishType::kLength};
  }
  if (!params.ignore_eos &&
      (std::ranges::find(eos_token_ids_, id) != eos_token_ids_.end() ||
       std::ranges::find(params.stop_token_ids, id) != params.stop_token_ids.end())) {
    return {.type = FinishType::kStopToken, .matched_token = id};
  }
  if (sequence.request.stop_matcher != nullptr) {
    std::optional<std::string> matched = sequence.request.stop_matcher->OnToken(id);
    if (matched.has_value()) {
      return {.type = FinishType::kStopString, .matched_string = std::move(*matched)};
    }
  }
  return {};
}

// Books when the sequence started and when it had its newest token: a step brings at most one.
void EngineCore::ObserveTimes(Sequence& sequence, EngineClock::time_point now) {
  const auto seconds = [](EngineClock::duration duration) {
    return std::chrono::duration<double>(duration).count();
  };
  if (!std::exchange(sequence.queue_observed, true)) {
    latencies_.queue.Observe(seconds(sequence.first_scheduled - sequence.submitted));
  }
  if (sequence.num_generated() == sequence.tokens_observed) {
    return;
  }
  if (sequence.tokens_observed == 0) {
    latencies_.first_token.Observe(seconds(now - sequence.submitted));
  } else {
    latencies_.inter_token.Observe(seconds(now - sequence.last_token));
  }
  sequence.tokens_observed = sequence.num_generated();
  sequence.last_token = now;
}

// Ends and reports what the step brought about. A failed forward pass ends all its sequences.
void EngineCore::Settle(const StepPlan& plan, const Status& status) {
  const int64_t generated_before = rated_tokens_;
  const EngineClock::time_point now = EngineClock::now();
  for (Sequence* sequence : plan.sequences) {
    ObserveTimes(*sequence, now);
    FinishReason& finish = sequence->output.finish;
    if (!status.ok()) {
      finish = {.type = FinishType::kError, .message = status.message()};
    } else if (finish.type == FinishType::kNone && sequence->num_pending() == 0 &&
               sequence->request.sampling.max_new_tokens == 0) {
      finish.type = FinishType::kLength;  // A prefill without logprobs: no row was wanted.
    }
    if (finish.type != FinishType::kNone) {
      Finish(sequence);
    } else if (sequence->request.stream &&
               sequence->num_generated() - sequence->tokens_at_snapshot >=
                   sequence->request.stream_interval) {
      SendSnapshot(*sequence);
    }
  }
  rated_tokens_ = totals_.generated_tokens;
  token_rate_.Add(SecondOf(now), rated_tokens_ - generated_before);
}

// The figures that a snapshot takes from the sequence as it stands now.
void EngineCore::FillCounts(Sequence& sequence) const {
  RequestOutput& output = sequence.output;
  const EngineClock::time_point now = EngineClock::now();
  const EngineClock::time_point scheduled = sequence.started ? sequence.first_scheduled : now;
  output.completion_tokens = sequence.num_generated();
  output.weight_version =
      output.versions.empty() ? weight_version_ : output.versions.back().version;
  output.weight_digest = output.versions.empty() ? weights_->digest : output.versions.back().digest;
  output.queue_seconds = std::chrono::duration<double>(scheduled - sequence.submitted).count();
  output.e2e_seconds = std::chrono::duration<double>(now - sequence.submitted).count();
}

void EngineCore::SendSnapshot(Sequence& sequence) {
  FillCounts(sequence);
  RequestOutput snapshot = std::move(sequence.output);
  RequestOutput& next = sequence.output;
  next = RequestOutput();
  next.rid = snapshot.rid;
  next.seed = snapshot.seed;
  next.prompt_tokens = snapshot.prompt_tokens;
  next.cached_tokens = snapshot.cached_tokens;
  next.cached_tokens_stale = snapshot.cached_tokens_stale;
  next.num_retractions = snapshot.num_retractions;
  next.versions = snapshot.versions;
  next.mixed_context = snapshot.mixed_context;
  next.routed_experts = std::move(snapshot.routed_experts);  // Whole, with the last one.
  sequence.tokens_at_snapshot = sequence.num_generated();
  sequence.request.sink->OnOutput(std::move(snapshot));
}

// Takes out a sequence whose output.finish is set, and delivers its last output.
void EngineCore::Finish(Sequence* sequence) {
  if (sequence->output.finish.type == FinishType::kError) {
    scheduler_.Distrust(*sequence);
  }
  scheduler_.KeepExperts(sequence);
  const std::unique_ptr<Sequence> ended = scheduler_.Remove(sequence);
  CHECK(ended != nullptr);
  if (ended->output.finish.type == FinishType::kError) {
    LOG(WARNING, "request failed rid={} error=\"{}\"", ended->request.rid,
        ended->output.finish.message);
  }
  totals_.cached_tokens += ended->output.cached_tokens;
  totals_.stale_cached_tokens += ended->output.cached_tokens_stale;
  totals_.cache_hits += ended->output.cached_tokens > 0 ? 1 : 0;
  FillCounts(*ended);
  if (ended->output.finish.type == FinishType::kError) {
    ++totals_.failed;
  } else if (ended->output.finish.type != FinishType::kAbort &&
             ended->output.finish.type != FinishType::kVersionConflict) {
    latencies_.end_to_end.Observe(ended->output.e2e_seconds);
  }
  rids_.Erase(ended->request.rid);
  // Whoever hears of the end may ask for figures at once: they no longer count this request.
  if (publish_ != nullptr) {
    publish_();
  }
  ended->request.sink->OnOutput(std::move(ended->output));
}

}  // namespace octavo
