#pragma once
// The modules that a configuration must name so that engines leave them in BF16.

#include <span>
#include <string>
#include <vector>

#include "octavo/policy/precision_table.h"

namespace octavo {

// Which readers a list is for; they compare entries in different ways (docs/policy.md).
enum class ListDialect {
  kModulesToNotConvert,  // quant_method fp8 and mxfp8: SGLang, vLLM, transformers.
  kModelOpt,             // ignore and exclude_modules.
  kCompressedTensors,    // ignore.
};

// Natural order, full names without ".weight": linear layers that stay BF16, routers, eh_proj and
// stored heads. Routed experts are named by their container ("...mlp.experts"), the one form that
// every reader of a fused container honours. In the second and third dialect fused modules
// (qkv_proj, gate_up_proj) stand beside their members, and in the third a pattern beside each
// container, for readers that judge every expert by itself.
// `more` are modules of matrices that the weight table does not know.
std::vector<std::string> KeptModules(const PrecisionTable& table, ListDialect dialect,
                                     std::span<const std::string> more);

}  // namespace octavo
