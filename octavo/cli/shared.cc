#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"

namespace octavo {

void AddPolicyFlags(CLI::App& command, PolicyFlags* flags) {
  const std::string group = "Policy";
  command
      .add_option("--format", flags->format,
                  "Format of the linear weights: bf16, fp8, fp8-ue8m0, fp8-channel, "
                  "fp8-tensor, mxfp8 or nvfp4")
      ->group(group);
  command
      .add_option("--keep-first,--num-layers-at-start-in-bf16", flags->keep_first,
                  "Decoder layers at the start that stay BF16")
      ->group(group);
  command
      .add_option("--keep-last,--num-layers-at-end-in-bf16,--keep-last-n", flags->keep_last,
                  "Decoder layers at the end that stay BF16")
      ->group(group);
  command
      .add_option(
          "--keep,--extra-high-precision-layers-hf", flags->keep,
          "Modules that stay BF16: a dotted path, or a glob over the whole name if it holds "
          "a '*'; may be repeated")
      ->take_all()
      ->group(group);
  command
      .add_option("--scope", flags->scope,
                  "Which linear weights --format means: experts, mlp or all")
      ->check(CLI::IsMember({"experts", "mlp", "all"}))
      ->group(group);
  command.add_option("--layout", flags->layout, "How nvfp4 is stored")
      ->check(CLI::IsMember({"modelopt", "compressed-tensors"}))
      ->group(group);
}

Result<std::optional<PolicyOptions>> ParsePolicy(const PolicyFlags& flags) {
  const bool keeps = flags.keep_first != 0 || flags.keep_last != 0 || !flags.keep.empty() ||
                     !flags.scope.empty() || !flags.layout.empty();
  if (flags.format.empty()) {
    if (keeps) {
      return InvalidArgument(
          "--format: expected one beside --keep, --keep-first, --keep-last, --scope or --layout");
    }
    return std::optional<PolicyOptions>();
  }
  const std::optional<WeightFormat> format = ParseWeightFormat(flags.format);
  if (!format.has_value()) {
    return InvalidArgument("--format: expected {}, got {}",
                           "bf16, fp8, fp8-ue8m0, fp8-channel, fp8-tensor, mxfp8 or nvfp4",
                           flags.format);
  }
  PolicyOptions options = {.format = *format,
                           .keep_first = flags.keep_first,
                           .keep_last = flags.keep_last,
                           .keep = flags.keep};
  if (!flags.scope.empty()) {
    options.scope = flags.scope == "experts" ? QuantizeScope::kExperts
                    : flags.scope == "mlp"   ? QuantizeScope::kMlp
                                             : QuantizeScope::kAll;
  }
  if (flags.layout == "compressed-tensors") {
    options.layout = StoredLayout::kCompressedTensors;
  }
  return std::optional(std::move(options));
}

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
