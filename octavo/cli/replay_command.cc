#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/progress.h"
#include "octavo/measure/replay.h"
#include "octavo/measure/replay_file.h"

namespace octavo {
namespace {

struct ReplayFlags {
  std::string file;
  std::string url;
  std::string api_key;
  ReplayOptions replay;
  bool json = false;
};

// Whether everything came out the same.
Result<bool> RunReplayCommand(ReplayFlags flags) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseServer(flags.url, flags.api_key));
  ASSIGN_OR_RETURN(const std::vector<RecordedReply> replies, ReadReplayFile(flags.file));
  ASSIGN_OR_RETURN(const ReplayTarget target, GetReplayTarget(url));
  Result<ReplayPlan> plan = PlanReplay(replies, target, flags.replay);
  if (!plan.has_value()) {
    return plan.error().WithContext(flags.file);
  }
  auto bar = std::make_unique<ProgressBar>("requests");
  flags.replay.on_progress = [&](int64_t done, int64_t total) { bar->Update(done, total); };
  Result<ReplayReport> report = RunReplay(url, target, *plan, flags.replay);
  bar.reset();
  if (!report.has_value()) {
    return report.error();
  }
  report->num_replies = static_cast<int64_t>(replies.size());
  PrintLine(flags.json ? ReplayReportJson(*report) : ReplayReportText(*report));
  return report->num_different == 0;
}

}  // namespace

void AddReplayCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "replay", "Makes recorded replies again on a server and compares them bit for bit");
  const auto flags = std::make_shared<ReplayFlags>();
  command
      ->add_option("FILE", flags->file,
                   "JSON lines: replies with meta_info.replay (docs/replay.md)")
      ->required();
  command->add_option("--url", flags->url, "Server with the same weights and recipe")->required();
  AddApiKeyFlag(*command, &flags->api_key);
  command->add_option("--parallel", flags->replay.parallel, "Requests in flight")
      ->check(CLI::Range(1, 4096))
      ->capture_default_str();
  command->add_flag("--any-version", flags->replay.any_version,
                    "Equal digests are enough: the version is a label");
  command->add_flag("--matching", flags->replay.matching,
                    "Replay what this server's weights made and leave out the rest");
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command, "  octavo replay rollouts.jsonl --url http://127.0.0.1:30000");
  command->callback([flags, exit_code] {
    const Result<bool> same = RunReplayCommand(*flags);
    if (!same.has_value()) {
      *exit_code = ReportError(same.error());
    } else {
      *exit_code = *same ? kExitOk : kExitFailed;
    }
  });
}

}  // namespace octavo
