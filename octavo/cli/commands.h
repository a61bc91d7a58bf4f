#pragma once
// One function a command: declares its options on `app`; when the command line names it, its
// callback runs and leaves the exit code.

#include <CLI/CLI.hpp>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/engine/engine.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"

namespace octavo {

void AddPlanCommand(CLI::App& app, int* exit_code);
void AddConvertCommand(CLI::App& app, int* exit_code);
void AddAuditCommand(CLI::App& app, int* exit_code);
void AddDigestCommand(CLI::App& app, int* exit_code);
void AddConformanceCommand(CLI::App& app, int* exit_code);
void AddServeCommand(CLI::App& app, int* exit_code);
void AddPushCommand(CLI::App& app, int* exit_code);
void AddEvalCommand(CLI::App& app, int* exit_code);
void AddBenchCommand(CLI::App& app, int* exit_code);
void AddReplayCommand(CLI::App& app, int* exit_code);

// --- Shared by the commands ----------------------------------------------------------------------

// Headings of --help, which also say what a flag belongs to (GivenFlag).
inline constexpr const char* kPolicyGroup = "Policy";
inline constexpr const char* kEngineGroup = "Engine";

// The first flag on the command line that --help has under one of `groups`, by all of its names;
// empty for none.
std::string GivenFlag(const CLI::App& command, std::initializer_list<std::string_view> groups);

// POLICY of the usage lines.
struct PolicyFlags {
  std::string policy_file;  // Empty: none was given; so for every text here.
  std::string preset;
  std::string format;
  int keep_first = 0;
  int keep_last = 0;
  bool keep_mtp = false;
  std::vector<std::string> keep;
  std::string scope;
  std::string layout;
  // The words of slime's and miles' converters for a format.
  std::string strategy;
  std::vector<int> block_size;
  std::string scale_fmt;
};
void AddPolicyFlags(CLI::App& command, PolicyFlags* flags);
// --strategy, --block-size and --scale-fmt, for commands that write checkpoints.
void AddStrategyFlags(CLI::App& command, PolicyFlags* flags);
// nullopt when no policy flag was given. Flags beside --policy or --preset add to it: keeps stand
// before its own, everything else takes the place of its own.
// Errors: kInvalidArgument for an unknown format, for keeps without a format, for a strategy that
// is no format here, and those of the policy file.
Result<std::optional<PolicyOptions>> ParsePolicy(const PolicyFlags& flags);

// How a model is loaded and run: shared by serve, eval and bench.
struct ServingFlags {
  std::string model;
  PolicyFlags policy;
  std::string isa;  // Empty: the best of this processor.
  int threads = 0;
  std::string load_format = "auto";
  std::string config_overrides;   // JSON; empty: none.
  double memory_fraction = 0.0;   // 0: not given.
  std::string nvfp4_input_scale;  // Empty: token.
  EngineOptions engine;
};
// `with_model` false: the model is optional (another source may be named instead).
void AddServingFlags(CLI::App& command, ServingFlags* flags, bool with_model);
// --format may also be w8a16 or w4a16, which are only served: fp8 and nvfp4 at load, or as stored.
// Errors: kInvalidArgument naming the flag, what it may be and what came.
Result<ServingOptions> ParseServing(const ServingFlags& flags);

// Adds "Example: ..." lines below the options of --help.
void AddExamples(CLI::App& command, std::string_view examples);

// Prints "octavo: MESSAGE" to stderr and gives the exit code of the status: bad input and bad files
// are kExitBadInput, everything else kExitFailed.
int ReportError(const Status& status);

// Prints one line of text to stdout.
void PrintLine(std::string_view line);

// True for "http://..." and "https://...".
bool IsUrl(std::string_view text);

// --api-key, for commands that talk to a server: the key that it was started with.
CLI::Option* AddApiKeyFlag(CLI::App& command, std::string* api_key);
// Errors: those of ParseHttpUrl.
Result<HttpUrl> ParseServer(std::string_view url, const std::string& api_key);

}  // namespace octavo
