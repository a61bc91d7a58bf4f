#pragma once
// The HTTP server: SGLang's dialect for rollouts, and the native calls under /octavo/v1
// (docs/api.md).

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/server/http_limits.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct ServerOptions {
  std::string host = "127.0.0.1";             // Name or address to listen on.
  int port = 30000;                           // 0: any free one, see Server::port().
  std::string api_key = {};                   // Empty: no key is asked for.
  std::string admin_api_key = {};             // Empty: control endpoints take api_key.
  std::string served_model_name = {};         // Empty: the model folder as given.
  bool incremental_streaming_output = false;  // Stream deltas instead of all so far.
  int64_t stream_interval = 1;                // Tokens of a chunk where the request does not say.
  bool return_replay = false;        // Every reply carries meta_info.replay, asked for or not.
  bool allow_auto_truncate = false;  // Cut prompts and budgets to the context, instead of a 400.
  HttpLimits limits = {};
  std::string model_root = {};  // Not empty: paths in weight requests must lie below this folder.
  bool enable_memory_saver = false;        // Only shown: memory can always be released.
  bool enable_weights_cpu_backup = false;  // Only shown: ServingOptions::keep_weights_backup.
  double drain_seconds = 60.0;             // After SIGTERM, until what still runs is aborted.
  double update_idle_seconds = 300.0;      // After which an open weight update is dropped.
  // Of the updates that a trainer's buckets open.
  Require update_require = Require::kAll;
  // For the ranks of an update group to join, and for a bucket of theirs to come.
  double group_seconds = 300.0;
  double stuck_seconds = 120.0;  // Engine silence after which /health answers 503.
  // More members of /server_info, as launched: name and JSON text.
  std::vector<std::pair<std::string, std::string>> launch = {};
};

// How text becomes tokens. The pointers must outlive the server.
struct ServerText {
  const Tokenizer* tokenizer = nullptr;  // Null: prompts come as input_ids only.
  const ChatTemplate* chat_template = nullptr;
  // Why chat_template is null: what a chat request is refused with. Never empty then.
  std::string no_chat_reason = "the model folder holds no chat template";
};

// Thread-safe.
class Server {
 public:
  // Listens and serves at once. `serving` and what `text` points to must outlive the server.
  // Errors: kUnavailable for a busy port, kInvalidArgument for a host or port that cannot be, each
  // one line.
  static Result<std::unique_ptr<Server>> Start(const ServerOptions& options, Serving* serving,
                                               const ServerText& text);
  // Stops at once; requests in flight are aborted.
  ~Server();
  Server(const Server&) = delete;
  Server& operator=(const Server&) = delete;

  int port() const;

  // Blocks until SIGTERM or SIGINT has drained the server: no new connections, /health 503,
  // requests in flight finish, at most drain_seconds. A second signal ends the wait at once.
  void RunUntilSignal();

  // What the first signal does; RunUntilSignal or WaitStopped returns when it is done.
  void Drain();
  void WaitStopped();

 private:
  struct Impl;
  explicit Server(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
