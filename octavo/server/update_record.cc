#include "octavo/server/update_record.h"

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>

namespace octavo {

void UpdateRecord::Keep(std::string key, std::string answer) {
  if (answers_.size() == kKept) {
    answers_.pop_front();
  }
  answers_.emplace_back(std::move(key), std::move(answer));
}

const std::string* UpdateRecord::Find(std::string_view key) const {
  const auto found = std::ranges::find(
      answers_, key, [](const auto& answer) { return std::string_view(answer.first); });
  return found == answers_.end() ? nullptr : &found->second;
}

}  // namespace octavo
