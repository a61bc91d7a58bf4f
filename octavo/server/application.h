#pragma once
// Application: every endpoint of the server, over plain requests and responses.

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/call_threads.h"
#include "octavo/server/generate_session.h"
#include "octavo/server/http.h"
#include "octavo/server/info.h"
#include "octavo/server/metrics.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_openai.h"
#include "octavo/server/parse_sampling.h"
#include "octavo/server/reactor.h"
#include "octavo/server/replay_record.h"
#include "octavo/server/router.h"
#include "octavo/server/server.h"
#include "octavo/server/update_record.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/update_groups.h"
#include "octavo/sync/weight_checker.h"
#include "octavo/sync/weight_update.h"

namespace octavo {

struct GroupUpdate;
struct TensorUpdate;

// One thread: the io thread. What blocks runs on the reactor's worker with pointers to the
// Serving's thread-safe members.
class Application {
 public:
  // The pointers must outlive the application; the reactor must have stopped running tasks before
  // it is destroyed.
  Application(const ServerOptions& options, Serving* serving, const ServerText& text,
              std::shared_ptr<Reactor> reactor);
  ~Application();
  Application(const Application&) = delete;
  Application& operator=(const Application&) = delete;

  // Answers through `peer`, now or later.
  void Handle(HttpRequest request, const WriterPtr& peer);

  // From here on /health is 503 and new generation requests are refused with 503; calls that wait
  // for the peers of an update group end.
  void StartDraining();

 private:
  // Calls that wait for the peers of update groups, of all groups together.
  static constexpr int kCallThreadsMax = 64;

  // The update that a native client has open. The updater decides; this remembers who it was.
  struct OpenUpdate {
    std::string id = {};
    std::string version = {};
    std::string holder = {};  // Peer that began it.
    std::chrono::steady_clock::time_point last_touched = {};
    int64_t num_busy = 0;      // Calls on the worker.
    bool is_implicit = false;  // Begun by a trainer's bucket: a failure drops it.
    // Buckets that are staged, by sequence number: a repeated one is answered from here.
    std::map<int64_t, std::pair<Hash128, std::string>> done = {};
  };

  void Dispatch(const RouteMatch& match, HttpRequest& request, const WriterPtr& writer);

  // A call that generates, parsed.
  struct GenerateCall {
    ParsedGenerate parsed;
    std::unique_ptr<AnswerShape> shape;
    HttpResponse (*refuse)(const Status&) = nullptr;  // How its endpoint words an error.
  };

  // handlers_generate.cc
  GenerateContext MakeGenerateContext();
  void RunCall(GenerateCall call, const WriterPtr& writer);
  void Generate(const HttpRequest& request, const WriterPtr& writer);
  Status SubmitAll(std::vector<GenerateItem> items,
                   const std::shared_ptr<GenerateSession>& session);
  void AbortRequest(const HttpRequest& request, const WriterPtr& writer);

  // handlers_openai.cc
  OpenAiContext MakeOpenAiContext();
  void RunOpenAi(const HttpRequest& request, OpenAiKind kind, const WriterPtr& writer);
  void Completions(const HttpRequest& request, const WriterPtr& writer);
  void ChatCompletions(const HttpRequest& request, const WriterPtr& writer);

  // handlers_tokenize.cc
  void Tokenize(const HttpRequest& request, const WriterPtr& writer);
  void Detokenize(const HttpRequest& request, const WriterPtr& writer);

  // handlers_status.cc
  void StatusPage(const WriterPtr& writer);

  // handlers_metrics.cc
  void Metrics(const WriterPtr& writer);

  // handlers_memory.cc
  void ReleaseMemory(const HttpRequest& request, const WriterPtr& writer);
  void ResumeMemory(const HttpRequest& request, const WriterPtr& writer);
  void ResumeParts(MemoryParts parts, const WriterPtr& writer);

  // handlers_weights.cc
  void WeightsByName(const HttpRequest& request, const WriterPtr& writer);
  void WeightsChecker(const HttpRequest& request, const WriterPtr& writer);
  void BeginWeightUpdate(const HttpRequest& request, const WriterPtr& writer);
  void EndWeightUpdate(const HttpRequest& request, const WriterPtr& writer);
  void PostProcessWeights(const HttpRequest& request, const WriterPtr& writer);
  void Profile(const WriterPtr& writer);

  // handlers_group.cc
  void InitUpdateGroup(const HttpRequest& request, const WriterPtr& writer);
  void UpdateFromDistributed(const HttpRequest& request, const WriterPtr& writer);
  void DestroyUpdateGroup(const HttpRequest& request, const WriterPtr& writer);
  // Gives `then` the update that a trainer's bucket goes into: the one that is open, whoever opened
  // it, else one that is begun here and dropped when a bucket fails (EndImplicitUpdate ends it). It
  // counts as busy from then on, until ReleaseUpdate. On the io thread.
  void WithOpenUpdate(const std::string& version, const std::string& peer,
                      const std::function<void(const Result<std::string>&)>& then);
  void ReceiveBucket(const GroupUpdate& update, const std::string& id, const WriterPtr& writer);
  // As AnswerFromWorker, on a thread of its own.
  void AnswerFromCallThread(const WriterPtr& writer, std::function<HttpResponse()> work,
                            const std::function<void(const HttpResponse&)>& finish = nullptr);

  // handlers_tensor.cc
  void UpdateFromTensor(HttpRequest& request, const WriterPtr& writer);
  void StageTensorBucket(const std::string& id, const std::shared_ptr<TensorUpdate>& update,
                         const WriterPtr& writer);
  // Ends the update if a trainer's bucket began it: one of its buckets failed.
  void DropImplicitUpdate(const std::string& id);

  // handlers_implicit.cc
  // Whether a trainer's buckets have opened the update that is open.
  bool HasImplicitUpdate() const;
  // Seals and commits it, and calls `then` on the io thread. When that fails, by what is missing or
  // wrong, the update is dropped and the old version stays.
  void EndImplicitUpdate(const std::function<void(const Status&)>& then);

  // handlers_probe.cc
  void UpdateProbe(const HttpRequest& request, const WriterPtr& writer);

  // handlers_replica.cc
  // Why requests would not be answered now; empty: they would.
  std::string WhyNotReady() const;
  // Started without weights, and none have come yet: whoever generates is refused.
  bool AwaitsFirstWeights(const EngineStats& stats) const;
  void Ready(const WriterPtr& writer);
  void Weights(const WriterPtr& writer);
  void WeightBytes(const HttpRequest& request, const WriterPtr& writer);

  // handlers_pull.cc
  void PullWeightVersion(const HttpRequest& request, const WriterPtr& writer);

  // handlers_control.cc
  void Health(const WriterPtr& writer);
  void Model(std::string_view id, const WriterPtr& writer);
  void WeightVersion(const WriterPtr& writer);
  void Loads(const HttpRequest& request, const WriterPtr& writer);
  void Flush(const HttpRequest& request, const WriterPtr& writer);
  void Pause(const HttpRequest& request, const WriterPtr& writer);
  void Continue(const HttpRequest& request, const WriterPtr& writer);
  void ContinueEngine(const WriterPtr& writer);
  void UpdateWeightVersion(const HttpRequest& request, const WriterPtr& writer);
  void UpdateFromDisk(const HttpRequest& request, const WriterPtr& writer);

  // handlers_update.cc
  void UpdateStatus(const HttpRequest& request, const WriterPtr& writer);
  void UpdateBegin(const HttpRequest& request, const WriterPtr& writer);
  void UpdatePut(HttpRequest& request, const WriterPtr& writer);
  void UpdateSeal(const HttpRequest& request, const WriterPtr& writer);
  void UpdateCommit(const HttpRequest& request, const WriterPtr& writer);
  void UpdateAbort(const HttpRequest& request, const WriterPtr& writer);
  void Digest(const WriterPtr& writer);
  void Policy(const WriterPtr& writer);
  void Manifest(const WriterPtr& writer);
  struct BeginCall {
    std::string version;
    StagingMode mode = StagingMode::kShadow;
    Require require = Require::kAll;
    std::string displaced;  // The update that makes room; empty: none.
    std::string peer;
    std::string request_key;
  };
  void BeginOnWorker(const BeginCall& call, const WriterPtr& writer);
  void EndCommit(const std::string& id, const HttpResponse& response);
  Status WithHolder(const Status& status) const;
  void WatchIdle(const std::string& id);
  // Runs `work` on the worker and sends what it returns; `finish` runs first, on the io thread.
  void AnswerFromWorker(const WriterPtr& writer, std::function<HttpResponse()> work,
                        const std::function<void(const HttpResponse&)>& finish = nullptr);
  // The open update if it has this id, with one more busy call; null after having answered 404.
  OpenUpdate* TouchUpdate(const std::string& id, const WriterPtr& writer);
  void ReleaseUpdate(const std::string& id);

  // A callback for the engine that runs `then` on the io thread once Engine::Stats shows what the
  // callback reports: the engine publishes its figures at the end of a step, callbacks run before.
  // So a client that reads back what it has just set finds it.
  std::function<void()> AfterBoundary(std::function<void()> then);

  InfoContext Info() const;

  const ServerOptions options_;
  Serving* const serving_;
  const Tokenizer* const tokenizer_;  // text_.tokenizer.
  const ServerText text_;
  const Result<SamplingFields> chat_defaults_;  // ReadChatDefaults.
  const std::shared_ptr<Reactor> reactor_;
  RidSource rids_;
  const std::shared_ptr<const ReplayServer> replay_server_;
  int64_t max_text_bytes_ = 0;
  int64_t created_unix_s_ = 0;

  bool draining_ = false;
  bool flush_waits_ = false;
  int64_t num_clamped_logprobs_ = 0;
  int64_t live_prompt_tokens_ = 0;
  std::unordered_map<std::string, std::vector<std::string>> batch_rids_;
  std::optional<OpenUpdate> update_;
  UpdateRecord begun_;  // By the sender's own name for its begin.
  // Who waits for the answer of a commit that is under way, by the update's id.
  std::map<std::string, std::vector<WriterPtr>> committing_;
  UpdateRecord committed_;
  const std::shared_ptr<HttpCounts> http_counts_ = std::make_shared<HttpCounts>();

  UpdateGroups groups_;
  CallThreads call_threads_{kCallThreadsMax};

  // Between /begin_weight_update and /end_weight_update.
  struct Bracket {
    std::string holder;  // Peer that began it.
    std::chrono::steady_clock::time_point begun;
    int64_t num_committed = 0;  // UpdateTotals, when it began.
  };
  std::optional<Bracket> bracket_;
  const std::unique_ptr<WeightChecker> checker_ =
      std::make_unique<WeightChecker>(&serving_->updater->live());
};

// The same for the worker: blocks until the engine has published its figures.
void AwaitBoundary(Engine* engine);

}  // namespace octavo
