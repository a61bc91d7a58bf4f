#pragma once
// RouteArgs of ops.h, a token at a time.

#include <cstdint>

#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {

inline constexpr int64_t kMaxExperts = 1024;

// Writes the experts and weights of one token. At most kMaxExperts experts. Thread-safe.
void RouteToken(const CpuPath& path, const RouteArgs& args, int64_t token);

}  // namespace octavo::cpu
