#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/server/http_listener.h"
#include "octavo/server/server.h"
#include "octavo/sync/serving.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

constexpr const char* kOnlineInputScaleVariable = "SGLANG_NVFP4_ONLINE_INPUT_SCALE";

struct ServeFlags {
  ServingFlags serving;
  std::string weight_version = "0";
  ServerOptions server;
};

// Absent for a folder without tokenizer.json, which is served for input_ids alone.
Result<std::optional<Tokenizer>> LoadTokenizer(const std::string& model_dir) {
  const std::string path = std::filesystem::path(model_dir) / "tokenizer.json";
  if (!std::filesystem::exists(path)) {
    LOG(WARNING, "no tokenizer.json in {}: input_ids alone are served", model_dir);
    return std::optional<Tokenizer>();
  }
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::LoadFolder(model_dir));
  return std::optional<Tokenizer>(std::move(tokenizer));
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

Status RunServeCommand(const ServeFlags& flags) {
  WarnOfForeignSwitch();
  ASSIGN_OR_RETURN(ServingOptions options, ParseServing(flags.serving));
  options.weight_version = flags.weight_version;
  RETURN_IF_ERROR(CheckAddressIsFree(flags.server.host, flags.server.port));
  ASSIGN_OR_RETURN(const std::unique_ptr<Serving> serving, StartServing(options));
  ASSIGN_OR_RETURN(const std::optional<Tokenizer> tokenizer, LoadTokenizer(flags.serving.model));
  const Result<std::optional<ChatTemplate>> chat_template =
      ChatTemplate::LoadFolder(flags.serving.model);
  ASSIGN_OR_RETURN(
      const std::unique_ptr<Server> server,
      Server::Start(flags.server, serving.get(), MakeServerText(tokenizer, chat_template)));
  PrintLine(fmt::format("octavo: serving {} at http://{}:{}", flags.serving.model,
                        flags.server.host, server->port()));
  server->RunUntilSignal();
  return OkStatus();
}

void AddServerFlags(CLI::App& command, ServeFlags* flags) {
  const std::string group = "Server";
  ServerOptions& server = flags->server;
  command.add_option("--host", server.host, "Address to listen on")
      ->capture_default_str()
      ->group(group);
  command.add_option("--port", server.port, "0: any free one, printed")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str()
      ->group(group);
  command.add_option("--api-key", server.api_key, "Asked for in every request but /health")
      ->group(group);
  command.add_option("--admin-api-key", server.admin_api_key, "Asked for by control endpoints")
      ->group(group);
  command.add_option("--served-model-name", server.served_model_name, "Name in /v1/models")
      ->group(group);
  command.add_option("--weight-version", flags->weight_version, "Label of the first weights")
      ->capture_default_str()
      ->group(group);
  command
      .add_flag("--incremental-streaming-output", server.incremental_streaming_output,
                "Stream what is new instead of all so far")
      ->group(group);
  command
      .add_flag("--return-replay", server.return_replay,
                "Every reply carries meta_info.replay, what octavo replay needs")
      ->group(group);
  command
      .add_flag("--allow-auto-truncate", server.allow_auto_truncate,
                "Cut prompts and budgets to the context instead of refusing them")
      ->group(group);
}

}  // namespace

void AddServeCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand("serve", "Serves a model over the HTTP dialect of SGLang");
  const auto flags = std::make_shared<ServeFlags>();
  AddServingFlags(*command, &flags->serving, true);
  AddServerFlags(*command, flags.get());
  AddExamples(*command,
              "  octavo serve models/abacus-dense --format fp8 --keep-last 2 --port 30000\n"
              "  curl -s http://127.0.0.1:30000/generate -d '{\"text\": \"Question: Tom has 3 "
              "apples and buys 4. How many?\\nAnswer:\", \"sampling_params\": "
              "{\"temperature\": 0}}'");
  command->callback([flags, exit_code] {
    const Status status = RunServeCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
