#include "octavo/server/info.h"

#include <fmt/chrono.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/version.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/server/json_writer.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

std::string UtcNow() {
  const auto now = std::chrono::system_clock::now();
  const auto micros =
      std::chrono::duration_cast<std::chrono::microseconds>(now.time_since_epoch()).count();
  return fmt::format("{:%Y-%m-%dT%H:%M:%S}.{:06d}Z",
                     fmt::gmtime(std::chrono::system_clock::to_time_t(now)), micros % 1'000'000);
}

double Ratio(int64_t part, int64_t whole) {
  return whole > 0 ? static_cast<double>(part) / static_cast<double>(whole) : 0.0;
}

// The figures of /v1/loads, derived once for both of its forms.
struct Load {
  int64_t waiting_uncached_tokens = 0;  // Prompt tokens in flight that the pool does not hold yet.
  int64_t total_tokens = 0;
  double token_usage = 0.0;
  double cache_hit_rate = 0.0;
  double utilization = 0.0;
};

Load LoadOf(const InfoContext& info) {
  const EngineStats& stats = info.stats;
  Load load;
  if (stats.num_queued > 0) {
    load.waiting_uncached_tokens =
        std::max<int64_t>(info.live_prompt_tokens - stats.used_tokens, 0);
  }
  load.total_tokens = stats.used_tokens + load.waiting_uncached_tokens;
  load.token_usage = Ratio(stats.used_tokens, stats.max_total_tokens);
  load.cache_hit_rate = Ratio(stats.cached_tokens_total, stats.prompt_tokens_total);
  load.utilization = Ratio(stats.num_running, stats.max_running_requests);
  return load;
}

std::string_view FormatOf(const Serving& serving) { return WeightFormatName(serving.table.format); }

void WriteSections(JsonWriter& json, const InfoContext& info, const LoadSections& sections) {
  const EngineStats& stats = info.stats;
  if (sections.memory) {
    json.Key("memory").BeginObject();
    json.Field("weight_gb", static_cast<double>(info.serving->weight_bytes) / (1 << 30));
    json.Field("token_capacity", stats.max_total_tokens).EndObject();
  }
  if (sections.spec) {
    json.Key("spec").Null();
  }
  if (sections.lora) {
    json.Key("lora").Null();
  }
  if (sections.disagg) {
    json.Key("disagg").BeginObject().Field("mode", "null").EndObject();
  }
  if (sections.queues) {
    json.Key("queues").BeginObject().Field("waiting", stats.num_queued);
    json.Field("paused", stats.num_paused).EndObject();
  }
}

void WriteParallelism(JsonWriter& json, const InfoContext& info) {
  for (const std::string_view key :
       {"tp_size", "pp_size", "dp_size", "ep_size", "moe_dp_size", "num_gpus", "nnodes"}) {
    json.Field(key, 1);
  }
  json.Field("node_rank", 0);
  json.Field("load_balance_method", "round_robin");
  json.Field("disaggregation_mode", "null").Field("disaggregation_bootstrap_port", 8998);
  json.Field("encoder_only", false);
  json.Field("enable_return_routed_experts", info.stats.returns_routed_experts);
}

// What was asked for at the launch, and the limits that hold. Never a key, only whether there is
// one.
void WriteLaunch(JsonWriter& json, const ServerOptions& options) {
  json.Field("enable_memory_saver", options.enable_memory_saver);
  json.Field("enable_weights_cpu_backup", options.enable_weights_cpu_backup);
  json.Field("enable_metrics", true).Field("enable_deterministic_inference", true);
  json.Field("asks_for_api_key", !options.api_key.empty());
  json.Field("asks_for_admin_api_key", !options.admin_api_key.empty());
  json.Key("model_root");
  if (options.model_root.empty()) {
    json.Null();
  } else {
    json.Value(options.model_root);
  }
  json.Field("watchdog_timeout", options.stuck_seconds);
  const HttpLimits& limits = options.limits;
  json.Key("limits").BeginObject().Field("body_bytes", limits.body_bytes_max);
  json.Field("all_bodies_bytes", limits.all_bodies_bytes_max);
  json.Field("header_bytes", limits.header_bytes_max);
  json.Field("header_fields", limits.header_fields_max);
  json.Field("connections", limits.connections_max);
  json.Field("keep_alive_seconds", limits.idle_seconds);
  json.Field("header_seconds", limits.header_seconds).Field("body_seconds", limits.body_seconds);
  json.Field("body_bytes_per_second", limits.body_bytes_per_second_min);
  json.Field("write_stall_seconds", limits.write_stall_seconds).EndObject();
  for (const auto& [name, value] : options.launch) {
    json.Key(name).Raw(value);
  }
}

void WriteInternalState(JsonWriter& json, const InfoContext& info) {
  const EngineStats& stats = info.stats;
  json.Key("internal_states").BeginArray().BeginObject();
  json.Field("last_gen_throughput", stats.gen_tokens_per_s);
  json.Field("avg_spec_accept_length", 1.0);  // No speculation: one token a step.
  json.Field("num_running_reqs", stats.num_running).Field("num_waiting_reqs", stats.num_queued);
  json.Field("num_paused_reqs", stats.num_paused).Field("paused", stats.paused);
  json.Field("weights", WeightStateName(stats.weight_state));
  json.Field("kv_cache_released", stats.kv_released);
  json.Field("num_retractions_total", stats.num_retractions_total);
  json.Field("num_aborted_total", stats.num_aborted_total);
  json.Field("num_requests_total", stats.num_requests_total);
  json.Field("prompt_tokens_total", stats.prompt_tokens_total);
  json.Field("cached_tokens_total", stats.cached_tokens_total);
  json.Field("generation_tokens_total", stats.generated_tokens_total);
  json.Field("num_clamped_logprobs_total", info.num_clamped_logprobs);
  json.Field("heartbeat_age_s", stats.heartbeat_age_s);
  json.EndObject().EndArray();
}

}  // namespace

std::string ServedModelName(const InfoContext& info) {
  const std::string& name = info.options->served_model_name;
  return name.empty() ? info.serving->model_dir : name;
}

std::string ModelInfoJson(const InfoContext& info) {
  const Serving& serving = *info.serving;
  JsonWriter json;
  json.BeginObject().Field("model_path", serving.model_dir);
  json.Key("tokenizer_path");
  if (info.has_tokenizer) {
    json.Value(serving.model_dir);
  } else {
    json.Null();
  }
  json.Field("is_generation", true).Key("preferred_sampling_params").Null();
  json.Field("weight_version", info.stats.weight_version);
  json.Field("has_image_understanding", false).Field("has_audio_understanding", false);
  json.Field("model_type", serving.config.model_type);
  json.Key("architectures").BeginArray().Value(serving.config.architecture).EndArray();
  json.Field("recipe", serving.recipe).Field("emulated", serving.is_emulated);
  json.EndObject();
  return json.Take();
}

std::string ServerInfoJson(const InfoContext& info) {
  const Serving& serving = *info.serving;
  const ServerOptions& options = *info.options;
  const EngineStats& stats = info.stats;
  const int64_t longest = std::min(stats.context_length, stats.max_total_tokens);
  JsonWriter json;
  json.BeginObject().Field("model_path", serving.model_dir);
  json.Field("tokenizer_path", info.has_tokenizer ? serving.model_dir : std::string());
  json.Field("served_model_name", ServedModelName(info));
  json.Field("host", options.host).Field("port", options.port);
  json.Field("status", info.draining ? "stopping" : "ready");
  json.Field("device", "cpu").Field("dtype", "bfloat16");
  json.Key("quantization");
  if (serving.table.format == WeightFormat::kBf16) {
    json.Null();
  } else {
    json.Value(FormatOf(serving));
  }
  WriteParallelism(json, info);
  WriteLaunch(json, options);
  json.Field("context_length", stats.context_length);
  json.Field("max_running_requests", stats.max_running_requests);
  json.Field("max_total_tokens", stats.max_total_tokens);
  json.Field("max_total_num_tokens", stats.max_total_tokens);
  json.Field("max_prefill_tokens", stats.max_total_tokens);
  json.Field("max_req_input_len", longest - 1);
  json.Field("stream_interval", options.stream_interval);
  json.Field("incremental_streaming_output", options.incremental_streaming_output);
  json.Field("allow_auto_truncate", options.allow_auto_truncate);
  json.Field("weight_version", stats.weight_version);
  json.Field("vocab_size", serving.spec.vocab_size);
  json.Field("backend", serving.backend_name).Field("recipe", serving.recipe);
  json.Field("emulated", serving.is_emulated);
  json.Field("num_threads", serving.num_threads);
  json.Field("weight_format", FormatOf(serving)).Field("policy_hash", serving.table.Hash());
  json.Key("weight_digest");
  if (stats.weight_digest.has_value()) {
    json.Value(HashHex(*stats.weight_digest));
  } else {
    json.Null();
  }
  json.Field("kv_cache_dtype", serving.kv_cache_dtype == DType::kF8E4m3 ? "fp8_e4m3" : "bf16");
  json.Field("weight_bytes", serving.weight_bytes).Field("load_seconds", serving.load_seconds);
  json.Field("version", Version()).Key("kv_events").Null();
  WriteInternalState(json, info);
  json.EndObject();
  return json.Take();
}

std::string ModelCardJson(const InfoContext& info) {
  JsonWriter json;
  json.BeginObject().Field("id", ServedModelName(info)).Field("object", "model");
  json.Field("created", info.created_unix_s).Field("owned_by", "octavo");
  json.Field("root", info.serving->model_dir).Key("parent").Null();
  json.Field("max_model_len", info.stats.context_length).EndObject();
  return json.Take();
}

std::string ModelsJson(const InfoContext& info) {
  JsonWriter json;
  json.BeginObject().Field("object", "list").Key("data").BeginArray();
  json.Raw(ModelCardJson(info)).EndArray().EndObject();
  return json.Take();
}

Result<LoadSections> ParseLoadSections(std::string_view include) {
  LoadSections sections;
  while (!include.empty()) {
    const size_t comma = include.find(',');
    const std::string_view name = include.substr(0, comma);
    include = comma == std::string_view::npos ? std::string_view() : include.substr(comma + 1);
    if (name == "all") {
      sections = {true, true, true, true, true};
    } else if (name == "memory") {
      sections.memory = true;
    } else if (name == "spec") {
      sections.spec = true;
    } else if (name == "lora") {
      sections.lora = true;
    } else if (name == "disagg") {
      sections.disagg = true;
    } else if (name == "queues") {
      sections.queues = true;
    } else if (name != "core") {
      return InvalidArgument(
          "include: expected core, memory, spec, lora, disagg, queues or all, got \"{}\"", name);
    }
  }
  return sections;
}

std::string LoadsJson(const InfoContext& info, const LoadSections& sections) {
  const EngineStats& stats = info.stats;
  const Load load = LoadOf(info);
  const std::string now = UtcNow();
  JsonWriter json;
  json.BeginObject().Field("timestamp", now).Field("version", Version());
  json.Key("loads").BeginArray().BeginObject();
  json.Field("timestamp", now).Field("dp_rank", 0);
  json.Field("num_running_reqs", stats.num_running).Field("num_waiting_reqs", stats.num_queued);
  json.Field("num_waiting_uncached_tokens", load.waiting_uncached_tokens);
  json.Field("num_used_tokens", stats.used_tokens).Field("num_total_tokens", load.total_tokens);
  json.Field("max_total_num_tokens", stats.max_total_tokens);
  json.Field("max_running_requests", stats.max_running_requests);
  json.Field("token_usage", load.token_usage).Field("gen_throughput", stats.gen_tokens_per_s);
  json.Field("cache_hit_rate", load.cache_hit_rate).Field("utilization", load.utilization);
  WriteSections(json, info, sections);
  json.EndObject().EndArray();
  json.Key("aggregate").BeginObject().Field("total_tokens", load.total_tokens);
  json.Field("total_reqs", stats.num_running + stats.num_queued);
  json.Field("total_running_reqs", stats.num_running);
  json.Field("total_waiting_reqs", stats.num_queued).EndObject().EndObject();
  return json.Take();
}

std::string LoadsPrometheus(const InfoContext& info) {
  const EngineStats& stats = info.stats;
  const Load load = LoadOf(info);
  std::string model;  // A label value escapes as JSON does.
  AppendJsonString(model, ServedModelName(info));
  const std::string labels =
      fmt::format("{{model_name={},engine_type=\"unified\",dp_rank=\"0\"}}", model);
  std::string text;
  const auto gauge = [&](std::string_view name, double value) {
    text += fmt::format("# TYPE sglang:{0} gauge\nsglang:{0}{1} {2}\n", name, labels, value);
  };
  gauge("num_running_reqs", static_cast<double>(stats.num_running));
  gauge("num_queue_reqs", static_cast<double>(stats.num_queued));
  gauge("num_used_tokens", static_cast<double>(stats.used_tokens));
  gauge("max_total_num_tokens", static_cast<double>(stats.max_total_tokens));
  gauge("token_usage", load.token_usage);
  gauge("gen_throughput", stats.gen_tokens_per_s);
  gauge("cache_hit_rate", load.cache_hit_rate);
  return text;
}

}  // namespace octavo
