#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/generate_client.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/bench.h"
#include "octavo/measure/bench_url.h"
#include "octavo/measure/bench_url_plan.h"
#include "octavo/measure/progress.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

constexpr const char* kModelGroup = "With MODEL";
constexpr const char* kServerGroup = "With --url";
constexpr const char* kBatch = "--batch";
constexpr const char* kRepeats = "--repeats";
constexpr const char* kNumPrompts = "--num-prompts";
constexpr const char* kParallel = "--parallel";
// The engine of MODEL only lends its weights: its KV pool and its scheduler do not run.
constexpr const char* kIdleEngineFlags[] = {
    "--max-total-tokens",     "--kv-cache-bytes",        "--kv-cache-fraction",
    "--mem-fraction-static",  "--context-length",        "--enable-return-routed-experts",
    "--max-running-requests", "--max-queued-requests",   "--disable-radix-cache",
    "--random-seed",          "--stale-prefix-versions",
};

struct BenchFlags {
  ServingFlags serving;
  std::string url;
  std::string api_key;
  BenchOptions model;
  UrlBenchOptions server;
  // 0: not given, the default of either form.
  int64_t input_len = 0;
  int64_t output_len = 0;
  std::string tokenizer;
  std::string output_file;
  std::vector<std::string> compare;  // Formats; empty: the one of the policy flags.
  std::string plot;
  bool json = false;
};

// A server that runs here serves a folder that we can read as well.
Result<std::optional<Tokenizer>> LoadBenchTokenizer(const HttpUrl& url, const BenchFlags& flags) {
  if (!flags.tokenizer.empty()) {
    ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::LoadFolder(flags.tokenizer));
    return std::optional<Tokenizer>(std::move(tokenizer));
  }
  HttpClient client(url, flags.server.timeouts);
  const Result<ModelInfo> info = GetModelInfo(client);
  if (info.has_value() && info->has_tokenizer &&
      std::filesystem::exists(std::filesystem::path(info->model_path) / "tokenizer.json")) {
    ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::LoadFolder(info->model_path));
    return std::optional<Tokenizer>(std::move(tokenizer));
  }
  return std::optional<Tokenizer>();
}

Status AppendLine(const std::string& path, const std::string& line) {
  std::FILE* const file = std::fopen(path.c_str(), "ae");
  if (file == nullptr) {
    return InvalidArgument("{}: cannot be opened: {}", path, std::strerror(errno));
  }
  const bool is_written = std::fputs((line + "\n").c_str(), file) >= 0;
  const bool is_closed = std::fclose(file) == 0;
  return is_written && is_closed
             ? OkStatus()
             : Internal("{}: cannot be written: {}", path, std::strerror(errno));
}

Status BenchServer(BenchFlags flags) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseServer(flags.url, flags.api_key));
  flags.server.input_len = flags.input_len > 0 ? flags.input_len : flags.server.input_len;
  flags.server.output_len = flags.output_len > 0 ? flags.output_len : flags.server.output_len;
  RETURN_IF_ERROR(AwaitServedName(url, flags.server).error());
  ASSIGN_OR_RETURN(const std::optional<Tokenizer> tokenizer, LoadBenchTokenizer(url, flags));
  flags.server.tokenizer = tokenizer.has_value() ? &*tokenizer : nullptr;
  auto bar = std::make_unique<ProgressBar>("requests");
  flags.server.on_progress = [&](int64_t done, int64_t total) { bar->Update(done, total); };
  const Result<UrlBenchReport> report = BenchUrl(url, flags.server);
  bar.reset();
  if (!report) {
    return report.error();
  }
  const std::string json = UrlBenchReportJson(*report);
  PrintLine(flags.json ? json : UrlBenchReportText(*report));
  if (!flags.output_file.empty()) {
    RETURN_IF_ERROR(AppendLine(flags.output_file, json));
  }
  return report->failed == 0 ? OkStatus()
                             : Internal("octavo bench: {} of {} requests failed", report->failed,
                                        flags.server.num_prompts);
}

// --nvfp4-input-scale goes for nvfp4 alone, the policy for every format but bf16.
Status CheckCompare(const CLI::App& command, const BenchFlags& flags) {
  if (flags.compare.empty()) {
    return OkStatus();
  }
  if (!flags.serving.policy.format.empty()) {
    return InvalidArgument("octavo bench: expected either --format or --compare");
  }
  const auto is_bf16 = [](const std::string& format) { return format == "bf16"; };
  const std::string of_policy = GivenFlag(command, {kPolicyGroup});
  if (!of_policy.empty() && std::ranges::all_of(flags.compare, is_bf16)) {
    return InvalidArgument("{}: expected a format other than bf16 in --compare, got {}", of_policy,
                           fmt::join(flags.compare, ","));
  }
  if (!flags.serving.nvfp4_input_scale.empty() &&
      std::ranges::find(flags.compare, "nvfp4") == flags.compare.end()) {
    return InvalidArgument("--nvfp4-input-scale: expected nvfp4 in --compare, got {}",
                           fmt::join(flags.compare, ","));
  }
  return OkStatus();
}

// A flag that would change nothing is refused.
Status CheckFlags(const CLI::App& command, const BenchFlags& flags) {
  if (flags.url.empty() == flags.serving.model.empty()) {
    return InvalidArgument("octavo bench: expected either MODEL or --url");
  }
  if (!flags.url.empty()) {
    const std::string of_model = GivenFlag(command, {kPolicyGroup, kEngineGroup, kModelGroup});
    return of_model.empty()
               ? OkStatus()
               : InvalidArgument("{}: expected only beside MODEL, not with --url", of_model);
  }
  const std::string of_server = GivenFlag(command, {kServerGroup});
  if (!of_server.empty()) {
    return InvalidArgument("{}: expected only with --url, not beside MODEL", of_server);
  }
  for (const char* name : kIdleEngineFlags) {
    if (command.count(name) > 0) {
      return InvalidArgument(
          "{}: changes nothing beside MODEL, whose KV pool and scheduler do not run; expected it "
          "of `octavo serve`, measured with --url",
          name);
    }
  }
  return CheckCompare(command, flags);
}

// With MODEL, --parallel is a --batch, and --num-prompts as many repeats as see so many prompts.
Result<BenchOptions> ModelOptions(const CLI::App& command, const BenchFlags& flags) {
  BenchOptions options = flags.model;
  if (command.count(kParallel) > 0) {
    if (command.count(kBatch) > 0) {
      return InvalidArgument("{}: expected none beside {}, which says the same of MODEL", kParallel,
                             kBatch);
    }
    options.batches = {flags.server.max_concurrency};
  }
  if (command.count(kNumPrompts) > 0) {
    if (command.count(kRepeats) > 0 || options.batches.size() != 1 || options.batches[0] < 1) {
      return InvalidArgument(
          "{}: expected one size of {} or {}, of at least 1, and no {} beside MODEL", kNumPrompts,
          kBatch, kParallel, kRepeats);
    }
    const int64_t batch = options.batches[0];
    options.repeats =
        flags.server.num_prompts / batch + (flags.server.num_prompts % batch == 0 ? 0 : 1);
  }
  options.input_len = flags.input_len > 0 ? flags.input_len : options.input_len;
  options.output_len = flags.output_len > 0 ? flags.output_len : options.output_len;
  options.chunk_tokens = flags.serving.engine.chunk_tokens;
  options.on_progress = [](std::string_view what) { LOG(INFO, "bench {}", what); };
  return options;
}

// One subject a format; what is kept in BF16 goes for every format but bf16 itself.
Result<std::vector<BenchSubject>> Subjects(const BenchFlags& flags) {
  std::vector<BenchSubject> subjects;
  if (flags.compare.empty()) {
    ASSIGN_OR_RETURN(ServingOptions serving, ParseServing(flags.serving));
    subjects.push_back({.label = "", .serving = std::move(serving)});
    return subjects;
  }
  for (const std::string& format : flags.compare) {
    ServingFlags one = flags.serving;
    if (format == "bf16") {
      one.policy = {};
    }
    one.policy.format = format;
    if (format != "nvfp4") {
      one.nvfp4_input_scale.clear();  // The other formats have none.
    }
    ASSIGN_OR_RETURN(ServingOptions serving, ParseServing(one));
    subjects.push_back({.label = format, .serving = std::move(serving)});
  }
  return subjects;
}

Status RunBenchCommand(const CLI::App& command, BenchFlags flags) {
  RETURN_IF_ERROR(CheckFlags(command, flags));
  if (!flags.url.empty()) {
    return BenchServer(std::move(flags));
  }
  ASSIGN_OR_RETURN(std::vector<BenchSubject> subjects, Subjects(flags));
  ASSIGN_OR_RETURN(const BenchOptions options, ModelOptions(command, flags));
  ASSIGN_OR_RETURN(const BenchReport report, BenchModels(std::move(subjects), options));
  if (!flags.plot.empty()) {
    RETURN_IF_ERROR(WriteTextFile(flags.plot, BenchReportSvg(report)));
  }
  PrintLine(flags.json ? BenchReportJson(report) : BenchReportText(report));
  return OkStatus();
}

// Of both forms.
void AddCommonFlags(CLI::App& command, BenchFlags* flags) {
  command
      .add_option("--input-len,--random-input-len", flags->input_len,
                  "Prompt tokens of a sequence; 512, with --url at most 1024")
      ->check(CLI::PositiveNumber);
  command
      .add_option("--output-len,--random-output-len", flags->output_len,
                  "Tokens to generate; 128, with --url at most 1024")
      ->check(CLI::PositiveNumber);
  command
      .add_option(
          kNumPrompts, flags->server.num_prompts,
          "Requests in all; with MODEL instead of --repeats: as many as see so many prompts")
      ->check(CLI::PositiveNumber)
      ->default_str("1000 with --url");
  command
      .add_option(std::string("--max-concurrency,") + kParallel, flags->server.max_concurrency,
                  "Requests in flight, 0: no bound; with MODEL the same as --batch")
      ->default_str("0 with --url");
  command.add_flag("--json", flags->json, "Print one JSON object");
}

void AddModelFlags(CLI::App& command, BenchFlags* flags) {
  command.add_option(kBatch, flags->model.batches, "Sequences decoded together; a list")
      ->delimiter(',')
      ->capture_default_str()
      ->group(kModelGroup);
  command.add_option(kRepeats, flags->model.repeats, "Runs that the median is over")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(kModelGroup);
  command
      .add_option("--compare", flags->compare,
                  "Formats to measure in turns, the first being the yardstick, such as "
                  "bf16,fp8,mxfp8,nvfp4")
      ->delimiter(',')
      ->group(kModelGroup);
  command.add_option("--plot", flags->plot, "Write a picture (SVG) of the rates to this file")
      ->group(kModelGroup);
}

// The names of SGLang's bench_serving.py.
void AddServerFlags(CLI::App& command, BenchFlags* flags) {
  UrlBenchOptions& server = flags->server;
  const std::map<std::string, BenchBackend> backends = {
      {"native", BenchBackend::kNative},   {"sglang", BenchBackend::kNative},
      {"oai", BenchBackend::kCompletions}, {"sglang-oai", BenchBackend::kCompletions},
      {"oai-chat", BenchBackend::kChat},   {"sglang-oai-chat", BenchBackend::kChat}};
  command.add_option("--backend", server.backend, "native, oai or oai-chat: who is asked")
      ->transform(CLI::CheckedTransformer(backends))
      ->default_str("native")
      ->group(kServerGroup);
  command
      .add_option("--random-range-ratio", server.range_ratio,
                  "Lengths are drawn from this share of the longest up to it; 1: constant")
      ->capture_default_str()
      ->group(kServerGroup);
  command
      .add_option("--request-rate", server.request_rate,
                  "Requests a second, with exponential gaps; inf: all at once")
      ->capture_default_str()
      ->group(kServerGroup);
  command.add_option("--seed", server.seed, "Of lengths, prompts and gaps")
      ->capture_default_str()
      ->group(kServerGroup);
  command.add_option("--warmup-requests", server.warmup_requests, "Sent first and not counted")
      ->capture_default_str()
      ->group(kServerGroup);
  command.add_flag("--flush-cache", server.flush_cache, "Drop the prefix cache after the warm-up")
      ->group(kServerGroup);
  command
      .add_option("--tokenizer", flags->tokenizer,
                  "Folder whose tokenizer makes the texts; otherwise the served one if it is here")
      ->group(kServerGroup);
  command.add_flag("--tokenize-prompt", server.send_ids, "Send ids instead of text")
      ->group(kServerGroup);
  command
      .add_option("--vocab-size", server.vocab_size, "Ids are below this; 0: as the server says")
      ->group(kServerGroup);
  command.add_option("--output-file", flags->output_file, "Append the report as one line of JSON")
      ->group(kServerGroup);
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Prefill and decode speed of a model with its share of the machine's limits, or of "
      "a running server");
  const auto flags = std::make_shared<BenchFlags>();
  AddServingFlags(*command, &flags->serving, false);
  CLI::Option* url = command->add_option("--url", flags->url, "A running server instead of MODEL");
  AddApiKeyFlag(*command, &flags->api_key)->needs(url);
  AddCommonFlags(*command, flags.get());
  AddModelFlags(*command, flags.get());
  AddServerFlags(*command, flags.get());
  AddExamples(*command,
              "  octavo bench models/abacus-dense --format fp8\n"
              "  octavo bench bench/shapes/qwen3-0.6b --load-format dummy --batch 1,8\n"
              "  octavo bench bench/shapes/qwen3-0.6b --load-format dummy --compare bf16,fp8\n"
              "  octavo bench --url http://127.0.0.1:30000 --num-prompts 64 --random-input-len 128 "
              "--random-output-len 64 --max-concurrency 16");
  command->callback([command, flags, exit_code] {
    const Status status = RunBenchCommand(*command, *flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
