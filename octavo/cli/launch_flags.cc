#include "octavo/cli/launch_flags.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/cli/launch_names.h"
#include "octavo/formats/format.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

// Calls `visit` for each word of `text` between any of `separators`.
template <typename Visit>
void ForEachWord(std::string_view text, std::string_view separators, Visit visit) {
  while (true) {
    const size_t begin = text.find_first_not_of(separators);
    if (begin == std::string_view::npos) {
      return;
    }
    const size_t end = std::min(text.find_first_of(separators, begin), text.size());
    visit(std::string(text.substr(begin, end - begin)));
    text.remove_prefix(end);
  }
}

bool HasWord(std::string_view words, std::string_view word) {
  bool found = false;
  ForEachWord(words, " ",
              [&](const std::string& candidate) { found = found || candidate == word; });
  return found;
}

void AddIgnored(CLI::App& command, std::vector<std::string>* ignored) {
  ForEachWord(IgnoredSwitches(), " \n", [&](const std::string& name) {
    command.add_flag_callback(name, [ignored, name] { ignored->push_back(name); })->group("");
  });
  const auto add_option = [&](const std::string& name, int values_max) {
    command
        .add_option_function<std::vector<std::string>>(
            name, [ignored, name](const std::vector<std::string>&) { ignored->push_back(name); })
        ->expected(1, values_max)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
        ->group("");
  };
  ForEachWord(IgnoredOptions(), " \n", [&](const std::string& name) { add_option(name, 1); });
  ForEachWord(IgnoredLists(), " \n", [&](const std::string& name) { add_option(name, -1); });
}

void AddFixed(CLI::App& command, LaunchFlags* flags) {
  for (const FixedFlag& flag : FixedFlags()) {
    command
        .add_option_function<std::string>(
            std::string(flag.names),
            [flags, flag](const std::string& value) {
              if (flag.names.starts_with("--tp,")) {
                flags->tensor_parallel = value;
              }
              if (!HasWord(flag.values, value)) {
                flags->refused.push_back(fmt::format("{}: expected {}, got {}: {}", flag.names,
                                                     flag.values.substr(0, flag.values.find(' ')),
                                                     value, flag.reason));
              }
            })
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group("");
  }
}

void AddRefused(CLI::App& command, std::vector<std::string>* refused) {
  for (const RefusedFlag& flag : RefusedFlags()) {
    const std::string name(flag.name);
    const auto refuse = [refused, flag] {
      refused->push_back(fmt::format("{}: {}", flag.name, flag.reason));
    };
    if (flag.takes_value) {
      // SGLang's own defaults, which some launchers write out, ask for nothing.
      const auto check = [refuse](const std::vector<std::string>& values) {
        const bool asks = values.size() != 1 || (values[0] != "{}" && !values[0].empty());
        if (asks) {
          refuse();
        }
      };
      command.add_option_function<std::vector<std::string>>(name, check)
          ->expected(1, -1)
          ->group("");
    } else {
      command.add_flag_callback(name, refuse)->group("");
    }
  }
}

// Edits (insert, delete, replace one character) from one name to the other.
size_t EditDistance(std::string_view from, std::string_view to) {
  std::vector<size_t> row(to.size() + 1);
  for (size_t j = 0; j < row.size(); ++j) {
    row[j] = j;
  }
  for (size_t i = 1; i <= from.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= to.size(); ++j) {
      const size_t replaced = diagonal + (from[i - 1] == to[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({replaced, row[j] + 1, row[j - 1] + 1});
    }
  }
  return row.back();
}

// The name that whoever typed `flag` most likely meant; empty when none is near.
std::string NearestFlag(const CLI::App& command, std::string_view flag) {
  std::string best;
  size_t best_distance = std::max<size_t>(2, flag.size() / 4) + 1;
  for (const CLI::Option* option : command.get_options()) {
    for (const std::string& long_name : option->get_lnames()) {
      const std::string name = "--" + long_name;
      // What is cut off at the end is one slip, however much it is.
      const size_t distance =
          flag.size() > 4 && name.starts_with(flag) ? 1 : EditDistance(flag, name);
      if (distance < best_distance) {
        best = name;
        best_distance = distance;
      }
    }
  }
  return best;
}

// What a method of SGLang's --quantization means for a folder that stores BF16, and for one that
// stores a format already.
struct Method {
  std::string_view name;
  std::string_view at_load;  // Empty: such a folder is refused.
  std::string_view stored;   // Separated by spaces.
};

constexpr std::string_view kAllFp8 = "fp8 fp8-ue8m0 fp8-channel fp8-tensor";

constexpr Method kMethods[] = {
    {"fp8", "fp8", kAllFp8},
    {"w8a8_fp8", "fp8-channel", "fp8-channel"},
    {"modelopt_fp8", "fp8-tensor", "fp8-tensor"},
    {"mxfp8", "mxfp8", "mxfp8"},
    {"modelopt_fp4", "nvfp4", "nvfp4"},
    {"nvfp4", "nvfp4", "nvfp4"},
    {"nvfp4_online", "nvfp4", "nvfp4"},
    {"modelopt", "", "fp8-tensor mxfp8 nvfp4"},
    {"modelopt_mixed", "", "fp8-tensor mxfp8 nvfp4"},
    {"compressed-tensors", "", "fp8 fp8-channel fp8-tensor mxfp8 nvfp4"},
    {"unquant", "bf16", "bf16"},
};

std::string MethodNames() {
  std::string names;
  for (const Method& method : kMethods) {
    names += fmt::format("{}{}", names.empty() ? "" : ", ", method.name);
  }
  return names;
}

}  // namespace

void AddLaunchFlags(CLI::App& command, LaunchFlags* flags) {
  const std::string group = "Launch lines of SGLang";
  const auto text = [&](const char* names, std::string* value, const std::string& help) {
    return command.add_option(names, *value, help)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeLast)
        ->group(group);
  };
  text("--model-path,--model", &flags->model_path, "The model folder, instead of MODEL");
  text("--quantization", &flags->quantization,
       "SGLang's name of a format, at load or as stored: " + MethodNames());
  text("--tokenizer-path", &flags->tokenizer_path,
       "Folder of tokenizer and chat template, if not the model's");
  text("--chat-template", &flags->chat_template, "File of the chat template (Jinja)");
  command
      .add_flag("--skip-tokenizer-init", flags->skip_tokenizer_init,
                "No tokenizer: input_ids alone are served")
      ->group(group);
  text("--log-level", &flags->log_level, "debug, info, warning or error")
      ->check(CLI::IsMember({"debug", "info", "warning", "error", "critical"}))
      ->capture_default_str();
  command
      .add_flag("--enable-metrics,--enable-deterministic-inference", flags->always_on, "Always on")
      ->group(group);
  command
      .add_option("--base-gpu-id", flags->base_gpu_id,
                  "Shown in /server_info, for clients that compare it")
      ->group(group);
  command.add_option("--gpu-id-step", flags->gpu_id_step, "Likewise")->group(group);
  command.allow_extras();
  command.preparse_callback([&command, flags](size_t) {
    AddIgnored(command, &flags->ignored);
    AddFixed(command, flags);
    AddRefused(command, &flags->refused);
  });
}

Status CheckLaunchLine(const CLI::App& command, const LaunchFlags& flags) {
  const std::vector<std::string> extras = command.remaining();
  for (const std::string& extra : extras) {
    if (!extra.starts_with('-')) {
      continue;
    }
    const std::string flag = extra.substr(0, extra.find('='));
    const std::string nearest = NearestFlag(command, flag);
    return InvalidArgument("{}: no such flag{}", flag,
                           nearest.empty() ? "" : fmt::format("; did you mean {}?", nearest));
  }
  if (!extras.empty()) {
    return InvalidArgument("{}: expected nothing more behind the model folder", extras.front());
  }
  if (!flags.refused.empty()) {
    return Unsupported("{}", fmt::join(flags.refused, "; "));
  }
  return OkStatus();
}

Result<std::string> ChooseModel(const std::string& positional, const std::string& model_path) {
  if (positional.empty() && model_path.empty()) {
    return InvalidArgument("MODEL: expected a model folder (also as --model-path), got none");
  }
  if (!positional.empty() && !model_path.empty() && positional != model_path) {
    return InvalidArgument("--model-path {}: expected the same as MODEL, got {}", model_path,
                           positional);
  }
  return positional.empty() ? model_path : positional;
}

Status ApplyQuantization(const std::string& method, PolicyFlags* policy, ServingOptions* options) {
  if (method.empty()) {
    return OkStatus();
  }
  const auto found = std::find_if(std::begin(kMethods), std::end(kMethods),
                                  [&](const Method& known) { return known.name == method; });
  if (found == std::end(kMethods)) {
    return Unsupported("--quantization: expected one of {}, got {}", MethodNames(), method);
  }
  if (!policy->format.empty() && policy->format != found->at_load) {
    return InvalidArgument("--quantization {}: means --format {}, got --format {}", method,
                           found->at_load.empty() ? "as stored" : found->at_load, policy->format);
  }
  policy->format = found->at_load;
  ForEachWord(found->stored, " ", [&](const std::string& name) {
    if (const std::optional<WeightFormat> format = ParseWeightFormat(name)) {
      options->formats.push_back(*format);
    }
  });
  return OkStatus();
}

}  // namespace octavo
