#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/bench.h"
#include "octavo/measure/bench_url.h"
#include "octavo/measure/progress.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

struct BenchFlags {
  ServingFlags serving;
  std::string url;
  BenchOptions model;
  UrlBenchOptions server;
  bool json = false;
};

Status BenchServer(BenchFlags flags) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseHttpUrl(flags.url));
  flags.server.input_len = flags.model.input_len;
  flags.server.output_len = flags.model.output_len;
  auto bar = std::make_unique<ProgressBar>("requests");
  flags.server.on_progress = [&](int64_t done, int64_t total) { bar->Update(done, total); };
  const Result<UrlBenchReport> report = BenchUrl(url, flags.server);
  bar.reset();
  if (!report) {
    return report.error();
  }
  PrintLine(flags.json ? UrlBenchReportJson(*report) : UrlBenchReportText(*report));
  return OkStatus();
}

Status RunBenchCommand(BenchFlags flags) {
  if (flags.url.empty() == flags.serving.model.empty()) {
    return InvalidArgument("octavo bench: expected either MODEL or --url");
  }
  if (!flags.url.empty()) {
    return BenchServer(std::move(flags));
  }
  ASSIGN_OR_RETURN(ServingOptions serving, ParseServing(flags.serving));
  flags.model.chunk_tokens = flags.serving.engine.chunk_tokens;
  flags.model.on_progress = [](std::string_view what) { LOG(INFO, "bench {}", what); };
  ASSIGN_OR_RETURN(const BenchReport report, BenchModel(std::move(serving), flags.model));
  PrintLine(flags.json ? BenchReportJson(report) : BenchReportText(report));
  return OkStatus();
}

}  // namespace

void AddBenchCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "bench",
      "Prefill and decode speed of a model with its share of the machine's limits, or of "
      "a running server");
  const auto flags = std::make_shared<BenchFlags>();
  AddServingFlags(*command, &flags->serving, false);
  command->add_option("--url", flags->url, "A running server instead of MODEL");
  command->add_option("--batch", flags->model.batches, "Sequences decoded together; a list")
      ->delimiter(',')
      ->capture_default_str();
  command->add_option("--input-len", flags->model.input_len, "Prompt tokens of a sequence")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--output-len", flags->model.output_len, "Tokens to generate")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--repeats", flags->model.repeats, "Runs that the median is over")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--num-prompts", flags->server.num_prompts, "With --url: requests in all")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--parallel", flags->server.parallel, "With --url: requests in flight")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo bench models/abacus-dense --format fp8\n"
              "  octavo bench bench/shapes/qwen3-0.6b --load-format dummy --batch 1,8\n"
              "  octavo bench --url http://127.0.0.1:30000 --num-prompts 64 --parallel 16");
  command->callback([flags, exit_code] {
    const Status status = RunBenchCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
