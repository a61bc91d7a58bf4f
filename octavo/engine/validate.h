#pragma once
// What can be refused about a request without running it (docs/api.md).

#include <cstdint>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"

namespace octavo {

struct RequestLimits {
  int64_t vocab_size = 0;
  int64_t context_length = 0;
  int64_t max_total_tokens = 0;  // Of the whole KV pool.
  bool has_routed_experts = false;
  int64_t stale_prefix_versions = 0;  // EngineOptions.
};

// Errors: kInvalidArgument, naming the field, what was expected and what came.
// Thread-safe.
Status ValidateRequest(const Request& request, const RequestLimits& limits);

}  // namespace octavo
