#pragma once
// How large the KV pool is.

#include <cstdint>
#include <optional>
#include <string>

#include "octavo/base/status.h"

namespace octavo {

// Bytes that this process may still take: MemAvailable of /proc/meminfo, and no more than what its
// cgroup (v2) leaves. Errors: kInternal when /proc/meminfo cannot be read.
Result<int64_t> AvailableMemoryBytes();

// Private writable memory that this process has mapped, touched or not (VmData of
// /proc/self/status): what its anonymous memory can grow to before anything more is asked for.
// Errors: kInternal when /proc/self/status cannot be read.
Result<int64_t> MappedMemoryBytes();

struct PoolBudgetArgs {
  // At most one of the three says how large the pool is.
  int64_t max_total_tokens = 0;
  int64_t pool_bytes = 0;
  double memory_fraction = 0.0;  // Of available_bytes, in (0, 1].

  int64_t context_length = 0;
  int64_t max_running = 0;
  int64_t token_bytes = 0;                 // KV of one token, all layers.
  std::optional<int64_t> available_bytes;  // Unknown: absolute sizes are taken as they are.
};
struct PoolBudget {
  int64_t tokens = 0;  // A positive multiple of kPageTokens.
  std::string rule;    // Where the figure comes from, for the log.
};
// When nothing is said: room for max_running sequences of half a context each, and for at least
// four whole ones, but no more than 30% of the available memory, so that a second copy of the
// weights (staging of an update) and the rest of the machine have theirs.
// Errors: kInvalidArgument for two sizes, or one out of range; kExhausted when the pool would have
// no page or does not fit the available memory.
Result<PoolBudget> ChoosePool(const PoolBudgetArgs& args);

}  // namespace octavo
