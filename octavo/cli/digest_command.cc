#include <memory>
#include <string>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/http_client.h"
#include "octavo/client/update_client.h"
#include "octavo/convert/digest.h"

namespace octavo {
namespace {

struct DigestFlags {
  std::string source;
  std::string api_key;
  bool json = false;
};

std::string DigestText(const ModelDigest& digest) {
  std::string text;
  for (const TensorDigestLine& line : digest.tensors) {
    text += fmt::format("{}  {} {} {}\n", line.hex, DTypeName(line.dtype), ShapeString(line.shape),
                        line.name);
  }
  return text + digest.hex;
}

Status RunDigestCommand(const DigestFlags& flags) {
  if (IsUrl(flags.source)) {
    ASSIGN_OR_RETURN(const HttpUrl url, ParseServer(flags.source, flags.api_key));
    HttpClient client(url);
    ASSIGN_OR_RETURN(const std::string reply, GetLiveDigestJson(client));
    PrintLine(reply);
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(flags.source));
  ThreadPool pool(NumUsableThreads());
  const ModelDigest digest = DigestCheckpoint(checkpoint, &pool);
  PrintLine(flags.json ? ModelDigestJson(digest) : DigestText(digest));
  return OkStatus();
}

}  // namespace

void AddDigestCommand(CLI::App& app, int* exit_code) {
  CLI::App* command =
      app.add_subcommand("digest", "The digest of a checkpoint, or of what a server holds live");
  const auto flags = std::make_shared<DigestFlags>();
  command->add_option("MODEL|URL", flags->source, "Model folder, or a running server")->required();
  AddApiKeyFlag(*command, &flags->api_key);
  command->add_flag("--json", flags->json, "Print one JSON object (always so for a server)");
  AddExamples(*command,
              "  octavo digest models/abacus-dense\n"
              "  octavo digest http://127.0.0.1:30000");
  command->callback([flags, exit_code] {
    const Status status = RunDigestCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
