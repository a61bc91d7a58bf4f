#include "octavo/measure/bench.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/machine_peaks.h"
#include "octavo/kernels/ops.h"
#include "octavo/measure/bench_pass.h"
#include "octavo/measure/stats.h"
#include "octavo/model/model.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

// Decode steps between two passes of plain reads.
constexpr int64_t kStepsPerRead = 4;
constexpr double kPeakSeconds = 1.0;
// More repeats of a prefill are not taken once it has run for so long.
constexpr double kPrefillSecondsMax = 60.0;

Status CheckOptions(const BenchOptions& options) {
  struct Bound {
    const char* name;
    int64_t value;
    int64_t max;
  };
  std::vector<Bound> bounds = {{"input-len", options.input_len, INT32_MAX},
                               {"output-len", options.output_len, INT32_MAX},
                               {"chunk-tokens", options.chunk_tokens, 65536},
                               {"repeats", options.repeats, 1000}};
  for (const int64_t batch : options.batches) {
    bounds.push_back({"batch", batch, 4096});
  }
  for (const Bound& bound : bounds) {
    if (bound.value < 1 || bound.value > bound.max) {
      return InvalidArgument("bench: expected {} in 1..{}, got {}", bound.name, bound.max,
                             bound.value);
    }
  }
  return options.batches.empty() ? InvalidArgument("bench: no batch size") : OkStatus();
}

// Seconds of one round: a prefill (unless it was left out) and all decode steps.
struct RoundTime {
  double prefill_s = 0.0;
  double decode_s = 0.0;
};

// One subject, measured on the thread of its idle engine. One thread calls.
class BenchRun {
 public:
  static Result<std::unique_ptr<BenchRun>> Start(BenchSubject subject, const BenchOptions& options);

  const Serving& serving() const { return *serving_; }
  const std::string& label() const { return label_; }

  Status BeginBatch(int64_t batch) {
    read_gb_per_s_.clear();
    ranges_before_ = ranges_;
    return OnEngine([&](const ModelWeights& weights, Backend&) -> Status {
      pass_.reset();
      ASSIGN_OR_RETURN(BenchPass pass, BenchPass::Make(model_.get(), &weights,
                                                       {.batch = batch,
                                                        .input_len = options_.input_len,
                                                        .output_len = options_.output_len,
                                                        .chunk_tokens = options_.chunk_tokens}));
      pass_ = std::make_unique<BenchPass>(std::move(pass));
      return OkStatus();
    });
  }
  Result<RoundTime> Round(bool with_prefill);
  void EndBatch() { pass_.reset(); }

  Result<double> MatrixPeak(Isa isa) {
    double flop_per_s = 0.0;
    RETURN_IF_ERROR(OnEngine([&](const ModelWeights&, Backend& backend) -> Status {
      ASSIGN_OR_RETURN(flop_per_s, MeasureMatrixPeak(isa, &backend.pool(), kPeakSeconds));
      return OkStatus();
    }));
    return flop_per_s;
  }
  double StepBytes(int64_t batch) const { return StepWeightBytes(serving_->spec, weights_, batch); }
  std::span<const double> read_gb_per_s() const { return read_gb_per_s_; }
  // Of this batch size.
  InputRanges nvfp4_inputs() const {
    return {.num_groups = ranges_.num_groups - ranges_before_.num_groups,
            .num_above = ranges_.num_above - ranges_before_.num_above,
            .num_below = ranges_.num_below - ranges_before_.num_below};
  }

 private:
  explicit BenchRun(const BenchOptions& options) : options_(options) {}

  Status OnEngine(const std::function<Status(const ModelWeights&, Backend&)>& body) {
    std::promise<Status> finished;
    serving_->engine->RunBetweenSteps([&](const ModelWeights& weights, Backend& backend) {
      finished.set_value(body(weights, backend));
    });
    return finished.get_future().get();
  }

  const BenchOptions& options_;
  std::string label_;
  std::unique_ptr<Serving> serving_;
  std::unique_ptr<Model> model_;
  StepWeights weights_;
  std::vector<std::span<const std::byte>> all_weights_;
  std::unique_ptr<BenchPass> pass_;
  std::vector<double> read_gb_per_s_;  // A pass over the weights each, of this batch size.
  InputRanges ranges_;                 // The backend's after the last round.
  InputRanges ranges_before_;
};

Result<std::unique_ptr<BenchRun>> BenchRun::Start(BenchSubject subject,
                                                  const BenchOptions& options) {
  // The engine only lends its weights and backend: the pages measured are those of BenchPass.
  EngineOptions& engine = subject.serving.engine;
  engine.max_total_tokens = 4 * kPageTokens;
  engine.context_length = 2 * kPageTokens;
  engine.max_running_requests = 1;
  engine.chunk_tokens = kPageTokens;
  auto run = std::unique_ptr<BenchRun>(new BenchRun(options));
  ASSIGN_OR_RETURN(run->serving_, StartServing(subject.serving));
  const Serving& serving = *run->serving_;
  run->label_ = subject.label.empty() ? std::string(WeightFormatName(serving.table.format))
                                      : std::move(subject.label);
  const int64_t max_batch = *std::ranges::max_element(options.batches);
  RETURN_IF_ERROR(run->OnEngine([&](const ModelWeights& weights, Backend& backend) -> Status {
    ASSIGN_OR_RETURN(run->model_,
                     MakeModel(serving.spec, &backend,
                               {.max_tokens = std::max(options.chunk_tokens, max_batch),
                                .max_logit_rows = max_batch,
                                .max_context = options.input_len + options.output_len}));
    run->weights_ = StepWeightsOf(serving.spec, weights);
    run->all_weights_ = run->weights_.All();
    return OkStatus();
  }));
  return run;
}

Result<RoundTime> BenchRun::Round(bool with_prefill) {
  RoundTime time;
  RETURN_IF_ERROR(OnEngine([&](const ModelWeights&, Backend& backend) -> Status {
    if (with_prefill) {
      ASSIGN_OR_RETURN(time.prefill_s, pass_->Prefill());
    }
    for (int64_t step_idx = 0; step_idx < options_.output_len; ++step_idx) {
      if (step_idx % kStepsPerRead == 0) {
        read_gb_per_s_.push_back(MeasureReadBandwidth(all_weights_, &backend.pool()) * 1e-9);
      }
      ASSIGN_OR_RETURN(const double seconds, pass_->DecodeStep(step_idx));
      time.decode_s += seconds;
    }
    ranges_ = backend.input_ranges();
    return OkStatus();
  }));
  return time;
}

Spread RatesOf(std::span<const double> seconds, int64_t tokens) {
  std::vector<double> per_s;
  per_s.reserve(seconds.size());
  for (const double s : seconds) {
    per_s.push_back(static_cast<double>(tokens) / s);
  }
  return SpreadOf(per_s);
}

// How much faster `seconds` is than `first`, round by round.
Spread RatiosOf(std::span<const double> first, std::span<const double> seconds) {
  std::vector<double> ratios;
  ratios.reserve(seconds.size());
  for (size_t i = 0; i < seconds.size(); ++i) {
    ratios.push_back(first[i] / seconds[i]);
  }
  return SpreadOf(ratios);
}

class Bench {
 public:
  Bench(const BenchOptions& options, std::vector<std::unique_ptr<BenchRun>> runs,
        BenchReport* report)
      : options_(options), runs_(std::move(runs)), report_(*report) {}

  Status Run(Isa isa) {
    const Serving& serving = runs_.front()->serving();
    report_.model_dir = serving.model_dir;
    report_.machine.backend = serving.backend_name;
    report_.machine.num_threads = serving.num_threads;
    report_.ops_per_token = LinearOps(serving.spec, 1, 1);
    Say("matrix peak");
    ASSIGN_OR_RETURN(const double flop_per_s, runs_.front()->MatrixPeak(isa));
    report_.machine.matrix_tflop_per_s = flop_per_s * 1e-12;
    for (const int64_t batch : options_.batches) {
      RETURN_IF_ERROR(MeasureBatch(batch));
    }
    report_.machine.read_gb_per_s = Percentile(reads_, 50.0);
    return OkStatus();
  }

 private:
  // Of one subject and batch size, a value a round.
  struct Samples {
    std::vector<double> prefill_s;
    std::vector<double> decode_s;
  };

  void Say(std::string_view what) const {
    if (options_.on_progress) {
      options_.on_progress(what);
    }
  }

  Status MeasureBatch(int64_t batch) {
    for (const std::unique_ptr<BenchRun>& run : runs_) {
      RETURN_IF_ERROR(run->BeginBatch(batch));
    }
    std::vector<Samples> samples(runs_.size());
    double prefill_s_max = 0.0;  // In all, of the slowest subject.
    for (int64_t round = 0; round < options_.repeats; ++round) {
      const bool with_prefill = round == 0 || prefill_s_max < kPrefillSecondsMax;
      for (size_t i = 0; i < runs_.size(); ++i) {
        const size_t idx = round % 2 == 0 ? i : runs_.size() - 1 - i;
        Say(fmt::format("batch {}, round {}/{}: {}", batch, round + 1, options_.repeats,
                        runs_[idx]->label()));
        ASSIGN_OR_RETURN(const RoundTime time, runs_[idx]->Round(with_prefill));
        if (with_prefill) {
          samples[idx].prefill_s.push_back(time.prefill_s);
        }
        samples[idx].decode_s.push_back(time.decode_s);
      }
      double slowest = 0.0;
      for (const Samples& sample : samples) {
        slowest = std::max(slowest, with_prefill ? sample.prefill_s.back() : 0.0);
      }
      prefill_s_max += slowest;
    }
    for (size_t i = 0; i < runs_.size(); ++i) {
      AddRow(*runs_[i], batch, samples[i], samples.front());
      runs_[i]->EndBatch();
    }
    return OkStatus();
  }

  void AddRow(const BenchRun& run, int64_t batch, const Samples& samples, const Samples& first) {
    BenchRow& row = report_.rows.emplace_back();
    row.format = run.label();
    row.recipe = run.serving().recipe;
    row.is_emulated = run.serving().is_emulated;
    row.nvfp4_inputs = run.nvfp4_inputs();
    row.batch = batch;
    row.input_len = options_.input_len;
    row.output_len = options_.output_len;
    row.weight_bytes_per_step = run.StepBytes(batch);
    row.prefill_tok_per_s = RatesOf(samples.prefill_s, batch * options_.input_len);
    row.decode_tok_per_s = RatesOf(samples.decode_s, batch * options_.output_len);
    row.prefill_ratio = RatiosOf(first.prefill_s, samples.prefill_s);
    row.decode_ratio = RatiosOf(first.decode_s, samples.decode_s);
    const double steps_per_s = row.decode_tok_per_s.median / static_cast<double>(batch);
    row.share_of_read_bandwidth =
        row.weight_bytes_per_step * 1e-9 * steps_per_s / Percentile(run.read_gb_per_s(), 50.0);
    const int64_t prefill_ops = LinearOps(run.serving().spec, batch * options_.input_len, batch);
    row.share_of_matrix_peak = static_cast<double>(prefill_ops) * 1e-12 /
                               Percentile(samples.prefill_s, 50.0) /
                               report_.machine.matrix_tflop_per_s;
    reads_.insert(reads_.end(), run.read_gb_per_s().begin(), run.read_gb_per_s().end());
  }

  const BenchOptions& options_;
  std::vector<std::unique_ptr<BenchRun>> runs_;
  BenchReport& report_;
  std::vector<double> reads_;
};

}  // namespace

Result<BenchReport> BenchModels(std::vector<BenchSubject> subjects, const BenchOptions& options) {
  RETURN_IF_ERROR(CheckOptions(options));
  if (subjects.empty()) {
    return InvalidArgument("bench: no model");
  }
  const Isa isa = subjects.front().serving.isa.value_or(BestIsa());
  std::vector<std::unique_ptr<BenchRun>> runs;
  for (BenchSubject& subject : subjects) {
    const std::string label = subject.label;
    Result<std::unique_ptr<BenchRun>> run = BenchRun::Start(std::move(subject), options);
    if (!run) {
      return label.empty() ? run.error() : run.error().WithContext(label);
    }
    runs.push_back(std::move(*run));
  }
  BenchReport report;
  RETURN_IF_ERROR(Bench(options, std::move(runs), &report).Run(isa));
  return report;
}

}  // namespace octavo
