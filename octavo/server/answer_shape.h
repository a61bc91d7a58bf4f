#pragma once
// AnswerShape: how a call's sequences are written. /generate, completions and chat run alike; what
// they differ in is here.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "octavo/engine/request.h"
#include "octavo/server/render_sequence.h"

namespace octavo {

// One call's. One thread: the io thread.
class AnswerShape {
 public:
  virtual ~AnswerShape() = default;

  // Each snapshot, before the renderer of its sequence takes it.
  virtual void Append(size_t seq_idx, const RequestOutput& output) = 0;

  // The body of the answer, once every sequence has finished.
  virtual std::string Whole(std::span<SequenceRenderer> sequences) = 0;

  // The events that show what is new in a sequence, complete with "data: " and blank line; several,
  // or "" when there is nothing to show yet.
  virtual std::string Chunk(size_t seq_idx, SequenceRenderer& sequence) = 0;

  // The events between the last sequence's last one and [DONE].
  virtual std::string Tail(std::span<const SequenceRenderer> sequences) = 0;

  // Logprobs that the shape itself wrote as -1e30 (SequenceRenderer::num_clamped).
  virtual int64_t num_clamped() const = 0;
};

// The objects of /generate; an array of them, and "index" in chunks, when `is_list`.
std::unique_ptr<AnswerShape> MakeNativeShape(bool is_list);

}  // namespace octavo
