#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
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
  std::vector<std::string> compare;  // Formats; empty: the one of the policy flags.
  std::string plot;
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

// One subject a format; what is kept in BF16 goes for every format but bf16 itself.
Result<std::vector<BenchSubject>> Subjects(const BenchFlags& flags) {
  std::vector<BenchSubject> subjects;
  if (flags.compare.empty()) {
    ASSIGN_OR_RETURN(ServingOptions serving, ParseServing(flags.serving));
    subjects.push_back({.label = "", .serving = std::move(serving)});
    return subjects;
  }
  if (!flags.serving.policy.format.empty()) {
    return InvalidArgument("octavo bench: expected either --format or --compare");
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

Status RunBenchCommand(BenchFlags flags) {
  if (flags.url.empty() == flags.serving.model.empty()) {
    return InvalidArgument("octavo bench: expected either MODEL or --url");
  }
  if (!flags.url.empty() && (!flags.compare.empty() || !flags.plot.empty())) {
    return InvalidArgument(
        "octavo bench --url: a server has one format; --compare and --plot need "
        "MODEL");
  }
  if (!flags.url.empty()) {
    return BenchServer(std::move(flags));
  }
  ASSIGN_OR_RETURN(std::vector<BenchSubject> subjects, Subjects(flags));
  flags.model.chunk_tokens = flags.serving.engine.chunk_tokens;
  flags.model.on_progress = [](std::string_view what) { LOG(INFO, "bench {}", what); };
  ASSIGN_OR_RETURN(const BenchReport report, BenchModels(std::move(subjects), flags.model));
  if (!flags.plot.empty()) {
    RETURN_IF_ERROR(WriteTextFile(flags.plot, BenchReportSvg(report)));
  }
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
  command
      ->add_option("--compare", flags->compare,
                   "Formats to measure in turns, the first being the yardstick, such as "
                   "bf16,fp8,mxfp8,nvfp4")
      ->delimiter(',');
  command->add_option("--plot", flags->plot, "Write a picture (SVG) of the rates to this file");
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
              "  octavo bench bench/shapes/qwen3-0.6b --load-format dummy --compare bf16,fp8\n"
              "  octavo bench --url http://127.0.0.1:30000 --num-prompts 64 --parallel 16");
  command->callback([flags, exit_code] {
    const Status status = RunBenchCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
