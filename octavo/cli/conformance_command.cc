#include <memory>
#include <string>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/policy/conformance.h"

namespace octavo {
namespace {

struct ConformanceFlags {
  std::string matching;
  bool json = false;
};

Result<bool> RunConformanceCommand(const ConformanceFlags& flags) {
  ASSIGN_OR_RETURN(const std::string lines, ReadTextFile(flags.matching));
  ASSIGN_OR_RETURN(const MatchingReport report, RunMatchingVectors(lines));
  PrintLine(flags.json ? MatchingReportJson(report) : MatchingReportText(report));
  return report.ok();
}

}  // namespace

void AddConformanceCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "conformance", "Runs published vectors of which module each engine leaves in BF16");
  const auto flags = std::make_shared<ConformanceFlags>();
  command->add_option("--matching", flags->matching, "JSON lines of matching vectors")->required();
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command, "  octavo conformance --matching tests/data/policy/matching.jsonl");
  command->callback([flags, exit_code] {
    const Result<bool> held = RunConformanceCommand(*flags);
    *exit_code = !held ? ReportError(held.error()) : *held ? kExitOk : kExitFailed;
  });
}

}  // namespace octavo
