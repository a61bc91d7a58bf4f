#include "octavo/server/metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <iterator>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include "octavo/base/version.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/histogram.h"
#include "octavo/engine/latencies.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/server/http.h"
#include "octavo/server/info.h"
#include "octavo/server/process_memory.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_change.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// Label values: backslash, quote and line feed are escaped, all else stands as it is.
void AppendLabelValue(std::string& out, std::string_view value) {
  out += '"';
  for (const char c : value) {
    if (c == '\n') {
      out += "\\n";
    } else {
      if (c == '\\' || c == '"') {
        out += '\\';
      }
      out += c;
    }
  }
  out += '"';
}

// Shortest digits that give back the same float64.
std::string NumberText(double value) {
  if (std::isnan(value)) {
    return "NaN";
  }
  if (std::isinf(value)) {
    return value > 0 ? "+Inf" : "-Inf";
  }
  return fmt::format("{}", value);
}

double Ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

// Hands a request's answer on and counts it once.
class CountingWriter final : public ResponseWriter,
                             public std::enable_shared_from_this<CountingWriter> {
 public:
  CountingWriter(WriterPtr writer, std::string_view route, std::shared_ptr<HttpCounts> counts)
      : writer_(std::move(writer)), route_(route), counts_(std::move(counts)) {
    counts_->Begin();
  }

  void Send(HttpResponse response) override {
    End(response.status);
    writer_->Send(std::move(response));
  }
  void StartStream() override { writer_->StartStream(); }
  void Write(std::string bytes) override { writer_->Write(std::move(bytes)); }
  void Finish() override {
    End(200);
    writer_->Finish();
  }
  int64_t PendingBytes() const override { return writer_->PendingBytes(); }
  void OnPeerGone(std::function<void()> callback) override {
    writer_->OnPeerGone([weak = weak_from_this(), callback = std::move(callback)] {
      if (const std::shared_ptr<CountingWriter> self = weak.lock()) {
        self->End(HttpCounts::kPeerGone);
      }
      callback();
    });
  }

 private:
  void End(int status) {
    if (!std::exchange(ended_, true)) {
      counts_->End(route_, status);
    }
  }

  WriterPtr writer_;
  std::string_view route_;
  std::shared_ptr<HttpCounts> counts_;
  bool ended_ = false;
};

void WriteEngineGauges(MetricsWriter& text, const EngineStats& stats) {
  text.Gauge("sglang:num_running_reqs", stats.num_running, "Requests that hold KV pages.");
  text.Gauge("sglang:num_queue_reqs", stats.num_queued, "Requests that wait for their turn.");
  text.Gauge("sglang:num_paused_reqs", stats.num_paused,
             "Requests held by a pause or by released memory.");
  text.Gauge("sglang:num_retracted_reqs", stats.num_retracted,
             "Waiting requests that ran before and gave their KV pages back.");
  text.Gauge("sglang:num_used_tokens", stats.used_tokens, "Tokens whose KV running requests hold.");
  text.Gauge("sglang:max_total_num_tokens", stats.max_total_tokens, "Tokens of the KV pool.");
  text.Gauge("sglang:token_usage", Ratio(stats.used_tokens, stats.max_total_tokens),
             "num_used_tokens as a share of max_total_num_tokens.");
  text.Gauge("sglang:cache_hit_rate", Ratio(stats.cached_tokens_total, stats.prompt_tokens_total),
             "Share of all prompt tokens so far that the prefix cache served.");
  text.Gauge("sglang:gen_throughput", stats.gen_tokens_per_s,
             "Generated tokens a second over the last five seconds.");
  text.Gauge("octavo:max_running_requests", stats.max_running_requests,
             "Requests that are decoded together at most.");
  text.Family("octavo:kv_pages", "gauge",
              "Pages of the KV pool: free, in the prefix cache (a request may hold them too), and "
              "held by requests alone.");
  text.Sample(stats.num_free_pages, {{"state", "free"}});
  text.Sample(stats.num_cached_pages, {{"state", "cached"}});
  text.Sample(stats.num_pages - stats.num_free_pages - stats.num_cached_pages, {{"state", "held"}});
  text.Gauge("octavo:paused", int64_t{stats.paused ? 1 : 0}, "1 while generation is paused.");
  text.Family("octavo:memory_released", "gauge",
              "1 while a part of the memory is given back to the system.");
  text.Sample(int64_t{stats.kv_released ? 1 : 0}, {{"part", "kv_cache"}});
  text.Sample(int64_t{stats.weight_state == WeightState::kReleased ? 1 : 0}, {{"part", "weights"}});
  text.Gauge("octavo:weights_live", int64_t{stats.weight_state == WeightState::kLive ? 1 : 0},
             "0 while requests are held because the weights are released or void.");
  text.Gauge("octavo:engine_heartbeat_age_seconds", stats.heartbeat_age_s,
             "Since the engine thread last looked for messages.");
}

void WriteEngineCounters(MetricsWriter& text, const MetricsContext& context) {
  const EngineStats& stats = context.info.stats;
  text.Counter("sglang:prompt_tokens_total", stats.prompt_tokens_total,
               "Prompt tokens of accepted requests.");
  text.Counter("sglang:generation_tokens_total", stats.generated_tokens_total, "Generated tokens.");
  text.Family("sglang:cached_tokens_total", "counter",
              "Prompt tokens that the prefix cache served, of requests that ended.");
  text.Sample(stats.cached_tokens_total, {{"cache_source", "device"}});
  text.Counter("octavo:stale_cached_tokens_total", stats.stale_cached_tokens_total,
               "Of those, tokens whose KV earlier weights computed (--stale-prefix-versions).");
  text.Counter("sglang:num_requests_total", stats.num_requests_total, "Accepted requests.");
  text.Counter("sglang:num_aborted_requests_total", stats.num_aborted_total, "Aborted requests.");
  text.Counter("sglang:num_retracted_requests_total", stats.num_retractions_total,
               "How often a request gave its KV pages back to be computed again.");
  text.Counter("octavo:version_conflicts_total", stats.num_version_conflicts_total,
               "Accepted requests that ended because the weights they demand were no longer live.");
  text.Counter("octavo:failed_requests_total", stats.num_failed_total,
               "Requests that ended in an error, such as logits that were not finite.");
  text.Counter("octavo:prefix_cache_hits_total", stats.num_cache_hits_total,
               "Ended requests that the prefix cache served at least one token to.");
  text.Counter("octavo:computed_tokens_total", stats.computed_tokens_total,
               "Tokens that forward passes ran.");
  const InputRanges& inputs = stats.nvfp4_inputs_total;
  text.Counter("octavo:nvfp4_input_groups_total", inputs.num_groups,
               "Groups of 16 activations that were quantized to NVFP4.");
  text.Family("octavo:nvfp4_input_groups_out_of_range_total", "counter",
              "Of those, groups whose scale saturated (above), or was subnormal or 0 (below).");
  text.Sample(inputs.num_above, {{"side", "above"}});
  text.Sample(inputs.num_below, {{"side", "below"}});
  text.Counter("octavo:clamped_logprobs_total", context.info.num_clamped_logprobs,
               "Logprobs that were not finite and were written as -1e30.");
  const EngineLatencies& latencies = context.latencies;
  text.WriteHistogram("sglang:time_to_first_token_seconds", latencies.first_token,
                      "From a request's submission to its first token.");
  text.WriteHistogram("sglang:inter_token_latency_seconds", latencies.inter_token,
                      "Between two tokens of a request.");
  text.WriteHistogram("sglang:e2e_request_latency_seconds", latencies.end_to_end,
                      "From a request's submission to its end, but for aborts and errors.");
  text.WriteHistogram("sglang:queue_time_seconds", latencies.queue,
                      "From a request's submission to its first step.");
}

void WriteUpdateGauges(MetricsWriter& text, const UpdateTotals& updates) {
  text.Family("sglang:weight_load_duration_seconds", "gauge",
              "From the begin of the last committed update of each source to its swap; 0: none.");
  text.Sample(updates.last_disk_seconds, {{"source", "disk"}});
  text.Sample(updates.last_push_seconds, {{"source", "push"}});
}

// Of the last update, by role of the weight: a label for each weight would be too many.
void WriteUpdateChanges(MetricsWriter& text, const Serving& serving) {
  const std::optional<CommitReport> last = serving.updater->LastCommit();
  if (!last.has_value()) {
    return;
  }
  std::map<std::string, WeightChange> by_role;
  for (size_t i = 0; i < last->changes.size(); ++i) {
    by_role[std::string(RoleName(serving.table.rows[i].role))] += last->changes[i];
  }
  const auto write = [&](const char* name, const char* help, int64_t WeightChange::* part,
                         int64_t WeightChange::* whole) {
    text.Family(name, "gauge", help);
    for (const auto& [role, change] : by_role) {
      text.Sample(Ratio(change.*part, change.*whole), {{"role", role}});
    }
  };
  write("octavo:weight_update_changed_share", "Codes that the last update changed.",
        &WeightChange::num_changed, &WeightChange::num_codes);
  write("octavo:weight_update_saturated_share",
        "Codes of the largest magnitude in the last update; more than about one a block: a scale "
        "is too small.",
        &WeightChange::num_saturated, &WeightChange::num_codes);
  write("octavo:weight_update_subnormal_scale_share",
        "Scales of the last update that are subnormal.", &WeightChange::num_subnormal_scales,
        &WeightChange::num_scales);
}

void WriteUpdateCounters(MetricsWriter& text, const UpdateTotals& updates) {
  text.Family("octavo:weight_updates_total", "counter",
              "Weight updates: committed, failed (from disk), dropped (aborted or displaced).");
  text.Sample(updates.num_committed, {{"outcome", "committed"}});
  text.Sample(updates.num_failed, {{"outcome", "failed"}});
  text.Sample(updates.num_dropped, {{"outcome", "dropped"}});
  text.Family("octavo:weight_update_seconds_total", "counter",
              "Time that committed updates took: put (quantizing and packing), seal (ledger and "
              "digest), commit (until the swap), and pause (between two steps).");
  text.Sample(updates.put_seconds, {{"phase", "put"}});
  text.Sample(updates.seal_seconds, {{"phase", "seal"}});
  text.Sample(updates.commit_seconds, {{"phase", "commit"}});
  text.Sample(updates.pause_seconds, {{"phase", "pause"}});
  text.Family("octavo:weight_update_bytes_total", "counter",
              "Bytes of committed updates: as received, and in their stored form.");
  text.Sample(updates.bytes_in, {{"form", "received"}});
  text.Sample(updates.bytes_staged, {{"form", "stored"}});
}

void WriteHttp(MetricsWriter& text, const HttpCounts& http) {
  text.Family("octavo:http_requests_total", "counter",
              "Requests by route and status: 499 for a peer that left before its answer, an empty "
              "route for a path that there is not.");
  for (const auto& [key, count] : http.answered()) {
    text.Sample(count, {{"route", std::string(key.route)}, {"status", std::to_string(key.status)}});
  }
}

void WriteProcess(MetricsWriter& text) {
  const ProcessMemory memory = ReadProcessMemory();
  text.Family("octavo:resident_memory_bytes", "gauge",
              "Memory of the process by kind, as /proc/self/status has it.");
  text.Sample(memory.anonymous_bytes, {{"kind", "anonymous"}});
  text.Sample(memory.file_bytes, {{"kind", "file"}});
  text.Sample(memory.shared_bytes, {{"kind", "shared"}});
  std::error_code error;
  const std::filesystem::directory_iterator files("/proc/self/fd", error);
  text.Gauge("octavo:open_files",
             error ? 0 : static_cast<int64_t>(std::distance(begin(files), end(files))),
             "Open file descriptors.");
}

void WriteProcessCounters(MetricsWriter& text) {
  rusage usage = {};
  getrusage(RUSAGE_SELF, &usage);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + 1e-6 * static_cast<double>(time.tv_usec);
  };
  text.Counter("octavo:cpu_seconds_total", seconds(usage.ru_utime) + seconds(usage.ru_stime),
               "CPU time of the process.");
}

}  // namespace

// --- MetricsWriter -------------------------------------------------------------------------------

void MetricsWriter::Family(std::string_view name, std::string_view type, std::string_view help) {
  family_ = name;
  fmt::format_to(std::back_inserter(text_), "# HELP {0} {1}\n# TYPE {0} {2}\n", name, help, type);
}

void MetricsWriter::AppendSample(std::string_view name, const MetricLabels& labels,
                                 std::string_view value) {
  text_ += name;
  char separator = '{';
  for (const MetricLabels* list : {&std::as_const(common_), &labels}) {
    for (const auto& [label, label_value] : *list) {
      text_ += separator;
      text_ += label;
      text_ += '=';
      AppendLabelValue(text_, label_value);
      separator = ',';
    }
  }
  if (separator == ',') {
    text_ += '}';
  }
  text_ += ' ';
  text_ += value;
  text_ += '\n';
}

void MetricsWriter::Sample(double value, const MetricLabels& labels) {
  AppendSample(family_, labels, NumberText(value));
}

void MetricsWriter::Sample(int64_t value, const MetricLabels& labels) {
  AppendSample(family_, labels, fmt::format("{}", value));
}

void MetricsWriter::Gauge(std::string_view name, double value, std::string_view help) {
  Family(name, "gauge", help);
  Sample(value);
}

void MetricsWriter::Gauge(std::string_view name, int64_t value, std::string_view help) {
  Family(name, "gauge", help);
  Sample(value);
}

void MetricsWriter::Counter(std::string_view name, double value, std::string_view help) {
  Family(name, "counter", help);
  Sample(value);
}

void MetricsWriter::Counter(std::string_view name, int64_t value, std::string_view help) {
  Family(name, "counter", help);
  Sample(value);
}

void MetricsWriter::WriteHistogram(std::string_view name, const Histogram& histogram,
                                   std::string_view help) {
  Family(name, "histogram", help);
  const std::string bucket = fmt::format("{}_bucket", name);
  int64_t below = 0;
  for (size_t i = 0; i < histogram.bounds().size(); ++i) {
    below += histogram.bucket_count(i);
    AppendSample(bucket, {{"le", NumberText(histogram.bounds()[i])}}, fmt::format("{}", below));
  }
  const std::string count = fmt::format("{}", histogram.count());
  AppendSample(bucket, {{"le", "+Inf"}}, count);
  AppendSample(fmt::format("{}_sum", name), {}, NumberText(histogram.sum()));
  AppendSample(fmt::format("{}_count", name), {}, count);
}

// -------------------------------------------------------------------------------------------------

WriterPtr CountRequest(WriterPtr writer, std::string_view route,
                       std::shared_ptr<HttpCounts> counts) {
  return std::make_shared<CountingWriter>(std::move(writer), route, std::move(counts));
}

std::string MetricsText(const MetricsContext& context) {
  const Serving& serving = *context.info.serving;
  const MetricLabels counter_labels = {{"model_name", ServedModelName(context.info)},
                                       {"engine_type", "unified"}};
  MetricLabels gauge_labels = counter_labels;
  for (const std::string_view rank : {"tp_rank", "pp_rank", "moe_ep_rank"}) {
    gauge_labels.emplace_back(rank, "0");
  }
  MetricsWriter text(gauge_labels);
  const UpdateTotals updates = serving.updater->Totals();
  WriteEngineGauges(text, context.info.stats);
  WriteUpdateGauges(text, updates);
  WriteUpdateChanges(text, serving);
  text.Gauge("octavo:http_requests_in_flight", context.http->in_flight(),
             "Requests that are not answered yet, this one included.");
  WriteProcess(text);
  text.Family("octavo:info", "gauge", "What is served; always 1.");
  text.Sample(int64_t{1}, {{"version", std::string(Version())},
                           {"backend", serving.backend_name},
                           {"recipe", serving.recipe},
                           {"weight_format", std::string(WeightFormatName(serving.table.format))},
                           {"weight_version", context.info.stats.weight_version}});
  text.SetCommon(counter_labels);
  WriteEngineCounters(text, context);
  WriteUpdateCounters(text, updates);
  WriteHttp(text, *context.http);
  WriteProcessCounters(text);
  return text.Take();
}

}  // namespace octavo
