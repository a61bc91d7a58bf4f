#include <memory>
#include <string>

#include "octavo/base/gzip.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/cli/conformance_dir.h"
#include "octavo/policy/conformance.h"

namespace octavo {
namespace {

struct ConformanceFlags {
  std::string matching;
  ConformanceDirFlags output;
};

Result<bool> RunConformanceCommand(const ConformanceFlags& flags) {
  if (flags.matching.empty() == flags.output.dir.empty()) {
    return InvalidArgument("conformance: expected either DIR or --matching FILE");
  }
  if (flags.matching.empty()) {
    return RunConformanceDir(flags.output);
  }
  ASSIGN_OR_RETURN(const std::string lines, ReadTextOrGzip(flags.matching));
  ASSIGN_OR_RETURN(const MatchingReport report, RunMatchingVectors(lines));
  PrintLine(flags.output.json ? MatchingReportJson(report) : MatchingReportText(report));
  return report.ok();
}

}  // namespace

void AddConformanceCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "conformance",
      "Judges another quantizer's output, or runs vectors of which module each engine keeps");
  const auto flags = std::make_shared<ConformanceFlags>();
  command->add_option("DIR", flags->output.dir,
                      "What another quantizer made of the kit's inputs: files FORMAT.safetensors");
  command->add_option("--kit", flags->output.kit, "Folder of the conformance kit")
      ->capture_default_str();
  command->add_option("--matching", flags->matching,
                      "JSON lines of matching vectors, which may be gzip");
  command->add_flag("--json", flags->output.json, "Print one JSON object");
  AddExamples(*command,
              "  octavo conformance out/my-quantizer\n"
              "  octavo conformance --matching tests/data/policy/matching.jsonl.gz");
  command->callback([flags, exit_code] {
    const Result<bool> held = RunConformanceCommand(*flags);
    *exit_code = !held ? ReportError(held.error()) : *held ? kExitOk : kExitFailed;
  });
}

}  // namespace octavo
