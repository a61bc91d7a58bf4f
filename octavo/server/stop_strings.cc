#include "octavo/server/stop_strings.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/text/tokenizer.h"

namespace octavo {

StopStringMatcher::StopStringMatcher(const Tokenizer* tokenizer, std::vector<std::string> stop)
    : decoder_(tokenizer, /*skip_special_tokens=*/false), stop_(std::move(stop)) {
  for (const std::string& text : stop_) {
    longest_ = std::max(longest_, text.size());
  }
}

std::optional<std::string> StopStringMatcher::OnToken(int32_t id) {
  decoder_.Append(id);
  const std::string_view text = decoder_.text();
  // A match that ends in the new bytes begins at most longest_ - 1 bytes before them.
  const size_t start = searched_ > longest_ - 1 ? searched_ - (longest_ - 1) : 0;
  searched_ = text.size();
  size_t best_position = std::string_view::npos;
  const std::string* best = nullptr;
  for (const std::string& stop : stop_) {
    const size_t position = text.find(stop, start);
    if (position < best_position) {
      best_position = position;
      best = &stop;
    }
  }
  return best == nullptr ? std::nullopt : std::optional<std::string>(*best);
}

bool EndsInStopPrefix(std::string_view text, const std::vector<std::string>& stop) {
  for (const std::string& candidate : stop) {
    for (size_t length = std::min(candidate.size() - 1, text.size()); length > 0; --length) {
      if (text.ends_with(std::string_view(candidate).substr(0, length))) {
        return true;
      }
    }
  }
  return false;
}

}  // namespace octavo
