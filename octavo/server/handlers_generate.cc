// /generate and /abort_request.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/version_demand.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/application.h"
#include "octavo/server/generate_session.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/render_sequence.h"
#include "octavo/server/replay_record.h"
#include "octavo/server/stop_strings.h"
#include "octavo/server/version_conflict.h"

namespace octavo {
namespace {

RenderOptions MakeRenderOptions(const GenerateItem& item, const ParsedGenerate& call) {
  const Request& request = item.request;
  RenderOptions render;
  render.stop = item.stop;
  render.no_stop_trim = item.no_stop_trim;
  render.skip_special_tokens = item.skip_special_tokens;
  render.text_in_logprobs = call.return_text_in_logprobs;
  render.return_logprob = request.return_logprob && call.shows_meta;
  render.top_logprobs = request.top_logprobs_num > 0;
  render.ids_logprobs = !request.token_ids_logprob.empty();
  render.routed_experts = request.return_routed_experts;
  render.routed_experts_start_len = request.routed_experts_start_len;
  render.max_new_tokens = request.sampling.max_new_tokens;
  render.version_demand = request.version_demand;
  render.return_prompt_token_ids = call.return_prompt_token_ids;
  if (call.return_prompt_token_ids) {
    render.prompt_token_ids = request.input_ids;
  }
  return render;
}

}  // namespace

Status Application::SubmitAll(std::vector<GenerateItem> items,
                              const std::shared_ptr<GenerateSession>& session) {
  for (size_t i = 0; i < items.size(); ++i) {
    GenerateItem& item = items[i];
    if (!item.stop.empty()) {
      item.request.stop_matcher = std::make_unique<StopStringMatcher>(tokenizer_, item.stop);
    }
    item.request.sink = session->MakeSink(i, reactor_);
    const Status status = serving_->engine->Submit(std::move(item.request));
    if (!status.ok()) {
      // Only what is ours: the item's own rid may be that of somebody else's request.
      for (size_t queued = 0; queued < i; ++queued) {
        serving_->engine->Abort(session->rids()[queued]);
      }
      return status;
    }
  }
  return OkStatus();
}

GenerateContext Application::MakeGenerateContext() {
  const EngineStats stats = serving_->engine->Stats();
  return {.tokenizer = tokenizer_,
          .rids = &rids_,
          .vocab_size = serving_->spec.vocab_size,
          .context_length = stats.context_length,
          .pool_tokens = stats.max_total_tokens,
          .max_text_bytes = max_text_bytes_,
          .stream_interval = options_.stream_interval,
          .auto_truncate = options_.allow_auto_truncate};
}

void Application::Generate(const HttpRequest& request, const WriterPtr& writer) {
  if (draining_) {
    return writer->Send(RequestError(Unavailable("the server is stopping")));
  }
  Result<ParsedGenerate> parsed = ParseGenerate(request.body, MakeGenerateContext());
  if (!parsed.has_value()) {
    return writer->Send(RequestError(parsed.error()));
  }
  std::unique_ptr<AnswerShape> shape = MakeNativeShape(parsed->is_list);
  RunCall({.parsed = *std::move(parsed), .shape = std::move(shape), .refuse = RequestError},
          writer);
}

void Application::RunCall(GenerateCall call, const WriterPtr& writer) {
  if (AwaitsFirstWeights(serving_->engine->Stats())) {
    return writer->Send(call.refuse(Unavailable("weights: none have come yet; try again later")));
  }
  ParsedGenerate& parsed = call.parsed;
  SessionOptions session_options{.shape = std::move(call.shape), .stream = parsed.stream};
  int64_t prompt_tokens = 0;
  for (const GenerateItem& item : parsed.items) {
    // All are checked before the first is queued, so that a refused item costs its siblings
    // nothing.
    if (const Status status = serving_->engine->Validate(item.request); !status.ok()) {
      return writer->Send(call.refuse(status));
    }
    // The engine judges, too, when it takes the request; here a stream still gets a real 409.
    if (const VersionDemand& demand = item.request.version_demand; demand.any()) {
      const std::string live = serving_->engine->Stats().weight_version;
      if (!demand.IsMet(live)) {
        return writer->Send(VersionConflictError(demand, live));
      }
    }
    RenderOptions render = MakeRenderOptions(item, parsed);
    render.tokenizer = tokenizer_;
    render.recipe = serving_->recipe;
    render.is_emulated = serving_->is_emulated;
    render.incremental = options_.incremental_streaming_output;
    if (parsed.shows_meta && (parsed.return_replay || options_.return_replay)) {
      render.replay =
          std::make_shared<const ReplayRequest>(MakeReplayRequest(item, replay_server_));
    }
    session_options.sequences.push_back(std::move(render));
    session_options.rids.push_back(item.request.rid);
    prompt_tokens += static_cast<int64_t>(item.request.input_ids.size());
  }
  session_options.abort = [engine = serving_->engine.get()](const std::string& rid) {
    engine->Abort(rid);
  };
  const std::string batch_rid = parsed.batch_rid;
  session_options.done = [this, batch_rid, prompt_tokens](int64_t num_clamped) {
    num_clamped_logprobs_ += num_clamped;
    live_prompt_tokens_ -= prompt_tokens;
    batch_rids_.erase(batch_rid);
  };
  const auto session = std::make_shared<GenerateSession>(std::move(session_options), writer);
  if (const Status status = SubmitAll(std::move(parsed.items), session); !status.ok()) {
    return session->Refuse(call.refuse(status));
  }
  live_prompt_tokens_ += prompt_tokens;
  if (!batch_rid.empty()) {
    batch_rids_[batch_rid] = session->rids();
  }
  session->Start();
}

void Application::AbortRequest(const HttpRequest& request, const WriterPtr& writer) {
  const Result<JsonValue> body = ParseJsonBody(request.body);
  if (!body.has_value()) {
    return writer->Send(RequestError(body.error()));
  }
  const Result<std::string> rid = StringField(*body, "rid", "");
  const Result<bool> abort_all = BoolField(*body, "abort_all", false);
  if (!rid.has_value() || !abort_all.has_value()) {
    return writer->Send(RequestError(!rid.has_value() ? rid.error() : abort_all.error()));
  }
  if (*abort_all) {
    serving_->engine->AbortAll();
  } else if (!rid->empty()) {
    serving_->engine->Abort(*rid);
    if (const auto batch = batch_rids_.find(*rid); batch != batch_rids_.end()) {
      for (const std::string& item_rid : batch->second) {
        serving_->engine->Abort(item_rid);
      }
    }
  }
  writer->Send(EmptyResponse());
}

}  // namespace octavo
