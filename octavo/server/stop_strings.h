#pragma once
// Stop strings: found in the text as it grows, kept out of what streams.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

// Watches the decoded output of one sequence, special tokens included, so that "<|im_end|>" stops a
// request whose text hides it. Of several strings the one that begins first wins, then the first of
// the list. One thread (the engine's); `tokenizer` must outlive it.
class StopStringMatcher final : public StopMatcher {
 public:
  StopStringMatcher(const Tokenizer* tokenizer, std::vector<std::string> stop);
  std::optional<std::string> OnToken(int32_t id) override;

 private:
  IncrementalDecoder decoder_;
  std::vector<std::string> stop_;
  size_t longest_ = 0;   // Bytes of the longest stop string.
  size_t searched_ = 0;  // No stop string ends within this many bytes of the text.
};

// Whether `text` ends in a proper prefix of one of `stop`: the next token could complete it.
bool EndsInStopPrefix(std::string_view text, const std::vector<std::string>& stop);

}  // namespace octavo
