#include "octavo/measure/progress.h"

#include <fmt/core.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>

namespace octavo {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kRedrawAfter = std::chrono::milliseconds(100);
constexpr int64_t kBarWidth = 30;

}  // namespace

std::string ProgressLine(int64_t done, int64_t total, std::string_view unit, double seconds) {
  const int64_t of = std::max<int64_t>(total, 1);
  const auto filled = static_cast<size_t>(kBarWidth * done / of);
  return fmt::format("[{}{}] {:3}%  {}/{} {}  {:.0f} s", std::string(filled, '#'),
                     std::string(static_cast<size_t>(kBarWidth) - filled, '.'), 100 * done / of,
                     done, total, unit, seconds);
}

ProgressBar::ProgressBar(std::string_view unit)
    : unit_(unit), is_terminal_(isatty(STDERR_FILENO) == 1), start_(Clock::now()) {}

ProgressBar::~ProgressBar() {
  if (is_drawn_) {
    fmt::print(stderr, "\n");
  }
}

void ProgressBar::Update(int64_t done, int64_t total) {
  const Clock::time_point now = Clock::now();
  if (!is_terminal_ || (is_drawn_ && done < total && now - last_draw_ < kRedrawAfter)) {
    return;
  }
  const double seconds = std::chrono::duration<double>(now - start_).count();
  fmt::print(stderr, "\r{}\x1b[K", ProgressLine(done, total, unit_, seconds));
  std::fflush(stderr);
  is_drawn_ = true;
  last_draw_ = now;
}

}  // namespace octavo
