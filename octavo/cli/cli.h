#pragma once
// The command line: options in, errors and exit codes out.

namespace octavo {

// Exit codes of every command.
inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;    // It failed, or a check did not hold.
inline constexpr int kExitBadInput = 2;  // Bad usage or bad input.

// Runs `octavo ARGV...`; returns the exit code.
int RunCli(int argc, const char* const* argv);

}  // namespace octavo
