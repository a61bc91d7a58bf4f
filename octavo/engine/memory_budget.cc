#include "octavo/engine/memory_budget.h"

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <system_error>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

// The first unsigned number in `text`; nullopt when there is none.
std::optional<int64_t> FirstNumber(std::string_view text) {
  const size_t start = text.find_first_of("0123456789");
  if (start == std::string_view::npos) {
    return std::nullopt;
  }
  int64_t number = 0;
  const std::from_chars_result parsed =
      std::from_chars(text.data() + start, text.data() + text.size(), number);
  return parsed.ec == std::errc() ? std::optional(number) : std::nullopt;
}

std::optional<int64_t> NumberInFile(const std::string& path) {
  const Result<std::string> text = ReadTextFile(path);
  return text.has_value() ? FirstNumber(*text) : std::nullopt;
}

}  // namespace

Result<int64_t> AvailableMemoryBytes() {
  ASSIGN_OR_RETURN(const std::string meminfo, ReadTextFile("/proc/meminfo"));
  const size_t line = meminfo.find("MemAvailable:");
  const std::optional<int64_t> kib = line == std::string::npos
                                         ? std::nullopt
                                         : FirstNumber(std::string_view(meminfo).substr(line));
  if (!kib.has_value()) {
    return Internal("/proc/meminfo: expected a line MemAvailable");
  }
  int64_t available = *kib * 1024;
  // "max" holds no number: no limit.
  const std::optional<int64_t> limit = NumberInFile("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> current = NumberInFile("/sys/fs/cgroup/memory.current");
  if (limit.has_value() && current.has_value()) {
    available = std::min(available, std::max<int64_t>(*limit - *current, 0));
  }
  return available;
}

int64_t DefaultPoolTokens(const PoolBudgetArgs& args) {
  const int64_t wanted =
      std::max(args.max_running * (args.context_length / 2), 4 * args.context_length);
  const int64_t affordable = args.available_bytes * 3 / 10 / args.token_bytes;
  return (std::min(wanted, affordable) + (wanted <= affordable ? kPageTokens - 1 : 0)) /
         kPageTokens * kPageTokens;
}

}  // namespace octavo
