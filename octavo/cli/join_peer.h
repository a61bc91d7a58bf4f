#pragma once
// `octavo serve --join URL`: beside the server, a thread that brings the weights of another one.

#include <atomic>
#include <string>
#include <thread>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/server/server.h"
#include "octavo/sync/serving.h"

namespace octavo {

// One thread, and its own. When the weights cannot be had the server is drained.
class Joining {
 public:
  // All outlive it.
  Joining(HttpUrl peer, Serving* serving, Server* server);
  // Ends what is still under way.
  ~Joining();
  Joining(const Joining&) = delete;
  Joining& operator=(const Joining&) = delete;

  // To be called when the server has stopped. Ok when the weights came, or did not come before it
  // was stopped; else what JoinWeights says.
  Status Finish();

 private:
  void Run();

  const HttpUrl peer_;
  Serving& serving_;
  Server& server_;
  std::atomic<bool> stop_ = false;
  Status outcome_;  // Of the thread; read once it has ended.
  std::thread thread_;
};

}  // namespace octavo
