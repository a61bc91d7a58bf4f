#pragma once
// How large the KV pool is when nobody says.

#include <cstdint>

#include "octavo/base/status.h"

namespace octavo {

// Bytes that this process may still take: MemAvailable of /proc/meminfo, and no more than what its
// cgroup (v2) leaves. Errors: kInternal when /proc/meminfo cannot be read.
Result<int64_t> AvailableMemoryBytes();

struct PoolBudgetArgs {
  int64_t context_length = 0;
  int64_t max_running = 0;
  int64_t token_bytes = 0;  // KV of one token, all layers.
  int64_t available_bytes = 0;
};
// Tokens of the pool: room for max_running sequences of half a context each, and for at least four
// whole ones, but no more than 30% of the available memory, so that a second copy of the weights
// (staging of an update) and the rest of the machine have theirs. A multiple of kPageTokens; 0 when
// not even one page fits.
int64_t DefaultPoolTokens(const PoolBudgetArgs& args);

}  // namespace octavo
