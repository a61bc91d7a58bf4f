#include "octavo/engine/memory_budget.h"

#include <fmt/core.h>

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
#include "octavo/engine/page_pool.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

// Of the available memory, when nobody says.
constexpr double kDefaultFraction = 0.3;

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

// The bytes of a line "NAME  123 kB" of a file below /proc.
Result<int64_t> ProcBytes(const std::string& path, std::string_view name) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  const size_t line = text.find(name);
  const std::optional<int64_t> kib =
      line == std::string::npos ? std::nullopt : FirstNumber(std::string_view(text).substr(line));
  if (!kib.has_value()) {
    return Internal("{}: expected a line {}", path, name);
  }
  return *kib * 1024;
}

Status CheckSizes(const PoolBudgetArgs& args) {
  if (args.max_total_tokens != 0 && args.max_total_tokens < kPageTokens) {
    return InvalidArgument("max_total_tokens: expected 0 or at least {}, got {}", kPageTokens,
                           args.max_total_tokens);
  }
  if (args.pool_bytes < 0) {
    return InvalidArgument("kv_cache_bytes: expected 0 or more, got {}", args.pool_bytes);
  }
  // Written so that NaN is refused.
  if (!(args.memory_fraction >= 0.0 && args.memory_fraction <= 1.0)) {
    return InvalidArgument("kv_cache_fraction: expected a value in [0, 1], got {}",
                           args.memory_fraction);
  }
  const int num_given = (args.max_total_tokens > 0 ? 1 : 0) + (args.pool_bytes > 0 ? 1 : 0) +
                        (args.memory_fraction > 0.0 ? 1 : 0);
  if (num_given > 1) {
    return InvalidArgument(
        "KV pool: expected one of max_total_tokens, kv_cache_bytes and kv_cache_fraction, got {}, "
        "{} and {}",
        args.max_total_tokens, args.pool_bytes, args.memory_fraction);
  }
  return OkStatus();
}

}  // namespace

Result<int64_t> AvailableMemoryBytes() {
  ASSIGN_OR_RETURN(int64_t available, ProcBytes("/proc/meminfo", "MemAvailable:"));
  // "max" holds no number: no limit.
  const std::optional<int64_t> limit = NumberInFile("/sys/fs/cgroup/memory.max");
  const std::optional<int64_t> current = NumberInFile("/sys/fs/cgroup/memory.current");
  if (limit.has_value() && current.has_value()) {
    available = std::min(available, std::max<int64_t>(*limit - *current, 0));
  }
  return available;
}

Result<int64_t> MappedMemoryBytes() { return ProcBytes("/proc/self/status", "VmData:"); }

Result<PoolBudget> ChoosePool(const PoolBudgetArgs& args) {
  RETURN_IF_ERROR(CheckSizes(args));
  PoolBudget budget;
  const int64_t available = args.available_bytes.value_or(0);
  if (args.max_total_tokens > 0) {
    budget = {.tokens = args.max_total_tokens, .rule = "max_total_tokens"};
  } else if (args.pool_bytes > 0) {
    budget = {.tokens = args.pool_bytes / args.token_bytes, .rule = "kv_cache_bytes"};
  } else {
    if (!args.available_bytes.has_value()) {
      return Exhausted(
          "KV pool: the available memory cannot be read; expected max_total_tokens or "
          "kv_cache_bytes");
    }
    const double fraction = args.memory_fraction > 0.0 ? args.memory_fraction : kDefaultFraction;
    budget = {.tokens = static_cast<int64_t>(static_cast<double>(available) * fraction) /
                        args.token_bytes,
              .rule = fmt::format("{:.2f} of {} free bytes", fraction, available)};
    // Whole pages: what is wanted is rounded up.
    const int64_t wanted = NumPagesFor(std::max(args.max_running * (args.context_length / 2),
                                                4 * args.context_length)) *
                           kPageTokens;
    if (args.memory_fraction <= 0.0 && wanted <= budget.tokens) {
      budget = {.tokens = wanted, .rule = "what max_running_requests can use"};
    }
  }
  budget.tokens = budget.tokens / kPageTokens * kPageTokens;
  if (budget.tokens == 0) {
    return Exhausted("KV pool: expected room for at least {} tokens of {} bytes, got {} ({} free)",
                     kPageTokens, args.token_bytes, budget.rule, available);
  }
  if (args.available_bytes.has_value() && budget.tokens > available / args.token_bytes) {
    return Exhausted("KV pool: expected at most {} free bytes, got {} tokens of {} bytes ({})",
                     available, budget.tokens, args.token_bytes, budget.rule);
  }
  return budget;
}

}  // namespace octavo
