#include "octavo/server/application.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <random>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/server/http.h"
#include "octavo/server/info.h"
#include "octavo/server/metrics.h"
#include "octavo/server/openai_defaults.h"
#include "octavo/server/reactor.h"
#include "octavo/server/replay_record.h"
#include "octavo/server/router.h"
#include "octavo/server/server.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

uint64_t DrawSeed() {
  std::random_device device;
  return (uint64_t{device()} << 32) | device();
}

// Longest text that can still be a prompt of `context_length` tokens: normalization to NFC shrinks
// UTF-8 by at most three times.
int64_t MaxTextBytes(const Tokenizer* tokenizer, int64_t context_length) {
  if (tokenizer == nullptr) {
    return 0;
  }
  int64_t longest = 1;
  for (int32_t id = 0; id < tokenizer->vocab_size(); ++id) {
    longest = std::max(longest, static_cast<int64_t>(tokenizer->TokenBytes(id, false).size()));
  }
  return 3 * longest * context_length;
}

}  // namespace

Application::Application(const ServerOptions& options, Serving* serving, const ServerText& text,
                         std::shared_ptr<Reactor> reactor)
    : options_(options),
      serving_(serving),
      tokenizer_(text.tokenizer),
      text_(text),
      chat_defaults_(ReadChatDefaults(serving->model_dir, serving->spec.vocab_size)),
      reactor_(std::move(reactor)),
      rids_(DrawSeed()),
      replay_server_(std::make_shared<const ReplayServer>(MakeReplayServer(*serving))),
      max_text_bytes_(MaxTextBytes(text.tokenizer, serving->engine->Stats().context_length)),
      created_unix_s_(std::chrono::duration_cast<std::chrono::seconds>(
                          std::chrono::system_clock::now().time_since_epoch())
                          .count()),
      groups_({.join_timeout_s = options.group_seconds,
               .receive_timeout_s = options.group_seconds,
               .admit = [updater = serving->updater.get()](int64_t num_bytes) {
                 return updater->CountBucket(num_bytes);
               }}) {
  if (!chat_defaults_.has_value()) {
    LOG(WARNING, "chat requests will be refused: {}", chat_defaults_.error().message());
  }
}

Application::~Application() { groups_.CancelAll(); }

void Application::StartDraining() {
  draining_ = true;
  groups_.CancelAll();
}

InfoContext Application::Info() const {
  return {.options = &options_,
          .serving = serving_,
          .stats = serving_->engine->Stats(),
          .has_tokenizer = tokenizer_ != nullptr,
          .draining = draining_,
          .created_unix_s = created_unix_s_,
          .live_prompt_tokens = live_prompt_tokens_,
          .num_clamped_logprobs = num_clamped_logprobs_};
}

void Application::Handle(HttpRequest request, const WriterPtr& peer) {
  const RouteMatch match = MatchRoute(request.method, request.path);
  const WriterPtr writer = CountRequest(peer, match.route, http_counts_);
  const ApiKeys keys = {options_.api_key, options_.admin_api_key};
  if (!IsAuthorized(match.access, request.authorization, keys)) {
    writer->Send(JsonResponse(R"({"error":"Unauthorized"})", 401));
  } else if (match.status == 404) {
    writer->Send(DetailError("Not Found", 404));
  } else if (match.status == 405) {
    HttpResponse response = DetailError("Method Not Allowed", 405);
    response.allow = match.allow;
    writer->Send(std::move(response));
  } else {
    Dispatch(match, request, writer);
  }
}

void Application::Dispatch(const RouteMatch& match, HttpRequest& request, const WriterPtr& writer) {
  switch (match.endpoint) {
    case Endpoint::kHealth:
    case Endpoint::kHealthGenerate:
      return Health(writer);
    case Endpoint::kPing:
      return writer->Send(TextResponse("Octavo is running"));
    case Endpoint::kStatusPage:
      return StatusPage(writer);
    case Endpoint::kMetrics:
      return Metrics(writer);
    case Endpoint::kGenerate:
      return Generate(request, writer);
    case Endpoint::kCompletions:
      return Completions(request, writer);
    case Endpoint::kChatCompletions:
      return ChatCompletions(request, writer);
    case Endpoint::kTokenize:
      return Tokenize(request, writer);
    case Endpoint::kDetokenize:
      return Detokenize(request, writer);
    case Endpoint::kModelInfo:
      return writer->Send(JsonResponse(ModelInfoJson(Info())));
    case Endpoint::kServerInfo:
      return writer->Send(JsonResponse(ServerInfoJson(Info())));
    case Endpoint::kModels:
      return writer->Send(JsonResponse(ModelsJson(Info())));
    case Endpoint::kModel:
      return Model(match.suffix, writer);
    case Endpoint::kLoads:
      return Loads(request, writer);
    case Endpoint::kWeightVersion:
      return WeightVersion(writer);
    case Endpoint::kAbortRequest:
      return AbortRequest(request, writer);
    case Endpoint::kFlushCache:
      return Flush(request, writer);
    case Endpoint::kPauseGeneration:
      return Pause(request, writer);
    case Endpoint::kContinueGeneration:
      return Continue(request, writer);
    case Endpoint::kReleaseMemory:
      return ReleaseMemory(request, writer);
    case Endpoint::kResumeMemory:
      return ResumeMemory(request, writer);
    case Endpoint::kWeightsByName:
      return WeightsByName(request, writer);
    case Endpoint::kWeightsChecker:
      return WeightsChecker(request, writer);
    case Endpoint::kBeginWeightUpdate:
      return BeginWeightUpdate(request, writer);
    case Endpoint::kEndWeightUpdate:
      return EndWeightUpdate(request, writer);
    case Endpoint::kPostProcessWeights:
      return PostProcessWeights(request, writer);
    case Endpoint::kStartProfile:
    case Endpoint::kStopProfile:
      return Profile(writer);
    case Endpoint::kUpdateFromDisk:
      return UpdateFromDisk(request, writer);
    case Endpoint::kUpdateFromTensor:
      return UpdateFromTensor(request, writer);
    case Endpoint::kPullWeights:
      return PullWeightVersion(request, writer);
    case Endpoint::kInitUpdateGroup:
      return InitUpdateGroup(request, writer);
    case Endpoint::kUpdateFromDistributed:
      return UpdateFromDistributed(request, writer);
    case Endpoint::kDestroyUpdateGroup:
      return DestroyUpdateGroup(request, writer);
    case Endpoint::kUpdateWeightVersion:
      return UpdateWeightVersion(request, writer);
    case Endpoint::kUpdateStatus:
      return UpdateStatus(request, writer);
    case Endpoint::kUpdateBegin:
      return UpdateBegin(request, writer);
    case Endpoint::kUpdatePut:
      return UpdatePut(request, writer);
    case Endpoint::kUpdateSeal:
      return UpdateSeal(request, writer);
    case Endpoint::kUpdateProbe:
      return UpdateProbe(request, writer);
    case Endpoint::kUpdateCommit:
      return UpdateCommit(request, writer);
    case Endpoint::kUpdateAbort:
      return UpdateAbort(request, writer);
    case Endpoint::kDigest:
      return Digest(writer);
    case Endpoint::kPolicy:
      return Policy(writer);
    case Endpoint::kManifest:
      return Manifest(writer);
    case Endpoint::kReady:
      return Ready(writer);
    case Endpoint::kWeights:
      return Weights(writer);
    case Endpoint::kWeightBytes:
      return WeightBytes(request, writer);
  }
}

void Application::AnswerFromWorker(const WriterPtr& writer, std::function<HttpResponse()> work,
                                   const std::function<void(const HttpResponse&)>& finish) {
  const bool accepted =
      reactor_->RunBlocking([reactor = reactor_, writer, work = std::move(work), finish] {
        reactor->Post([writer, finish, response = work()] {
          if (finish) {
            finish(response);
          }
          writer->Send(response);
        });
      });
  if (!accepted) {
    const HttpResponse response =
        ObjectError("too many weight calls are waiting for their turn", 503);
    if (finish) {
      finish(response);
    }
    writer->Send(response);
  }
}

std::function<void()> Application::AfterBoundary(std::function<void()> then) {
  return [engine = serving_->engine.get(), reactor = reactor_, then = std::move(then)] {
    // Taken up at the next boundary, so after the figures of this one are out.
    engine->RunBetweenSteps(
        [reactor, then](const ModelWeights&, Backend&) { reactor->Post(then); });
  };
}

void AwaitBoundary(Engine* engine) {
  // Shared: the engine may still be inside set_value when the wait is over.
  const auto passed = std::make_shared<std::promise<void>>();
  engine->RunBetweenSteps([passed](const ModelWeights&, Backend&) { passed->set_value(); });
  passed->get_future().wait();
}

}  // namespace octavo
