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

// "1.20/8.37 GB, 0.35 GB/s, 21 s left" once there is a rate.
std::string BytesDone(int64_t done, int64_t total, double seconds) {
  constexpr double kGiga = 1e9;
  std::string text = fmt::format("{:.2f}/{:.2f} GB", static_cast<double>(done) / kGiga,
                                 static_cast<double>(total) / kGiga);
  if (done > 0 && seconds > 0.0) {
    const double rate = static_cast<double>(done) / seconds;
    text += fmt::format(", {:.2f} GB/s, {:.0f} s left", rate / kGiga,
                        static_cast<double>(total - done) / rate);
  }
  return text;
}

}  // namespace

std::string ProgressLine(int64_t done, int64_t total, std::string_view unit, double seconds) {
  const int64_t of = std::max<int64_t>(total, 1);
  const auto filled = static_cast<size_t>(kBarWidth * done / of);
  const std::string counted = unit == "bytes" ? BytesDone(done, total, seconds)
                                              : fmt::format("{}/{} {}", done, total, unit);
  return fmt::format("[{}{}] {:3}%  {}  {:.0f} s", std::string(filled, '#'),
                     std::string(static_cast<size_t>(kBarWidth) - filled, '.'), 100 * done / of,
                     counted, seconds);
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
