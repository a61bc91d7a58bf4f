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
    if (!is_list_) {
      return sequences.front().Render();
    }
    std::string body = "[";
    for (SequenceRenderer& sequence : sequences) {
      body += body.size() > 1 ? "," : "";
      body += sequence.Render();
    }
    body += ']';
    return body;
  }

  std::string Chunk(size_t seq_idx, SequenceRenderer& sequence) override {
    return SseEvent(sequence.Render(is_list_ ? static_cast<int64_t>(seq_idx) : -1));
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
