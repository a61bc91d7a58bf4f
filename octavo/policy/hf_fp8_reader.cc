// The dialect hf_fp8: transformers' own FP8 quantizer. No fused modules, no boundaries.
//
// Source: transformers of 2026, src/transformers/quantizers/quantizers_utils.py,
// should_convert_module.

#include <memory>
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

class HfFp8Reader : public DialectReader {
 public:
  HfFp8Reader(WrittenList list, std::string method, std::vector<ListedName> names,
              bool keeps_lm_head)
      : DialectReader(std::move(list), std::move(method)),
        names_(std::move(names)),
        keeps_lm_head_(keeps_lm_head) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    const bool is_eligible = module.kind == ModuleKind::kLinear ||
                             module.kind == ModuleKind::kMoe ||
                             (module.kind == ModuleKind::kLmHead && !keeps_lm_head_);
    if (!is_eligible) {
      return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
    }
    return JudgeName(module.name, Hit(module.name));
  }

 private:
  NameHit Hit(std::string_view name) const {
    for (const ListedName& listed : names_) {
      if (!listed.broken.empty()) {
        return {.error = listed.broken};
      }
      const std::string& original = listed.entry.original;
      if (listed.pattern->MatchesStart(name)) {
        return {true, MatchRule::kExpression, original};
      }
      if (name.ends_with(listed.entry.text)) {
        return {true, MatchRule::kSuffix, original};
      }
    }
    return {};
  }

  std::vector<ListedName> names_;
  bool keeps_lm_head_;  // Without any list the output head is left alone.
};

}  // namespace

ReaderResult MakeHfFp8Reader(const QuantizationFields& fields, const ReaderContext& context) {
  const NameList& first = fields.modules_to_not_convert;
  const bool has_first = first.exists() && first.state != NameList::State::kNull;
  const NameList& read = has_first ? first : fields.ignored_layers;
  ASSIGN_OR_RETURN(std::vector<std::string> written, NamesOf(read));
  std::vector<IgnoreEntry> entries = AsWritten(written);
  if (!context.mapper.IsEmpty()) {
    entries = RenameAll(context.mapper, std::move(entries));
  }
  ASSIGN_OR_RETURN(std::vector<ListedName> names, CompileNames(entries, EntryForm::kAlways));
  const bool keeps_lm_head = read.state != NameList::State::kList;
  return std::unique_ptr<DialectReader>(std::make_unique<HfFp8Reader>(
      WrittenList{read.exists() ? read.key : "", std::move(written)},
      fields.quant_method.empty() ? "fp8" : fields.quant_method, std::move(names), keeps_lm_head));
}

}  // namespace octavo
