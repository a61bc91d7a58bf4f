#include "octavo/server/server.h"

#include <future>
#include <memory>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/formats/format.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/http_listener.h"
#include "octavo/server/io_loop.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

// Between the engine's last output and the end of the loop: time for the last bytes to leave.
constexpr double kFlushSeconds = 10.0;
constexpr double kPollSeconds = 0.02;

// Most that a request without logprobs holds while it is in flight: its connection (coroutine,
// parser, buffers, the allocator's slack) and, for each token of its context, the id, its text in
// the body and in the reply, and the two again as JSON. A stream whose reader lags may hold 1 MiB
// more (generate_session.cc). Measured: 17 kB a request that waits with 1024 tokens.
constexpr int64_t kConnectionBytes = 64 << 10;
constexpr int64_t kRequestTokenBytes = 32;

// What the process may come to hold, said before the first request.
void LogMemory(const Serving& serving) {
  const Result<int64_t> fixed = MappedMemoryBytes();
  if (!fixed.has_value()) {
    LOG(WARNING, "memory bound is not known: {}", fixed.error().message());
    return;
  }
  LOG(INFO, "memory fixed_bytes={} weight_bytes={} request_bytes={} update_bytes={}", *fixed,
      serving.weight_bytes,
      kConnectionBytes + serving.engine->Stats().context_length * kRequestTokenBytes,
      serving.weight_bytes);
}

// Whoever reaches an open address may read, change and stop what is served.
void WarnOfOpenAddress(const HttpListener& listener, const ServerOptions& options) {
  if (!listener.is_loopback() && options.api_key.empty()) {
    LOG(WARNING,
        "the address {} is open to the network and --api-key is not set: whoever reaches it may {}",
        options.host,
        options.admin_api_key.empty() ? "generate, pause the server and replace its weights"
                                      : "generate");
  }
}

}  // namespace

struct Server::Impl {
  void BeginDrain();
  void OnSignal();
  void AwaitLastBytes(double seconds_left);
  void Finish();

  ServerOptions options;
  Serving* serving = nullptr;
  std::shared_ptr<IoLoop> loop = std::make_shared<IoLoop>();
  std::unique_ptr<Application> application;
  std::unique_ptr<HttpListener> listener;

  bool draining = false;  // Io thread.
  bool finished = false;  // Io thread.
  std::promise<void> stopped_promise;
  std::shared_future<void> stopped = stopped_promise.get_future().share();
};

void Server::Impl::Finish() {
  if (!std::exchange(finished, true)) {
    stopped_promise.set_value();
  }
}

void Server::Impl::AwaitLastBytes(double seconds_left) {
  if (listener->num_busy() == 0 || seconds_left <= 0.0) {
    return Finish();
  }
  loop->PostAfter(kPollSeconds,
                  [this, seconds_left] { AwaitLastBytes(seconds_left - kPollSeconds); });
}

void Server::Impl::BeginDrain() {
  draining = true;
  LOG(INFO, "server draining requests_in_flight={} deadline_s={:.0f}", listener->num_busy(),
      options.drain_seconds);
  application->StartDraining();
  listener->StopAccepting();
  serving->engine->Drain(
      [this, loop_ref = loop] { loop_ref->Post([this] { AwaitLastBytes(kFlushSeconds); }); });
  loop->PostAfter(options.drain_seconds, [this] {
    LOG(WARNING, "server drain deadline reached, aborting requests_in_flight={}",
        listener->num_busy());
    serving->engine->AbortAll();
    AwaitLastBytes(kFlushSeconds);
  });
}

void Server::Impl::OnSignal() {
  if (!draining) {
    return BeginDrain();
  }
  LOG(WARNING, "server stopping at once on a second signal requests_in_flight={}",
      listener->num_busy());
  Finish();
}

Result<std::unique_ptr<Server>> Server::Start(const ServerOptions& options, Serving* serving,
                                              const ServerText& text) {
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->serving = serving;
  Impl* const raw = impl.get();
  ASSIGN_OR_RETURN(
      impl->listener,
      HttpListener::Open({.host = options.host, .port = options.port, .limits = options.limits},
                         impl->loop.get(), [raw](HttpRequest request, const WriterPtr& writer) {
                           raw->application->Handle(std::move(request), writer);
                         }));
  impl->options.port = impl->listener->port();
  WarnOfOpenAddress(*impl->listener, options);
  impl->application = std::make_unique<Application>(impl->options, serving, text, impl->loop);
  impl->loop->Start();
  const bool is_v6 = options.host.find(':') != std::string::npos;
  LOG(INFO, "serving url=http://{}{}{}:{} model={} weights={} backend={}", is_v6 ? "[" : "",
      options.host, is_v6 ? "]" : "", impl->options.port, serving->model_dir,
      WeightFormatName(serving->table.format), serving->backend_name);
  LogMemory(*serving);
  return std::unique_ptr<Server>(new Server(std::move(impl)));
}

Server::Server(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

Server::~Server() {
  impl_->serving->engine->AbortAll();
  impl_->loop->Join();
  impl_->listener.reset();  // Its acceptor and timer stand on the context that Stop destroys.
  impl_->loop->Stop();
}

int Server::port() const { return impl_->options.port; }

void Server::RunUntilSignal() {
  impl_->loop->WatchSignals([impl = impl_.get()] { impl->OnSignal(); });
  WaitStopped();
}

void Server::Drain() {
  impl_->loop->Post([impl = impl_.get()] {
    if (!impl->draining) {
      impl->BeginDrain();
    }
  });
}

void Server::WaitStopped() { impl_->stopped.wait(); }

}  // namespace octavo
