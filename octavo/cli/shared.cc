#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/engine/engine.h"
#include "octavo/kernels/backend.h"
#include "octavo/sync/serving.h"

namespace octavo {

void AddServingFlags(CLI::App& command, ServingFlags* flags, bool with_model) {
  CLI::Option* model = command.add_option("MODEL", flags->model, "Model folder in HF layout");
  model->required(with_model);
  AddPolicyFlags(command, &flags->policy);
  const std::string group = "Engine";
  command
      .add_option("--isa", flags->isa,
                  "CPU path: amx, avx512, avx2 or scalar; all give the same bits")
      ->group(group);
  command.add_option("--threads", flags->threads, "Compute threads; 0: all that may be used")
      ->check(CLI::Range(0, 4096))
      ->group(group);
  command
      .add_option("--load-format", flags->load_format,
                  "auto, or dummy: random weights of the right shapes, from config.json alone")
      ->check(CLI::IsMember({"auto", "dummy"}))
      ->group(group);
  EngineOptions& engine = flags->engine;
  command
      .add_option("--max-total-tokens", engine.max_total_tokens,
                  "Tokens of the KV cache; 0: from free memory")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command
      .add_option("--max-running-requests", engine.max_running_requests,
                  "Sequences that are decoded together")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--max-queued-requests", engine.max_queued_requests,
                  "Requests that may wait; 0: no bound")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command
      .add_option("--chunked-prefill-size", engine.chunk_tokens,
                  "Tokens of one step, prefill chunks included")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--context-length", engine.context_length,
                  "Longest sequence; 0: max_position_embeddings of the model")
      ->check(CLI::NonNegativeNumber)
      ->group(group);
  command.add_flag("!--disable-radix-cache", engine.prefix_cache, "Compute every prefix anew")
      ->group(group);
}

Result<ServingOptions> ParseServing(const ServingFlags& flags) {
  ServingOptions options;
  options.model_dir = flags.model;
  ASSIGN_OR_RETURN(options.policy, ParsePolicy(flags.policy));
  if (!flags.isa.empty()) {
    options.isa = ParseIsa(flags.isa);
    if (!options.isa.has_value()) {
      return InvalidArgument("--isa: expected amx, avx512, avx2 or scalar, got {}", flags.isa);
    }
  }
  options.num_threads = flags.threads;
  options.load_format = flags.load_format == "dummy" ? LoadFormat::kDummy : LoadFormat::kAuto;
  options.engine = flags.engine;
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

}  // namespace octavo
