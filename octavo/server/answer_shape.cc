#include "octavo/server/answer_shape.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "octavo/engine/request.h"
#include "octavo/server/http.h"
#include "octavo/server/render_sequence.h"

namespace octavo {
namespace {

class NativeShape final : public AnswerShape {
 public:
  explicit NativeShape(bool is_list) : is_list_(is_list) {}

  void Append(size_t, const RequestOutput&) override {}

  std::string Whole(std::span<SequenceRenderer> sequences) override {
    std::string body;
    if (!is_list_) {
      sequences.front().Render(body);
      return body;
    }
    body += '[';
    for (SequenceRenderer& sequence : sequences) {
      body += body.size() > 1 ? "," : "";
      sequence.Render(body);
    }
    body += ']';
    return body;
  }

  std::string Chunk(size_t seq_idx, SequenceRenderer& sequence) override {
    std::string event(kSseBegin);
    sequence.Render(event, is_list_ ? static_cast<int64_t>(seq_idx) : -1);
    event += kSseEnd;
    return event;
  }

  std::string Tail(std::span<const SequenceRenderer>) override { return {}; }
  int64_t num_clamped() const override { return 0; }

 private:
  const bool is_list_;
};

}  // namespace

std::unique_ptr<AnswerShape> MakeNativeShape(bool is_list) {
  return std::make_unique<NativeShape>(is_list);
}

}  // namespace octavo
