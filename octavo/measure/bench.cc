#include "octavo/measure/bench.h"

#include <algorithm>
#include <future>
#include <nlohmann/json.hpp>
#include <utility>

#include "octavo/kernels/machine_peaks.h"
#include "octavo/measure/bench_pass.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

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

// What one row is made from.
struct RowSamples {
  std::vector<double> prefill_s;      // A prefill each.
  std::vector<double> decode_s;       // All decode steps of a repeat each.
  std::vector<double> read_gb_per_s;  // A pass over the weights each.
};

// Everything that runs on the engine's thread. One thread.
class Bench {
 public:
  Bench(const ModelWeights& weights, Backend& backend, const BenchOptions& options,
        BenchReport* report)
      : weights_(weights), backend_(backend), options_(options), report_(*report) {}

  Status Run(const ModelSpec& spec, std::string_view format, Isa isa) {
    const int64_t max_batch = *std::max_element(options_.batches.begin(), options_.batches.end());
    ASSIGN_OR_RETURN(model_, MakeModel(spec, &backend_,
                                       {.max_tokens = std::max(options_.chunk_tokens, max_batch),
                                        .max_logit_rows = max_batch,
                                        .max_context = options_.input_len + options_.output_len}));
    parts_ = StepWeightBytes(spec, weights_);
    report_.weight_bytes_per_step = TotalBytes(parts_);
    report_.ops_per_token = LinearOps(spec, 1, 1);
    Say("matrix peak");
    ASSIGN_OR_RETURN(const double flop_per_s,
                     MeasureMatrixPeak(isa, &backend_.pool(), kPeakSeconds));
    report_.machine.matrix_tflop_per_s = flop_per_s * 1e-12;
    std::vector<double> reads;
    for (const int64_t batch : options_.batches) {
      ASSIGN_OR_RETURN(const RowSamples samples, Measure(batch));
      AddRow(spec, format, batch, samples);
      reads.insert(reads.end(), samples.read_gb_per_s.begin(), samples.read_gb_per_s.end());
    }
    report_.machine.read_gb_per_s = Percentile(reads, 50.0);
    return OkStatus();
  }

 private:
  void Say(std::string_view what) const {
    if (options_.on_progress) {
      options_.on_progress(what);
    }
  }

  Result<RowSamples> Measure(int64_t batch) {
    const BenchShape shape = {.batch = batch,
                              .input_len = options_.input_len,
                              .output_len = options_.output_len,
                              .chunk_tokens = options_.chunk_tokens};
    ASSIGN_OR_RETURN(BenchPass pass, BenchPass::Make(model_.get(), &weights_, shape));
    RowSamples samples;
    double prefill_total_s = 0.0;
    for (int64_t repeat = 0; repeat < options_.repeats; ++repeat) {
      if (repeat == 0 || prefill_total_s < kPrefillSecondsMax) {
        Say(fmt::format("batch {}: prefill {}/{}", batch, repeat + 1, options_.repeats));
        ASSIGN_OR_RETURN(const double seconds, pass.Prefill());
        samples.prefill_s.push_back(seconds);
        prefill_total_s += seconds;
      }
      Say(fmt::format("batch {}: decode {}/{}", batch, repeat + 1, options_.repeats));
      double decode_s = 0.0;
      for (int64_t step_idx = 0; step_idx < options_.output_len; ++step_idx) {
        if (step_idx % kStepsPerRead == 0) {
          samples.read_gb_per_s.push_back(MeasureReadBandwidth(parts_, &backend_.pool()) * 1e-9);
        }
        ASSIGN_OR_RETURN(const double seconds, pass.DecodeStep(step_idx));
        decode_s += seconds;
      }
      samples.decode_s.push_back(decode_s);
    }
    return samples;
  }

  void AddRow(const ModelSpec& spec, std::string_view format, int64_t batch,
              const RowSamples& samples) {
    const auto rates = [](std::span<const double> seconds, int64_t tokens) {
      std::vector<double> per_s;
      for (const double s : seconds) {
        per_s.push_back(static_cast<double>(tokens) / s);
      }
      return SpreadOf(per_s);
    };
    BenchRow& row = report_.rows.emplace_back();
    row.format = format;
    row.batch = batch;
    row.input_len = options_.input_len;
    row.output_len = options_.output_len;
    row.prefill_tok_per_s = rates(samples.prefill_s, batch * options_.input_len);
    row.decode_tok_per_s = rates(samples.decode_s, batch * options_.output_len);
    const double steps_per_s = row.decode_tok_per_s.median / static_cast<double>(batch);
    row.share_of_read_bandwidth = static_cast<double>(report_.weight_bytes_per_step) * 1e-9 *
                                  steps_per_s / Percentile(samples.read_gb_per_s, 50.0);
    const int64_t prefill_ops = LinearOps(spec, batch * options_.input_len, batch);
    row.share_of_matrix_peak = static_cast<double>(prefill_ops) * 1e-12 /
                               Percentile(samples.prefill_s, 50.0) /
                               report_.machine.matrix_tflop_per_s;
  }

  const ModelWeights& weights_;
  Backend& backend_;
  const BenchOptions& options_;
  BenchReport& report_;
  std::unique_ptr<Model> model_;
  std::vector<std::span<const std::byte>> parts_;
};

}  // namespace

Result<BenchReport> BenchModel(ServingOptions options, const BenchOptions& bench) {
  RETURN_IF_ERROR(CheckOptions(bench));
  // The engine only lends its weights and backend: the pages measured are those of BenchPass.
  options.engine.max_total_tokens = 4 * kPageTokens;
  options.engine.context_length = 2 * kPageTokens;
  options.engine.max_running_requests = 1;
  options.engine.chunk_tokens = kPageTokens;
  ASSIGN_OR_RETURN(const std::unique_ptr<Serving> serving, StartServing(options));

  const Isa isa = options.isa.value_or(BestIsa());
  BenchReport report;
  report.model_dir = options.model_dir;
  report.machine.backend = serving->backend_name;
  report.machine.num_threads = serving->num_threads;
  std::promise<Status> finished;
  serving->engine->RunBetweenSteps([&](const ModelWeights& live, Backend& backend) {
    Bench run(live, backend, bench, &report);
    finished.set_value(run.Run(serving->spec, WeightFormatName(serving->table.format), isa));
  });
  RETURN_IF_ERROR(finished.get_future().get());
  return report;
}

std::string BenchReportText(const BenchReport& report) {
  const BenchMachine& machine = report.machine;
  std::string text = fmt::format(
      "{}: {:.2f} GB of weights a step, {:.2f} GFLOP a token\n"
      "{}, {} threads: read {:.1f} GB/s, matrix peak {:.2f} TFLOP/s\n\n"
      "{:<8} {:>5} {:>6} {:>6} {:>14} {:>17} {:>13} {:>17} {:>8} {:>8}\n",
      report.model_dir, static_cast<double>(report.weight_bytes_per_step) * 1e-9,
      static_cast<double>(report.ops_per_token) * 1e-9, machine.backend, machine.num_threads,
      machine.read_gb_per_s, machine.matrix_tflop_per_s, "format", "batch", "input", "output",
      "prefill tok/s", "(min .. max)", "decode tok/s", "(min .. max)", "% peak", "% read");
  const auto range = [](const Spread& spread) {
    return fmt::format("({:.1f} .. {:.1f})", spread.min, spread.max);
  };
  for (const BenchRow& row : report.rows) {
    text += fmt::format(
        "{:<8} {:>5} {:>6} {:>6} {:>14.1f} {:>17} {:>13.1f} {:>17} {:>8.1f} {:>8.1f}\n", row.format,
        row.batch, row.input_len, row.output_len, row.prefill_tok_per_s.median,
        range(row.prefill_tok_per_s), row.decode_tok_per_s.median, range(row.decode_tok_per_s),
        100.0 * row.share_of_matrix_peak, 100.0 * row.share_of_read_bandwidth);
  }
  return text;
}

std::string BenchReportJson(const BenchReport& report) {
  Json json = {{"model", report.model_dir},
               {"machine",
                {{"read_gb_per_s", report.machine.read_gb_per_s},
                 {"matrix_tflop_per_s", report.machine.matrix_tflop_per_s},
                 {"backend", report.machine.backend},
                 {"threads", report.machine.num_threads}}},
               {"weight_bytes_per_step", report.weight_bytes_per_step},
               {"ops_per_token", report.ops_per_token}};
  json["rows"] = Json::array();
  for (const BenchRow& row : report.rows) {
    json["rows"].push_back(
        {{"format", row.format},
         {"batch", row.batch},
         {"input_len", row.input_len},
         {"output_len", row.output_len},
         {"prefill_tok_per_s", row.prefill_tok_per_s.median},
         {"prefill_tok_per_s_range", {row.prefill_tok_per_s.min, row.prefill_tok_per_s.max}},
         {"decode_tok_per_s", row.decode_tok_per_s.median},
         {"decode_tok_per_s_range", {row.decode_tok_per_s.min, row.decode_tok_per_s.max}},
         {"share_of_read_bandwidth", row.share_of_read_bandwidth},
         {"share_of_matrix_peak", row.share_of_matrix_peak}});
  }
  return json.dump();
}

}  // namespace octavo
