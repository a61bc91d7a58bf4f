#include "octavo/policy/vllm_match.h"

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/dialect_readers.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/name_list.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {
namespace {

constexpr std::string_view kExperts = "experts";

NameHit EqualHit(std::span<const IgnoreEntry> entries, std::string_view name) {
  for (const IgnoreEntry& entry : entries) {
    if (entry.text == name) {
      return {true, MatchRule::kEqual, entry.original};
    }
  }
  return {};
}

NameHit ReverseHit(std::span<const IgnoreEntry> entries, std::string_view module) {
  for (const IgnoreEntry& entry : entries) {
    if (entry.text.find(kExperts) != std::string::npos &&
        entry.text.find(module) != std::string::npos) {
      const MatchRule rule = entry.text == module ? MatchRule::kEqual : MatchRule::kExpertReverse;
      return {true, rule, entry.original};
    }
  }
  return {};
}

class VllmFp8Reader : public DialectReader {
 public:
  VllmFp8Reader(WrittenList list, std::string method, std::vector<FusedMapping> mapping,
                std::vector<IgnoreEntry> entries)
      : DialectReader(std::move(list), std::move(method)),
        mapping_(std::move(mapping)),
        entries_(std::move(entries)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (module.kind != ModuleKind::kLinear && module.kind != ModuleKind::kMoe) {
      return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
    }
    return VllmExactMatch(entries_, module.name, mapping_);
  }

 private:
  std::vector<FusedMapping> mapping_;
  std::vector<IgnoreEntry> entries_;
};

}  // namespace

MatchResult VllmExactMatch(std::span<const IgnoreEntry> entries, std::string_view module,
                           std::span<const FusedMapping> mapping) {
  if (const std::vector<std::string>* shards = DeclaredShards(mapping, LastComponent(module))) {
    return JudgeShards(module, *shards,
                       [&](std::string_view path) { return EqualHit(entries, path); });
  }
  return JudgeName(module, module.find(kExperts) != std::string_view::npos
                               ? ReverseHit(entries, module)
                               : EqualHit(entries, module));
}

ReaderResult MakeVllmFp8Reader(const QuantizationFields& fields, const ReaderContext& context) {
  ASSIGN_OR_RETURN(const std::vector<std::string> first, NamesOf(fields.ignored_layers));
  const NameList& read = first.empty() ? fields.modules_to_not_convert : fields.ignored_layers;
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesOf(read));
  std::vector<IgnoreEntry> entries = AsWritten(names);
  if (!context.mapper.IsEmpty()) {
    entries = RenameAll(context.mapper, std::move(entries));
  }
  return std::unique_ptr<DialectReader>(std::make_unique<VllmFp8Reader>(
      WrittenList{read.exists() ? read.key : std::string(), std::move(names)},
      fields.quant_method.empty() ? "fp8" : fields.quant_method, context.mapping,
      std::move(entries)));
}

}  // namespace octavo
