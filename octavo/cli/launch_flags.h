#pragma once
// The words of SGLang's launcher on the command line of `octavo serve`: a launch line that works
// there works here, or says by name why not.

#include <CLI/CLI.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/sync/serving.h"

namespace octavo {

// Options that only such launch lines have; the others are aliases of our own.
struct LaunchFlags {
  std::string model_path;      // Beside the positional MODEL.
  std::string quantization;    // Empty: --format decides.
  std::string tokenizer_path;  // Empty: the model folder; so for the chat template.
  std::string chat_template;   // A file; empty: the one of the tokenizer's folder.
  bool skip_tokenizer_init = false;
  std::string log_level = "info";
  bool always_on = true;    // What is said of things that cannot be switched off.
  int64_t base_gpu_id = 0;  // Only shown: there are clients that compare it.
  int64_t gpu_id_step = 1;
  std::string tensor_parallel = "1";  // Refused unless 1; kept for the message.
  std::vector<std::string> ignored;   // Names of flags that were given and mean nothing here.
  std::vector<std::string> refused;   // "FLAG: why".
};

// Declares them. Those without a meaning are known but not in --help; they are declared only when
// this command is parsed, for there are hundreds.
void AddLaunchFlags(CLI::App& command, LaunchFlags* flags);

// What can only be said of the whole line. Errors: kUnsupported for a refused flag,
// kInvalidArgument for one that is not known, with the nearest that is; each by name.
Status CheckLaunchLine(const CLI::App& command, const LaunchFlags& flags);

// The model folder of MODEL, --model-path or --model. Errors: kInvalidArgument for none, or two.
Result<std::string> ChooseModel(const std::string& positional, const std::string& model_path);

// Adds what --quantization asks for to `policy` and `options`: the format of a BF16 folder at load,
// and which formats a quantized folder may have. Errors: kUnsupported for a method that is not
// served, by name; kInvalidArgument beside another --format.
Status ApplyQuantization(const std::string& method, PolicyFlags* policy, ServingOptions* options);

}  // namespace octavo
