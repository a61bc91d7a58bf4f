#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <initializer_list>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/http_client.h"
#include "octavo/engine/engine.h"
#include "octavo/kernels/backend.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/serving.h"

namespace octavo {

namespace {

void AddComputeFlags(CLI::App& command, ServingFlags* flags) {
  command
      .add_option("--isa", flags->isa,
                  "CPU path: amx, avx512, avx2 or scalar; all give the same bits")
      ->group(kEngineGroup);
  command.add_option("--threads", flags->threads, "Compute threads; 0: all that may be used")
      ->check(CLI::Range(0, 4096))
      ->group(kEngineGroup);
  command
      .add_option("--load-format", flags->load_format,
                  "auto or safetensors, or dummy: random weights of the right shapes, from "
                  "config.json alone")
      ->check(CLI::IsMember({"auto", "safetensors", "dummy"}))
      ->group(kEngineGroup);
  command
      .add_option("--json-model-override-args", flags->config_overrides,
                  "JSON object merged into config.json: nested objects member by member, null "
                  "removes")
      ->group(kEngineGroup);
  command
      .add_option("--nvfp4-input-scale", flags->nvfp4_input_scale,
                  "Global scale of nvfp4 inputs: token (default), pow2 (1), static (the "
                  "checkpoint's), batch (of all requests in a step: they depend on each other)")
      ->check(CLI::IsMember({"token", "pow2", "static", "batch"}))
      ->group(kEngineGroup);
}

void AddCacheFlags(CLI::App& command, ServingFlags* flags) {
  EngineOptions& engine = flags->engine;
  command
      .add_option("--max-total-tokens", engine.max_total_tokens,
                  "Tokens of the KV cache; 0: from free memory")
      ->check(CLI::NonNegativeNumber)
      ->group(kEngineGroup);
  command
      .add_option("--kv-cache-bytes", engine.kv_cache_bytes,
                  "Memory of the KV cache, such as 4GiB, instead of tokens")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->group(kEngineGroup);
  command
      .add_option("--kv-cache-fraction", engine.kv_cache_fraction,
                  "Share of free memory that the KV cache takes, instead of tokens")
      ->check(CLI::Range(0.0, 1.0))
      ->group(kEngineGroup);
  command
      .add_option("--mem-fraction-static,--mem-fraction", flags->memory_fraction,
                  "Share of free memory that weights and KV cache take together")
      ->check(CLI::Range(0.0, 1.0))
      ->group(kEngineGroup);
  command
      .add_option("--kv-cache-dtype", engine.kv_cache_dtype,
                  "auto (bf16), bf16 or fp8_e4m3: half the memory, and other bits")
      ->transform(
          CLI::CheckedTransformer(std::map<std::string, DType>{{"auto", DType::kBf16},
                                                               {"bf16", DType::kBf16},
                                                               {"bfloat16", DType::kBf16},
                                                               {"fp8_e4m3", DType::kF8E4m3}})
              .description("auto|bf16|bfloat16|fp8_e4m3"))
      ->group(kEngineGroup);
}

void AddSchedulerFlags(CLI::App& command, EngineOptions& engine) {
  command
      .add_flag("--enable-return-routed-experts", engine.return_routed_experts,
                "Keep the experts of every token for requests with return_routed_experts")
      ->group(kEngineGroup);
  command
      .add_option("--max-running-requests", engine.max_running_requests,
                  "Sequences that are decoded together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kEngineGroup);
  command
      .add_option("--max-queued-requests", engine.max_queued_requests,
                  "Requests that may wait; 0: no bound")
      ->check(CLI::NonNegativeNumber)
      ->group(kEngineGroup);
  command
      .add_option("--chunked-prefill-size", engine.chunk_tokens,
                  "Tokens of one step, prefill chunks included; -1 or 0: the default, for chunks "
                  "change no bits")
      ->check(CLI::Range(int64_t{-1}, int64_t{1} << 30))
      ->capture_default_str()
      ->group(kEngineGroup);
  command
      .add_option("--context-length", engine.context_length,
                  "Longest sequence; 0: max_position_embeddings of the model")
      ->check(CLI::NonNegativeNumber)
      ->group(kEngineGroup);
  command.add_flag("!--disable-radix-cache", engine.prefix_cache, "Compute every prefix anew")
      ->group(kEngineGroup);
  command
      .add_option("--stale-prefix-versions", engine.stale_prefix_versions,
                  "For how many versions cached prefixes of earlier weights stay usable; 0: no KV "
                  "outlives its weights")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group(kEngineGroup);
  command
      .add_option("--random-seed", engine.random_seed,
                  "Where the seeds of requests without one begin; drawn when not given")
      ->group(kEngineGroup);
}

}  // namespace

std::string GivenFlag(const CLI::App& command, std::initializer_list<std::string_view> groups) {
  for (const CLI::Option* option : command.get_options()) {
    if (option->count() > 0 && std::ranges::find(groups, option->get_group()) != groups.end()) {
      return option->get_name(/*positional=*/false, /*all_options=*/true);
    }
  }
  return "";
}

void AddServingFlags(CLI::App& command, ServingFlags* flags, bool with_model) {
  CLI::Option* model = command.add_option("MODEL", flags->model, "Model folder in HF layout");
  model->required(with_model);
  AddPolicyFlags(command, &flags->policy);
  CLI::Option* format = command.get_option("--format");
  format->description(format->get_description() +
                      "; or with activations in BF16: w8a16 (fp8 at load, any 8-bit format as "
                      "stored), w4a16 (nvfp4)");
  AddComputeFlags(command, flags);
  AddCacheFlags(command, flags);
  AddSchedulerFlags(command, flags->engine);
}

Result<ServingOptions> ParseServing(const ServingFlags& flags) {
  ServingOptions options;
  options.model_dir = flags.model;
  PolicyFlags policy = flags.policy;
  if (const std::optional<WeightOnly> weight_only = ParseWeightOnly(policy.format)) {
    options.arithmetic.weight_only = *weight_only;
    policy.format = *weight_only == WeightOnly::kW8A16 ? "fp8" : "nvfp4";
  }
  ASSIGN_OR_RETURN(options.policy, ParsePolicy(policy));
  if (!flags.nvfp4_input_scale.empty()) {
    options.arithmetic.nvfp4_input_scale = ParseNvfp4InputScale(flags.nvfp4_input_scale);
    if (!options.arithmetic.nvfp4_input_scale.has_value()) {
      return InvalidArgument("--nvfp4-input-scale: expected token, pow2, static or batch, got {}",
                             flags.nvfp4_input_scale);
    }
  }
  if (!flags.isa.empty()) {
    options.isa = ParseIsa(flags.isa);
    if (!options.isa.has_value()) {
      return InvalidArgument("--isa: expected amx, avx512, avx2 or scalar, got {}", flags.isa);
    }
  }
  options.num_threads = flags.threads;
  options.load_format = flags.load_format == "dummy" ? LoadFormat::kDummy : LoadFormat::kAuto;
  options.config_overrides = flags.config_overrides;
  options.memory_fraction = flags.memory_fraction;
  options.engine = flags.engine;
  if (options.engine.chunk_tokens < 1) {
    options.engine.chunk_tokens = EngineOptions{}.chunk_tokens;
  }
  if (flags.memory_fraction > 0.0 &&
      (flags.engine.kv_cache_bytes > 0 || flags.engine.kv_cache_fraction > 0.0)) {
    return InvalidArgument(
        "--mem-fraction-static: expected none beside --kv-cache-bytes or --kv-cache-fraction");
  }
  return options;
}

void AddExamples(CLI::App& command, std::string_view examples) {
  command.footer("Examples:\n" + std::string(examples));
}

int ReportError(const Status& status) {
  fmt::print(stderr, "octavo: {}\n", status.message());
  switch (status.code()) {
    case StatusCode::kInvalidArgument:
    case StatusCode::kNotFound:
    case StatusCode::kCorrupt:
    case StatusCode::kUnsupported:
      return kExitBadInput;
    default:
      return kExitFailed;
  }
}

void PrintLine(std::string_view line) {
  fmt::print("{}\n", line);
  std::fflush(stdout);
}

bool IsUrl(std::string_view text) {
  return text.starts_with("http://") || text.starts_with("https://");
}

CLI::Option* AddApiKeyFlag(CLI::App& command, std::string* api_key) {
  return command
      .add_option("--api-key", *api_key,
                  "Key that the server asks for, its admin's where it has one")
      ->check([](const std::string& key) {
        return IsApiKey(key) ? std::string() : "expected printable ASCII without spaces";
      });
}

Result<HttpUrl> ParseServer(std::string_view url, const std::string& api_key) {
  ASSIGN_OR_RETURN(HttpUrl server, ParseHttpUrl(url));
  server.api_key = api_key;
  return server;
}

}  // namespace octavo
