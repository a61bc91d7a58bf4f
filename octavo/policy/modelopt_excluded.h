#pragma once
// The wildcards of ModelOpt's lists as SGLang reads them.
//
// Source: SGLang of 2026-06-11, python/sglang/srt/layers/quantization/modelopt_quant.py,
// is_layer_excluded.

#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/name_list.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

// An entry is an expression in which '.' is plain and '*' any run. const is thread-safe.
class ExcludedNames {
 public:
  // Against the whole path or any one component of it, each also without a leading
  // "language_model.", and by the tail rule of MLA's projections.
  // Errors: as CompileNames.
  static Result<ExcludedNames> Compile(std::span<const IgnoreEntry> entries);
  // Against the whole path only: petit_nvfp4.
  static Result<ExcludedNames> CompileWholeNames(std::span<const IgnoreEntry> entries);

  NameHit FirstHit(std::string_view module) const;

 private:
  ExcludedNames(std::vector<ListedName> names, bool whole_only)
      : names_(std::move(names)), whole_only_(whole_only) {}

  std::vector<ListedName> names_;
  bool whole_only_;
};

}  // namespace octavo
