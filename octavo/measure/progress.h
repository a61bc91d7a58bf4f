#pragma once
// A progress bar for people: drawn on stderr, and only when that is a terminal.

#include <chrono>
#include <cstdint>
#include <string>
#include <string_view>

namespace octavo {

// "[#####.....]  50%  660/1319 questions  12 s"; of bytes with rate and time left,
// "[#####.....]  50%  4.00/8.00 GB, 0.80 GB/s, 5 s left  5 s". A pure function.
std::string ProgressLine(int64_t done, int64_t total, std::string_view unit, double seconds);

class ProgressBar {
 public:
  // `unit` names what is counted: "questions", "bytes".
  explicit ProgressBar(std::string_view unit);
  // Ends the line that was drawn, if any.
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // Redraws at most ten times a second, and always at the end.
  void Update(int64_t done, int64_t total);

 private:
  std::string unit_;
  bool is_terminal_;
  bool is_drawn_ = false;
  std::chrono::steady_clock::time_point start_;
  std::chrono::steady_clock::time_point last_draw_;
};

}  // namespace octavo
