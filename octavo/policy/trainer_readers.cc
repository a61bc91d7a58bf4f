// Trainers that choose by parameter name which weights they send quantized: verl, AReaL, miles; and
// the list as the NVFP4 refit of miles reads it. A module is a parameter name here.
//
// Sources: verl of January 2026, verl/utils/sglang/sglang_fp8_utils.py; AReaL pull request 1379;
// miles, megatron_to_hf/processors/.

#include <algorithm>
#include <cctype>
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
#include "octavo/policy/name_list.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kWeightSuffix = ".weight";
constexpr std::string_view kIncluded[] = {"q_proj",  "k_proj",    "v_proj", "o_proj", "gate_proj",
                                          "up_proj", "down_proj", "fc1",    "fc2",    "mlp"};
constexpr std::string_view kExcluded[] = {"embed_tokens", "lm_head", "norm", "ln_", "embeddings"};
constexpr std::string_view kMxfp8Excluded[] = {"layernorm", "embed",   "router",    "mlp.gate.",
                                               "norm",      "lm_head", "eh_proj",   "weights_proj",
                                               "head.",     "wo_a",    "ffn.gate.", "compressor."};
constexpr std::string_view kNvfp4Stems[] = {".gate_proj", ".up_proj", ".down_proj",   ".w1",
                                            ".w2",        ".w3",      ".gate_up_proj"};

// The first part that occurs in `name`, empty for none.
std::string_view FirstPart(std::span<const std::string_view> parts, std::string_view name) {
  const auto found = std::ranges::find_if(
      parts, [&](std::string_view part) { return name.find(part) != std::string_view::npos; });
  return found == parts.end() ? std::string_view() : *found;
}

bool IncludesByName(Dialect dialect, std::string_view parameter) {
  std::string lower(parameter);
  std::ranges::transform(lower, lower.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  const bool is_verl = dialect == Dialect::kFilterVerl;
  const bool included =
      !FirstPart(kIncluded, lower).empty() || (is_verl && lower.find("gate") != std::string::npos);
  const bool excluded = !FirstPart(kExcluded, lower).empty() ||
                        (!is_verl && lower.find("mlp.gate.weight") != std::string::npos);
  return included && !excluded;
}

bool IsMilesExpert(std::string_view parameter) {
  if (parameter.find(".experts.") == std::string_view::npos &&
      parameter.find(".shared_experts.") == std::string_view::npos) {
    return false;
  }
  parameter.remove_suffix(kWeightSuffix.size());
  return std::ranges::any_of(kNvfp4Stems,
                             [&](std::string_view stem) { return parameter.ends_with(stem); });
}

// Weights count as large matrices whose width every format takes.
bool FilterTakes(Dialect dialect, std::string_view parameter) {
  if (!parameter.ends_with(kWeightSuffix)) {
    return false;
  }
  switch (dialect) {
    case Dialect::kFilterMilesMxfp8:
      return FirstPart(kMxfp8Excluded, parameter).empty();
    case Dialect::kFilterMilesNvfp4:
      return IsMilesExpert(parameter);
    default:
      return IncludesByName(dialect, parameter);
  }
}

class FilterReader : public DialectReader {
 public:
  FilterReader(Dialect dialect, std::string method)
      : DialectReader({}, std::move(method)), dialect_(dialect) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    return {.verdict = FilterTakes(dialect_, module.name) ? Verdict::kQuantized : Verdict::kSkipped,
            .rule = MatchRule::kFilter,
            .entry = {},
            .shards = {}};
  }

 private:
  Dialect dialect_;
};

class RefitReader : public DialectReader {
 public:
  RefitReader(WrittenList list, std::vector<ListedName> names)
      : DialectReader(std::move(list), "nvfp4"), names_(std::move(names)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    for (const ListedName& listed : names_) {
      const std::span<const ListedName> one(&listed, 1);
      NameHit hit = FirstHit(one, module.name, PlainTest::kEqual);
      // An entry that ends in a dot would need two of them here.
      if (!hit.hit && listed.pattern == nullptr && hit.error.empty() &&
          module.name.starts_with(listed.entry.text + ".")) {
        hit = {true, MatchRule::kPrefix, listed.entry.original};
      }
      if (hit.hit || !hit.error.empty()) {
        return JudgeName(module.name, std::move(hit));
      }
    }
    return {};
  }

 private:
  std::vector<ListedName> names_;
};

}  // namespace

ReaderResult MakeTrainerReader(Dialect dialect, const QuantizationFields& fields,
                               const ReaderContext& /*context*/) {
  if (dialect != Dialect::kRefitMilesNvfp4) {
    const std::string_view method = dialect == Dialect::kFilterMilesMxfp8   ? "mxfp8"
                                    : dialect == Dialect::kFilterMilesNvfp4 ? "nvfp4"
                                                                            : "fp8";
    return std::unique_ptr<DialectReader>(
        std::make_unique<FilterReader>(dialect, std::string(method)));
  }
  const NameList& read = fields.ignore.exists() ? fields.ignore : fields.exclude_modules;
  ASSIGN_OR_RETURN(std::vector<std::string> written, NamesOf(read));
  ASSIGN_OR_RETURN(std::vector<ListedName> names,
                   CompileNames(AsWritten(written), EntryForm::kMarked));
  return std::unique_ptr<DialectReader>(std::make_unique<RefitReader>(
      WrittenList{read.exists() ? read.key : "", std::move(written)}, std::move(names)));
}

}  // namespace octavo
