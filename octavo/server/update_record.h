#pragma once
// What was answered to calls that are over: a sender whose connection broke before the answer asks
// again, and learns what has happened.

#include <cstddef>
#include <deque>
#include <string>
#include <string_view>
#include <utility>

namespace octavo {

// The last 16 of one kind, by what the sender calls them. One thread.
class UpdateRecord {
 public:
  void Keep(std::string key, std::string answer);
  // The body of the answer; null for a call that is not known. Until the next Keep.
  const std::string* Find(std::string_view key) const;

 private:
  static constexpr size_t kKept = 16;

  std::deque<std::pair<std::string, std::string>> answers_;  // The oldest first.
};

}  // namespace octavo
