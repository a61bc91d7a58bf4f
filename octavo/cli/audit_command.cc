#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/convert/audit.h"

namespace octavo {
namespace {

struct AuditFlags {
  std::string model;
  std::string against;
  bool json = false;
};

// The exit code: 0 when no finding is an error, 2 when a file could not be read.
Result<int> RunAuditCommand(const AuditFlags& flags) {
  ThreadPool pool(NumUsableThreads());
  ASSIGN_OR_RETURN(const AuditReport report, AuditFolder(flags.model, flags.against, &pool));
  PrintLine(flags.json ? AuditJson(report) : AuditText(report));
  return report.unreadable ? kExitBadInput : report.Passed() ? kExitOk : kExitFailed;
}

}  // namespace

void AddAuditCommand(CLI::App& app, int* exit_code) {
  CLI::App* command =
      app.add_subcommand("audit", "Judges a checkpoint: does it hold what its configuration says?");
  const auto flags = std::make_shared<AuditFlags>();
  command->add_option("MODEL", flags->model, "Model folder in HF layout")->required();
  command->add_option(
      "--against", flags->against,
      "The checkpoint that it was converted from: every byte is made again and compared");
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command, "  octavo audit out/abacus-fp8 --against models/abacus-dense");
  command->callback([flags, exit_code] {
    const Result<int> code = RunAuditCommand(*flags);
    *exit_code = !code ? ReportError(code.error()) : *code;
  });
}

}  // namespace octavo
