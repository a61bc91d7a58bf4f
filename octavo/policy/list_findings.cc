#include "octavo/policy/list_findings.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/engine_readers.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

// Modules that are never quantized count as linear layers: converters list norms and heads as a
// habit, and it does no harm.
bool Reaches(const DialectReader& reader, const EngineModule& module) {
  const ModuleKind kind = module.kind == ModuleKind::kMoe ? ModuleKind::kMoe : ModuleKind::kLinear;
  const MatchResult match = reader.Judge({.name = module.name, .kind = kind});
  return match.entry.has_value() || std::ranges::any_of(match.shards, [](const ShardMatch& shard) {
           return shard.entry.has_value();
         });
}

bool KnowsExpressions(Dialect dialect) {
  return dialect != Dialect::kSglangFp8 && dialect != Dialect::kVllmFp8;
}

std::string CureOf(const std::string& entry, Dialect dialect) {
  if (entry.ends_with(".weight") || entry.ends_with(".bias")) {
    return fmt::format("name the module, not the parameter: {}", entry.substr(0, entry.rfind('.')));
  }
  const bool is_pattern = entry.find('*') != std::string::npos || entry.starts_with("re:");
  if (is_pattern && !KnowsExpressions(dialect)) {
    return "write names: this dialect knows no wildcards and no expressions";
  }
  return "remove it, or write the full name of a module that the engine builds, without "
         "\".weight\"";
}

class ListChecker {
 public:
  explicit ListChecker(const ListFindingsInput& input) : input_(input) {}

  Result<std::vector<PolicyFinding>> Run() {
    ASSIGN_OR_RETURN(const EngineReaders readers, Readers(*input_.fields));
    AddHidden();
    AddKeptByOneExpert();
    RETURN_IF_ERROR(AddUnmatched(readers.main->list()));
    return std::move(findings_);
  }

 private:
  Result<EngineReaders> Readers(const QuantizationFields& fields) const {
    return MakeEngineReaders(*input_.spec, input_.engine, input_.dialect, fields);
  }

  void AddHidden() {
    const NameList& ignored = input_.fields->ignored_layers;
    const NameList& not_converted = input_.fields->modules_to_not_convert;
    const auto hides = [&](const NameList& read, const NameList& hidden) {
      if (read.exists() && !hidden.names.empty() && read.names != hidden.names) {
        findings_.push_back(
            PolicyWarning("list-hidden", hidden.key,
                          fmt::format("{} is not read, because {} exists", hidden.key, read.key),
                          "write one of the two keys"));
      }
    };
    if (input_.dialect == Dialect::kSglangFp8) {
      hides(ignored, not_converted);
    } else if (input_.dialect == Dialect::kHfFp8 && not_converted.state != NameList::State::kNull) {
      hides(not_converted, ignored);
    }
  }

  void AddKeptByOneExpert() {
    for (const PlannedModule& planned : input_.modules) {
      if (planned.module.kind == ModuleKind::kMoe &&
          planned.match.rule == MatchRule::kExpertReverse) {
        const std::string& name = planned.module.name;
        findings_.push_back(PolicyWarning(
            "kept-by-one-expert", name,
            fmt::format("{}: all experts stay in BF16, only because entry \"{}\" names one of them",
                        name, planned.match.entry.value_or("")),
            fmt::format("list {} if all are meant, otherwise remove the entry", name)));
      }
    }
  }

  // The modules of every engine's view but the ones planned here. Weights that nothing here builds
  // (of MTP layers that are left out) count as kept.
  struct OtherModule {
    EngineModule module;
    bool is_kept = false;  // Everything in it stays in BF16 here too.
  };
  std::vector<OtherModule> OtherModules() const {
    std::vector<bool> kept(input_.spec->weights.size(), true);
    std::set<std::string, std::less<>> seen;
    for (const PlannedModule& planned : input_.modules) {
      seen.insert(planned.module.name);
      for (const int weight_idx : planned.module.weights) {
        kept[static_cast<size_t>(weight_idx)] = planned.match.verdict == Verdict::kSkipped;
      }
    }
    std::vector<OtherModule> others;
    const auto add = [&](const EngineModule& module) {
      if (seen.insert(module.name).second) {
        const bool is_kept = std::ranges::all_of(
            module.weights, [&](int weight_idx) { return kept[static_cast<size_t>(weight_idx)]; });
        others.push_back({module, is_kept});
      }
    };
    for (const ForeignEngine engine : AllEngines()) {
      std::ranges::for_each(EngineModulesOf(*input_.spec, engine), add);
    }
    // As the checkpoint would name them; some engines build them under another name.
    for (const FusedSet& set : FusedSetsOf(*input_.spec)) {
      add({set.module, ModuleKind::kLinear, set.members});
    }
    if (input_.spec->tie_word_embeddings) {
      // Not stored, and served by the embedding.
      others.push_back({{"lm_head", ModuleKind::kLmHead, {}}, true});
    }
    return others;
  }

  // True when a list of `entry` alone reaches some module or shard; or a module of another engine
  // that stays in BF16 here anyway, for whose sake it may stand there.
  Result<bool> IsOfUse(const std::string& entry, std::string_view key,
                       const std::vector<OtherModule>& others) const {
    QuantizationFields fields = *input_.fields;
    for (NameList* list : {&fields.ignored_layers, &fields.modules_to_not_convert, &fields.ignore,
                           &fields.exclude_modules, &fields.exclude}) {
      if (list->key == key) {
        list->names = {entry};
      }
    }
    ASSIGN_OR_RETURN(const EngineReaders readers, Readers(fields));
    bool helps_others = false;
    for (const PlannedModule& planned : input_.modules) {
      if (Reaches(readers.Of(planned.module), planned.module)) {
        return true;
      }
      helps_others = helps_others ||
                     (entry == planned.module.name && planned.match.verdict == Verdict::kSkipped);
    }
    for (const OtherModule& other : others) {
      if (entry == other.module.name || Reaches(*readers.main, other.module) ||
          Reaches(*readers.mtp, other.module)) {
        if (!other.is_kept) {
          return false;
        }
        helps_others = true;
      }
    }
    return helps_others;
  }

  // The fused module of a quantized set that `entry` names; null when there is none. Of dialects
  // that compare the shards alone.
  const EngineModule* FusedNamed(std::string_view entry) const {
    if (input_.dialect != Dialect::kSglangFp8) {
      return nullptr;
    }
    for (const PlannedModule& planned : input_.modules) {
      if (planned.module.kind == ModuleKind::kLinear && planned.module.weights.size() > 1 &&
          planned.match.verdict == Verdict::kQuantized && IsDottedRun(entry, planned.module.name)) {
        return &planned.module;
      }
    }
    return nullptr;
  }

  Status AddUnmatched(const WrittenList& list) {
    const std::vector<OtherModule> others = OtherModules();
    std::set<std::string, std::less<>> named;
    for (const PlannedModule& planned : input_.modules) {
      if (planned.match.entry) {
        named.insert(*planned.match.entry);
      }
      for (const ShardMatch& shard : planned.match.shards) {
        if (shard.entry) {
          named.insert(*shard.entry);
        }
      }
    }
    for (const std::string& entry : list.names) {
      if (!named.insert(entry).second) {
        continue;
      }
      ASSIGN_OR_RETURN(const bool is_of_use, IsOfUse(entry, list.key, others));
      if (is_of_use) {
        continue;
      }
      if (const EngineModule* fused = FusedNamed(entry)) {
        findings_.push_back(PolicyWarning(
            "entry-fused-name", entry,
            fmt::format("{}: entry \"{}\" names the fused module {}, which is quantized: only its "
                        "shards are compared",
                        list.key, entry, fused->name),
            "list every shard by its own name instead"));
        continue;
      }
      findings_.push_back(
          PolicyWarning("entry-unmatched", entry,
                        fmt::format("{}: entry \"{}\" reaches no module in the dialect {}",
                                    list.key, entry, DialectName(input_.dialect)),
                        CureOf(entry, input_.dialect)));
    }
    return OkStatus();
  }

  const ListFindingsInput& input_;
  std::vector<PolicyFinding> findings_;
};

}  // namespace

Result<std::vector<PolicyFinding>> ListFindings(const ListFindingsInput& input) {
  return ListChecker(input).Run();
}

}  // namespace octavo
