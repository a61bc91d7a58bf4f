#include "octavo/cli/cli.h"

#include <signal.h>

#include <csignal>

#include "octavo/base/version.h"
#include "octavo/cli/commands.h"

namespace octavo {

int RunCli(int argc, const char* const* argv) {
  std::signal(SIGPIPE, SIG_IGN);  // A reader that leaves is an error of write, not our end.
  CLI::App app(
      "Octavo: a rollout engine for reinforcement learning on language models.\n"
      "Converts checkpoints to low precision, serves them, takes new weights while it serves, and\n"
      "measures what came of it.");
  app.name("octavo");
  app.set_version_flag("--version", fmt::format("octavo {}", Version()));
  app.require_subcommand(1);
  app.failure_message([](const CLI::App* failed, const CLI::Error& error) {
    return "octavo: " + std::string(error.what()) + "\nRun `" +
           (failed->get_subcommands().empty()
                ? std::string("octavo")
                : "octavo " + failed->get_subcommands().front()->get_name()) +
           " --help` for the options.\n";
  });
  app.footer("Run `octavo COMMAND --help` for its options and examples.");

  int exit_code = kExitOk;
  AddPlanCommand(app, &exit_code);
  AddConvertCommand(app, &exit_code);
  AddAuditCommand(app, &exit_code);
  AddDigestCommand(app, &exit_code);
  AddServeCommand(app, &exit_code);
  AddPushCommand(app, &exit_code);
  AddEvalCommand(app, &exit_code);
  AddBenchCommand(app, &exit_code);
  AddReplayCommand(app, &exit_code);
  AddConformanceCommand(app, &exit_code);

  try {  // CLI11 reports by exception; none leaves this function.
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitBadInput;
  }
  return exit_code;
}

}  // namespace octavo
