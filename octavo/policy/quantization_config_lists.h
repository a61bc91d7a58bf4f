#pragma once
// The lists of kept modules that a checkpoint's configuration carries, one form for each family of
// readers. Every list names each kept module in full, because that is the one form which all
// readers honour; docs/policy.md says why each further name is there.

#include <span>
#include <string>
#include <vector>

#include "octavo/policy/precision_table.h"

namespace octavo {

// modules_to_not_convert of quant_method fp8 and mxfp8: kept linear modules, containers of kept
// experts, routers, the head when the model stores one. Natural order.
std::vector<std::string> Fp8KeptList(const PrecisionTable& table,
                                     std::span<const std::string> other_kept);

// ignore / exclude_modules of ModelOpt: the same and the fused names, the head in any case.
std::vector<std::string> ModelOptKeptList(const PrecisionTable& table,
                                          std::span<const std::string> other_kept);

// ignore of compressed-tensors: as for ModelOpt, with expressions where a plain name would be taken
// for a part of another one, or would not reach single experts.
std::vector<std::string> CompressedTensorsKeptList(const PrecisionTable& table,
                                                   std::span<const std::string> other_kept);

// Targets of a compressed-tensors group that holds the modules of `format` and no others.
std::vector<std::string> CompressedTensorsTargets(const PrecisionTable& table, WeightFormat format);

}  // namespace octavo
