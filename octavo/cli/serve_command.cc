#include <fmt/format.h>

#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/cli/join_peer.h"
#include "octavo/cli/launch_flags.h"
#include "octavo/cli/planned_model.h"
#include "octavo/client/http_client.h"
#include "octavo/policy/tensor_parallel.h"
#include "octavo/server/http_listener.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/model_root.h"
#include "octavo/server/server.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/tokenizer_config.h"

namespace octavo {
namespace {

constexpr const char* kOnlineInputScaleVariable = "SGLANG_NVFP4_ONLINE_INPUT_SCALE";

struct ServeFlags {
  ServingFlags serving;
  LaunchFlags launch;
  std::string weight_version = "0";
  std::string state_dir;  // Empty: versions are not kept.
  std::string join;       // URL; empty: the weights are those of the folder.
  ServerOptions server;
};

// Absent for a folder without tokenizer.json, which is served for input_ids alone.
Result<std::optional<Tokenizer>> LoadTokenizer(const std::string& folder, bool skip) {
  if (!std::filesystem::exists(folder)) {
    return NotFound("{}: no such folder", folder);
  }
  const std::string path = std::filesystem::path(folder) / "tokenizer.json";
  if (skip || !std::filesystem::exists(path)) {
    LOG(WARNING, "{}: input_ids alone are served",
        skip ? "--skip-tokenizer-init" : fmt::format("no tokenizer.json in {}", folder));
    return std::optional<Tokenizer>();
  }
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::LoadFolder(folder));
  return std::optional<Tokenizer>(std::move(tokenizer));
}

// The template of the tokenizer's folder, or the one that --chat-template names. A name of one of
// SGLang's own templates is no file, and is refused as such.
Result<std::optional<ChatTemplate>> LoadChatTemplate(const std::string& folder,
                                                     const std::string& file) {
  if (file.empty()) {
    return ChatTemplate::LoadFolder(folder);
  }
  Result<std::string> source = ReadTextFile(file);
  if (!source.has_value()) {
    return source.error().WithContext("--chat-template: expected a file of Jinja");
  }
  ASSIGN_OR_RETURN(const TokenizerConfig config, LoadTokenizerConfig(folder));
  ASSIGN_OR_RETURN(ChatTemplate parsed, ChatTemplate::Parse(*source, config));
  return std::optional<ChatTemplate>(std::move(parsed));
}

// A template that cannot be rendered costs chat requests alone: each is told why.
ServerText MakeServerText(const std::optional<Tokenizer>& tokenizer,
                          const Result<std::optional<ChatTemplate>>& chat_template) {
  ServerText text;
  text.tokenizer = tokenizer.has_value() ? &*tokenizer : nullptr;
  if (!chat_template.has_value()) {
    text.no_chat_reason = chat_template.error().message();
    LOG(WARNING, "chat requests will be refused: {}", text.no_chat_reason);
  } else if (chat_template->has_value()) {
    text.chat_template = &**chat_template;
  }
  return text;
}

// A switch of SGLang's launcher: whoever sets it expects the online scale, and is told its name
// here.
void WarnOfForeignSwitch() {
  if (std::getenv(kOnlineInputScaleVariable) != nullptr) {
    LOG(WARNING,
        "{} is not read: --nvfp4-input-scale batch is that scale, token (the default) one "
        "for each token",
        kOnlineInputScaleVariable);
  }
}

void WarnOfIgnoredFlags(const std::vector<std::string>& ignored) {
  if (!ignored.empty()) {
    LOG(WARNING, "flags without a meaning here, ignored: {}", fmt::join(ignored, " "));
  }
}

LogLevel LevelOf(const std::string& name) {
  if (name == "debug") {
    return LogLevel::kDebug;
  }
  if (name == "info") {
    return LogLevel::kInfo;
  }
  return name == "warning" ? LogLevel::kWarning : LogLevel::kError;
}

std::string JsonText(std::string_view text) {
  std::string json;
  AppendJsonString(json, text);
  return json;
}

// What /server_info tells of the launch beside ServerOptions.
std::vector<std::pair<std::string, std::string>> DescribeLaunch(const ServeFlags& flags,
                                                                const ServingOptions& serving) {
  const EngineOptions& engine = serving.engine;
  const auto number = [](double value) {
    std::string json;
    AppendJsonDouble(json, value);
    return json;
  };
  const auto boolean = [](bool value) { return std::string(value ? "true" : "false"); };
  JsonWriter ignored;
  ignored.BeginArray();
  for (const std::string& name : flags.launch.ignored) {
    ignored.Value(name);
  }
  ignored.EndArray();
  return {
      {"random_seed", engine.random_seed.has_value() ? fmt::format("{}", *engine.random_seed)
                                                     : std::string("null")},
      {"mem_fraction_static",
       serving.memory_fraction > 0.0 ? number(serving.memory_fraction) : std::string("null")},
      {"chunked_prefill_size", fmt::format("{}", engine.chunk_tokens)},
      {"max_queued_requests", engine.max_queued_requests > 0
                                  ? fmt::format("{}", engine.max_queued_requests)
                                  : std::string("null")},
      {"disable_radix_cache", boolean(!engine.prefix_cache)},
      {"load_format", JsonText(flags.serving.load_format)},
      {"json_model_override_args",
       serving.config_overrides.empty() ? std::string("{}") : serving.config_overrides},
      {"skip_tokenizer_init", boolean(flags.launch.skip_tokenizer_init)},
      {"chat_template", flags.launch.chat_template.empty() ? std::string("null")
                                                           : JsonText(flags.launch.chat_template)},
      {"log_level", JsonText(flags.launch.log_level)},
      {"base_gpu_id", fmt::format("{}", flags.launch.base_gpu_id)},
      {"gpu_id_step", fmt::format("{}", flags.launch.gpu_id_step)},
      {"trust_remote_code", "false"},
      {"ignored_flags", ignored.Take()},
  };
}

// What is known of a tensor parallelism that nothing executes yet: whether the model could be cut.
std::string TellTensorParallel(const ServeFlags& flags) {
  const std::string& text = flags.launch.tensor_parallel;
  int64_t tp = 0;
  const auto [stop, error] = std::from_chars(text.data(), text.data() + text.size(), tp);
  const Result<std::string> folder = ChooseModel(flags.serving.model, flags.launch.model_path);
  if (error != std::errc() || tp < 2 || tp > 65536 || !folder.has_value()) {
    return "";
  }
  const Result<PlannedModel> model = PlanModel(*folder, flags.serving.policy);
  if (!model.has_value()) {
    return "";
  }
  const auto plan = PlanTensorParallel(model->spec, model->table, tp);
  if (!plan.has_value()) {
    return "";
  }
  return plan->is_legal()
             ? fmt::format("; the model could be cut for TP {} (octavo plan MODEL --tp {})", tp, tp)
             : fmt::format("; nor could the model be cut: {}", plan->refusal());
}

// The replicas of a fleet have the same keys.
Result<HttpUrl> PeerToJoin(const ServeFlags& flags) {
  const ServerOptions& server = flags.server;
  Result<HttpUrl> url =
      ParseServer(flags.join, server.admin_api_key.empty() ? server.api_key : server.admin_api_key);
  return url.has_value() ? url : url.error().WithContext("--join");
}

// Everything that the line says, checked before anything is loaded.
Result<ServingOptions> ReadLine(const CLI::App& command, ServeFlags* flags) {
  if (const Status line = CheckLaunchLine(command, flags->launch); !line.ok()) {
    return Status(line.code(), line.message() + TellTensorParallel(*flags));
  }
  ASSIGN_OR_RETURN(flags->serving.model,
                   ChooseModel(flags->serving.model, flags->launch.model_path));
  ServingOptions quantized;
  RETURN_IF_ERROR(
      ApplyQuantization(flags->launch.quantization, &flags->serving.policy, &quantized));
  ASSIGN_OR_RETURN(ServingOptions options, ParseServing(flags->serving));
  options.formats = std::move(quantized.formats);
  options.weight_version = flags->weight_version;
  options.state_dir = flags->state_dir;
  if (!flags->join.empty()) {
    RETURN_IF_ERROR(PeerToJoin(*flags).error());
    options.load_format = LoadFormat::kNone;
  }
  options.keep_weights_backup = flags->server.enable_weights_cpu_backup;
  if (!flags->server.model_root.empty()) {
    ASSIGN_OR_RETURN(flags->server.model_root, CanonicalFolder(flags->server.model_root));
  }
  return options;
}

Status RunServeCommand(const CLI::App& command, ServeFlags* flags) {
  ASSIGN_OR_RETURN(const ServingOptions options, ReadLine(command, flags));
  SetLogLevel(LevelOf(flags->launch.log_level));
  WarnOfForeignSwitch();
  WarnOfIgnoredFlags(flags->launch.ignored);
  flags->server.launch = DescribeLaunch(*flags, options);
  RETURN_IF_ERROR(CheckAddressIsFree(flags->server.host, flags->server.port));
  const std::string& text_folder =
      flags->launch.tokenizer_path.empty() ? flags->serving.model : flags->launch.tokenizer_path;
  ASSIGN_OR_RETURN(const std::optional<Tokenizer> tokenizer,
                   LoadTokenizer(text_folder, flags->launch.skip_tokenizer_init));
  const Result<std::optional<ChatTemplate>> chat_template =
      LoadChatTemplate(text_folder, flags->launch.chat_template);
  if (!chat_template.has_value() && !flags->launch.chat_template.empty()) {
    return chat_template.error();  // Asked for by name: not to be found out request by request.
  }
  ASSIGN_OR_RETURN(const std::unique_ptr<Serving> serving, StartServing(options));
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(flags->server, serving.get(), MakeServerText(tokenizer, chat_template)));
  PrintLine(fmt::format("octavo: serving {} at http://{}:{}", flags->serving.model,
                        flags->server.host, server->port()));
  std::optional<Joining> joining;
  if (!flags->join.empty()) {
    ASSIGN_OR_RETURN(HttpUrl peer, PeerToJoin(*flags));
    joining.emplace(std::move(peer), serving.get(), server.get());
  }
  server->RunUntilSignal();
  return joining.has_value() ? joining->Finish() : OkStatus();
}

void AddServerFlags(CLI::App& command, ServeFlags* flags) {
  const std::string group = "Server";
  ServerOptions& server = flags->server;
  command.add_option("--host", server.host, "Address to listen on; 0.0.0.0: all of them")
      ->capture_default_str()
      ->group(group);
  command.add_option("--port", server.port, "0: any free one, printed")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--api-key", server.api_key,
                  "Asked for in every request but /health and /metrics")
      ->group(group);
  command.add_option("--admin-api-key", server.admin_api_key, "Asked for by control endpoints")
      ->group(group);
  command
      .add_option("--model-root", server.model_root,
                  "Folder below which every path in a weight request must lie")
      ->group(group);
  command.add_option("--served-model-name", server.served_model_name, "Name in /v1/models")
      ->group(group);
  command
      .add_option("--stream-interval", server.stream_interval,
                  "Tokens of a chunk, for requests that name none")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  const auto add_flag = [&](const char* name, bool& value, const char* what) {
    command.add_flag(name, value, what)->group(group);
  };
  add_flag("--incremental-streaming-output", server.incremental_streaming_output,
           "Stream what is new instead of all so far");
  add_flag("--return-replay", server.return_replay,
           "Every reply carries meta_info.replay, what octavo replay needs");
  add_flag("--allow-auto-truncate", server.allow_auto_truncate,
           "Cut prompts and budgets to the context instead of refusing them");
  add_flag("--enable-memory-saver", server.enable_memory_saver,
           "Memory can always be released; told in /server_info to clients that compare");
  add_flag("--enable-weights-cpu-backup", server.enable_weights_cpu_backup,
           "Weights that were released come back as they were");
  command
      .add_option("--watchdog-timeout", server.stuck_seconds,
                  "Seconds of the engine's silence after which /health answers 503")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--dist-timeout", server.group_seconds,
                  "Seconds for the ranks of an update group to join, and for each bucket of theirs")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
}

// Which weights there are first, and what may follow them.
void AddVersionFlags(CLI::App& command, ServeFlags* flags) {
  const std::string group = "Server";
  command.add_option("--weight-version", flags->weight_version, "Label of the first weights")
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--state-dir", flags->state_dir,
                  "Folder that keeps the last weight version: none that is lower may follow, also "
                  "after a restart")
      ->group(group);
  command
      .add_option(
          "--join", flags->join,
          "Server whose live weights this one takes instead of the folder's; until they are "
          "here requests are 503")
      ->excludes("--weight-version")
      ->group(group);
  command
      .add_option(
          "--update-require", flags->server.update_require,
          "Weights that an update of a trainer's buckets must bring: all; seen: those of the "
          "first one; any")
      ->transform(CLI::CheckedTransformer(std::map<std::string, Require>{
          {"all", Require::kAll}, {"seen", Require::kSeen}, {"any", Require::kAny}}))
      ->default_str("all")
      ->group(group);
}

void AddLimitFlags(CLI::App& command, HttpLimits* limits) {
  const std::string group = "Limits";
  command.add_option("--max-connections", limits->connections_max, "Connections; more are closed")
      ->check(CLI::PositiveNumber)
      ->capture_default_str()
      ->group(group);
  command
      .add_option("--max-body-bytes", limits->body_bytes_max,
                  "Body of one request, such as 1GiB; a larger one is a 413")
      ->transform(CLI::AsSizeValue(/*kb_is_1000=*/false))
      ->capture_default_str()
      ->group(group);
  const auto seconds = [&](const char* name, double* value, const char* help) {
    command.add_option(name, *value, help)
        ->check(CLI::PositiveNumber)
        ->capture_default_str()
        ->group(group);
  };
  seconds("--keep-alive-timeout", &limits->idle_seconds,
          "Seconds that a connection without a request is kept");
  seconds("--header-timeout", &limits->header_seconds,
          "Seconds for the head of a request; a slower one is a 408");
  seconds("--body-timeout", &limits->body_seconds,
          "Seconds for a body, and one more for each 64 KiB of it; a slower one is a 408");
}

}  // namespace

void AddServeCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serves a model over the HTTP dialect of SGLang");
  const auto flags = std::make_shared<ServeFlags>();
  AddServingFlags(*command, &flags->serving, false);
  AddServerFlags(*command, flags.get());
  AddVersionFlags(*command, flags.get());
  AddLimitFlags(*command, &flags->server.limits);
  AddLaunchFlags(*command, &flags->launch);
  AddExamples(*command,
              "  octavo serve models/abacus-dense --format fp8 --keep-last 2 --port 30000\n"
              "  octavo serve --model-path models/abacus-dense --quantization fp8 --tp-size 1\n"
              "  curl -s http://127.0.0.1:30000/generate -d '{\"text\": \"Question: Tom has 3 "
              "apples and buys 4. How many?\\nAnswer:\", \"sampling_params\": "
              "{\"temperature\": 0}}'");
  command->callback([command, flags, exit_code] {
    const Status status = RunServeCommand(*command, flags.get());
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
