#pragma once
// vLLM's matcher of exact names: what its FP8 reader does, and the first step of its ModelOpt one.
//
// Source: vLLM of early 2026, vllm/model_executor/layers/quantization/utils/quant_utils.py,
// is_layer_skipped (releases before pull request 43981).

#include <span>
#include <string_view>

#include "octavo/policy/sglang_match.h"

namespace octavo {

// A mapped fused module: every shard must be equal to an entry, or none. Otherwise a module with
// "experts" in its path: an entry with "experts" that contains the module. Otherwise equality.
// Thread-safe.
MatchResult VllmExactMatch(std::span<const IgnoreEntry> entries, std::string_view module,
                           std::span<const FusedMapping> mapping);

}  // namespace octavo
