#include "octavo/server/generate_session.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/engine/request.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/http.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/reactor.h"
#include "octavo/server/render_sequence.h"
#include "octavo/server/version_conflict.h"

namespace octavo {
namespace {

// A stream whose reader is this far behind gets no further chunk until it has caught up: the next
// one repeats or continues what was left out, so nothing is lost but its pace.
constexpr int64_t kCongestedBytes = int64_t{1} << 20;

class SessionSink final : public RequestSink {
 public:
  SessionSink(std::shared_ptr<GenerateSession> session, size_t seq_idx,
              std::shared_ptr<Reactor> reactor)
      : session_(std::move(session)), seq_idx_(seq_idx), reactor_(std::move(reactor)) {}

  void OnOutput(RequestOutput output) override {
    reactor_->Post([session = session_, seq_idx = seq_idx_, output = std::move(output)]() mutable {
      session->OnOutput(seq_idx, std::move(output));
    });
  }

 private:
  std::shared_ptr<GenerateSession> session_;
  size_t seq_idx_;
  std::shared_ptr<Reactor> reactor_;
};

std::string StreamError(std::string_view message, int code) {
  JsonWriter json;
  json.BeginObject().Key("error").BeginObject().Field("message", message);
  json.Field("type", code == 400 ? "invalid_request_error" : "internal_error");
  json.Field("code", code).Field("retryable", code == 503).EndObject().EndObject();
  return SseEvent(json.Take());
}

}  // namespace

GenerateSession::GenerateSession(SessionOptions options, WriterPtr writer)
    : options_(std::move(options)), writer_(std::move(writer)) {
  sequences_.reserve(options_.sequences.size());
  for (RenderOptions& sequence : options_.sequences) {
    sequences_.emplace_back(std::move(sequence));
  }
}

std::shared_ptr<RequestSink> GenerateSession::MakeSink(size_t seq_idx,
                                                       std::shared_ptr<Reactor> reactor) {
  return std::make_shared<SessionSink>(shared_from_this(), seq_idx, std::move(reactor));
}

void GenerateSession::Start() {
  writer_->OnPeerGone([weak = weak_from_this()] {
    if (const std::shared_ptr<GenerateSession> session = weak.lock()) {
      session->answered_ = true;
      session->AbortRunning();
    }
  });
  if (options_.stream && !answered_) {
    writer_->StartStream();
  }
}

void GenerateSession::AbortRunning() {
  for (size_t i = 0; i < sequences_.size(); ++i) {
    if (!sequences_[i].finished()) {
      options_.abort(options_.rids[i]);
    }
  }
}

void GenerateSession::Refuse(const HttpResponse& response) {
  answered_ = true;
  writer_->Send(response);
}

void GenerateSession::OnOutput(size_t seq_idx, RequestOutput output) {
  SequenceRenderer& sequence = sequences_[seq_idx];
  if (sequence.finished()) {
    return;
  }
  options_.shape->Append(seq_idx, output);
  sequence.Append(std::move(output));
  num_finished_ += sequence.finished() ? 1 : 0;
  if (!answered_) {
    if (options_.stream) {
      StreamChunk(seq_idx);
    } else if (sequence.finish().type == FinishType::kError) {
      Refuse(ObjectError(sequence.finish().message, 500));
      AbortRunning();
    } else if (num_finished_ == sequences_.size()) {
      AnswerWhole();
    }
  }
  if (num_finished_ == sequences_.size() && options_.done) {
    int64_t num_clamped = options_.shape->num_clamped();
    for (const SequenceRenderer& each : sequences_) {
      num_clamped += each.num_clamped();
    }
    std::exchange(options_.done, nullptr)(num_clamped);
  }
}

void GenerateSession::StreamChunk(size_t seq_idx) {
  SequenceRenderer& sequence = sequences_[seq_idx];
  if (sequence.finish().type == FinishType::kError) {
    writer_->Write(StreamError(sequence.finish().message, 500));
  } else if (sequence.IsRefusedForVersion()) {
    writer_->Write(VersionConflictEvent(sequence.version_demand(), sequence.last().weight_version));
  } else if (sequence.finished() || (sequence.HasNews() && !sequence.HoldsBack() &&
                                     writer_->PendingBytes() < kCongestedBytes)) {
    WriteEvents(options_.shape->Chunk(seq_idx, sequence));
  }
  if (num_finished_ == sequences_.size()) {
    answered_ = true;
    WriteEvents(options_.shape->Tail(sequences_));
    writer_->Write(SseEvent("[DONE]"));
    writer_->Finish();
  }
}

void GenerateSession::WriteEvents(std::string events) {
  if (!events.empty()) {
    writer_->Write(std::move(events));
  }
}

// What has no token of any sequence is refused like a call that came after the swap.
void GenerateSession::AnswerWhole() {
  if (std::ranges::all_of(sequences_, &SequenceRenderer::IsRefusedForVersion)) {
    const SequenceRenderer& first = sequences_.front();
    return Refuse(VersionConflictError(first.version_demand(), first.last().weight_version));
  }
  answered_ = true;
  writer_->Send(JsonResponse(options_.shape->Whole(sequences_)));
}

}  // namespace octavo
