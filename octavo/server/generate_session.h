#pragma once
// GenerateSession: one HTTP call that generates, while the engine works on its sequences.

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/server/answer_shape.h"
#include "octavo/server/http.h"
#include "octavo/server/reactor.h"
#include "octavo/server/render_sequence.h"

namespace octavo {

struct SessionOptions {
  std::vector<std::string> rids = {};         // One a sequence.
  std::vector<RenderOptions> sequences = {};  // The same count.
  std::unique_ptr<AnswerShape> shape = {};    // Never null.
  bool stream = false;
  std::function<void(const std::string& rid)> abort = {};  // Engine::Abort.
  // Runs once, after the last output of the last sequence: `num_clamped` logprobs were not finite.
  std::function<void(int64_t num_clamped)> done = {};
};

// One thread: the io thread. Sinks hold it alive until each sequence has had its last output.
class GenerateSession : public std::enable_shared_from_this<GenerateSession> {
 public:
  GenerateSession(SessionOptions options, WriterPtr writer);

  // The sink of sequence `seq_idx`; OnOutput may be called on any thread, it posts to `reactor`.
  std::shared_ptr<RequestSink> MakeSink(size_t seq_idx, std::shared_ptr<Reactor> reactor);

  // Begins: from here on the peer's leaving aborts what runs, and a stream has its head sent.
  void Start();
  void OnOutput(size_t seq_idx, RequestOutput output);

  // Answers with an error instead; outputs that still come are dropped.
  void Refuse(const HttpResponse& response);

  const std::vector<std::string>& rids() const { return options_.rids; }

 private:
  void AbortRunning();
  void StreamChunk(size_t seq_idx);
  void WriteEvents(std::string events);
  void AnswerWhole();

  SessionOptions options_;
  WriterPtr writer_;
  std::vector<SequenceRenderer> sequences_;
  size_t num_finished_ = 0;
  bool answered_ = false;  // Nothing more is written.
};

}  // namespace octavo
