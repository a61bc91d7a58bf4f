// compressed-tensors, three times: the library, vLLM and SGLang; and SGLang's quark and w8a8_int8,
// whose lists have the same form.
//
// Sources: compressed-tensors of August 2026, utils/match.py, is_match; vLLM of 2026,
// vllm/model_executor/layers/quantization/compressed_tensors/utils.py; SGLang of 2026-06-11,
// python/sglang/srt/layers/quantization/{compressed_tensors,quark}/ and w8a8_int8.py.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <optional>
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

// What a group's weights are, for the modules that its targets reach.
struct Group {
  std::vector<ListedName> targets;
  std::string method;
};

Result<std::vector<Group>> CompileGroups(const QuantizationFields& fields) {
  std::vector<Group> groups;
  for (const TargetGroup& written : fields.groups) {
    ASSIGN_OR_RETURN(std::vector<ListedName> targets,
                     CompileNames(AsWritten(written.targets), EntryForm::kMarked));
    groups.push_back({std::move(targets), written.method});
  }
  return groups;
}

std::string_view ClassOf(const ModuleQuery& module) {
  return module.class_name.empty() ? ClassNameOf(module.kind) : module.class_name;
}

MatchResult NotQuantized(MatchRule rule) {
  return {.verdict = Verdict::kSkipped, .rule = rule, .entry = {}, .shards = {}};
}

// --- The library ---------------------------------------------------------------------------------

// Classes count with their bases.
NameHit ClassHit(const ListedName& name, std::string_view class_name) {
  const std::string& text = name.entry.text;
  const bool hit =
      text == class_name || text == "Module" || (text == "Linear" && class_name == "LinearBase");
  return hit ? NameHit{true, MatchRule::kEqual, name.entry.original} : NameHit{};
}

class LibraryReader : public DialectReader {
 public:
  LibraryReader(WrittenList list, std::vector<FusedMapping> mapping, std::vector<ListedName> ignore,
                std::vector<Group> groups)
      : DialectReader(std::move(list), "compressed-tensors"),
        mapping_(std::move(mapping)),
        ignore_(std::move(ignore)),
        groups_(std::move(groups)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    for (const Group& group : groups_) {
      NameHit target = AnyHit(group.targets, module);
      if (!target.error.empty()) {
        return JudgeName(module.name, std::move(target));
      }
      if (target.hit) {
        MatchResult result = JudgeName(module.name, AnyHit(ignore_, module));
        result.method = group.method;
        result.group = static_cast<int>(&group - groups_.data());
        return result;
      }
    }
    return NotQuantized(MatchRule::kTarget);
  }

 private:
  // The first name that fits the module, one of its shards or its class.
  NameHit AnyHit(std::span<const ListedName> names, const ModuleQuery& module) const {
    for (const ListedName& name : names) {
      NameHit hit = PathHit(name, module.name);
      if (!hit.hit && hit.error.empty()) {
        hit = ClassHit(name, ClassOf(module));
      }
      if (hit.hit || !hit.error.empty()) {
        return hit;
      }
    }
    return {};
  }

  // The first key that the name ends with makes it fused; then one shard that fits is enough, and
  // the fused name itself is not compared.
  NameHit PathHit(const ListedName& name, std::string_view path) const {
    const std::span<const ListedName> one(&name, 1);
    for (const FusedMapping& fused : mapping_) {
      if (!path.ends_with(fused.fused)) {
        continue;
      }
      const std::string stem(path.substr(0, path.size() - fused.fused.size()));
      for (const std::string& shard : fused.shards) {
        NameHit hit = FirstHit(one, stem + shard, PlainTest::kEqual);
        if (hit.hit || !hit.error.empty()) {
          return hit;
        }
      }
      return {};
    }
    return FirstHit(one, path, PlainTest::kEqual);
  }

  std::vector<FusedMapping> mapping_;
  std::vector<ListedName> ignore_;
  std::vector<Group> groups_;
};

// --- Engines -------------------------------------------------------------------------------------

// How the engines' readers differ.
struct ShardedRules {
  PlainTest test = PlainTest::kEqual;
  bool literal_fused = true;      // A fused name that stands in the list is compared as a whole.
  bool asks_expert_zero = false;  // A container is judged by its expert 0.
  bool has_targets = true;
  bool untargeted_raises = false;   // A module without a target: an error, or not quantized.
  bool ignored_moe_raises = false;  // An ignored container gets the method of a linear layer.
  bool linear_is_fp8 = false;       // linear_fp8_config: the list is bypassed for linear layers.
};

class ShardedNamesReader : public DialectReader {
 public:
  ShardedNamesReader(WrittenList list, std::string method, const ShardedRules& rules,
                     std::vector<FusedMapping> mapping, std::vector<ListedName> ignore,
                     std::vector<Group> groups)
      : DialectReader(std::move(list), std::move(method)),
        rules_(rules),
        mapping_(std::move(mapping)),
        ignore_(std::move(ignore)),
        groups_(std::move(groups)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (module.kind != ModuleKind::kLinear && module.kind != ModuleKind::kMoe) {
      return NotQuantized(MatchRule::kClass);
    }
    if (rules_.linear_is_fp8 && module.kind == ModuleKind::kLinear) {
      MatchResult result{.rule = MatchRule::kTarget, .entry = {}, .shards = {}};
      result.method = "fp8";
      return result;
    }
    MatchResult result = module.kind == ModuleKind::kMoe && rules_.asks_expert_zero
                             ? JudgeExpertZero(module.name)
                             : JudgeList(module.name);
    if (module.kind == ModuleKind::kMoe && rules_.ignored_moe_raises &&
        result.verdict == Verdict::kSkipped) {
      result.verdict = Verdict::kError;
      result.error = fmt::format(
          "{}: listed by \"{}\", but an ignored container gets the method "
          "of a linear layer",
          module.name, result.entry.value_or(""));
    }
    if (result.verdict == Verdict::kQuantized && rules_.has_targets) {
      return ApplyTargets(module, std::move(result));
    }
    return result;
  }

 private:
  MatchResult JudgeList(std::string_view name) const {
    const std::vector<std::string>* shards = DeclaredShards(mapping_, LastComponent(name));
    const auto ask = [&](std::string_view path) { return FirstHit(ignore_, path, rules_.test); };
    const bool is_literal =
        rules_.literal_fused && std::ranges::any_of(ignore_, [&](const ListedName& listed) {
          return listed.entry.text == name;
        });
    return shards != nullptr && !is_literal ? JudgeShards(name, *shards, ask)
                                            : JudgeName(name, ask(name));
  }

  // Expert 0 speaks for all; its three projections must agree.
  MatchResult JudgeExpertZero(std::string_view container) const {
    static const std::vector<std::string> projections = {"gate_proj", "up_proj", "down_proj"};
    const std::string stem = std::string(container) + ".0.";
    MatchResult result{.rule = MatchRule::kNone, .entry = {}, .shards = {}};
    size_t num_skipped = 0;
    for (const std::string& projection : projections) {
      NameHit hit = FirstHit(ignore_, stem + projection, rules_.test);
      if (!hit.error.empty()) {
        return JudgeName(container, std::move(hit));
      }
      num_skipped += hit.hit ? 1 : 0;
      result.shards.push_back({projection, std::move(hit.entry)});
    }
    result.rule = MatchRule::kExpertZero;
    if (num_skipped == projections.size()) {
      result.verdict = Verdict::kSkipped;
      result.entry = result.shards.front().entry;
    } else if (num_skipped != 0) {
      result.verdict = Verdict::kError;
      result.error = fmt::format(
          "{}: gate_proj, up_proj and down_proj of expert 0 must all be "
          "listed or none of them, {} of 3 are",
          container, num_skipped);
    }
    return result;
  }

  MatchResult ApplyTargets(const ModuleQuery& module, MatchResult result) const {
    for (const Group& group : groups_) {
      for (const ListedName& target : group.targets) {
        NameHit hit = TargetHit(target, module);
        if (!hit.error.empty()) {
          return JudgeName(module.name, std::move(hit));
        }
        if (hit.hit) {
          result.method = group.method;
          result.group = static_cast<int>(&group - groups_.data());
          return result;
        }
      }
    }
    if (!rules_.untargeted_raises) {
      return NotQuantized(MatchRule::kTarget);
    }
    result.verdict = Verdict::kError;
    result.rule = MatchRule::kTarget;
    result.error = fmt::format("{}: no target of config_groups fits this module", module.name);
    return result;
  }

  // By name, by a part of the class name, or by every shard's name. "Linear" serves containers.
  NameHit TargetHit(const ListedName& target, const ModuleQuery& module) const {
    const std::span<const ListedName> one(&target, 1);
    NameHit hit = FirstHit(one, module.name, PlainTest::kEqual);
    if (hit.hit || !hit.error.empty()) {
      return hit;
    }
    const std::string& text = target.entry.text;
    if (target.pattern == nullptr && (ContainsIgnoringCase(ClassOf(module), text) ||
                                      (module.kind == ModuleKind::kMoe && text == "Linear"))) {
      return {true, MatchRule::kEqual, target.entry.original};
    }
    if (module.kind == ModuleKind::kMoe) {
      return FirstHit(one, std::string(module.name) + ".0.gate_proj", PlainTest::kEqual);
    }
    const std::string_view last = LastComponent(module.name);
    const std::vector<std::string>* shards = DeclaredShards(mapping_, last);
    for (const std::string& shard : shards == nullptr ? std::vector<std::string>() : *shards) {
      hit = FirstHit(one, ReplaceAll(module.name, last, shard), PlainTest::kEqual);
      if (!hit.hit) {
        return hit;
      }
    }
    return hit;
  }

  ShardedRules rules_;
  std::vector<FusedMapping> mapping_;
  std::vector<ListedName> ignore_;
  std::vector<Group> groups_;
};

ShardedRules RulesOf(Dialect dialect, const QuantizationFields& fields) {
  switch (dialect) {
    case Dialect::kSglangQuark:
      return {.literal_fused = false, .has_targets = false};
    case Dialect::kSglangW8a8Int8:
      return {.test = PlainTest::kContainsIgnoringCase,
              .has_targets = false,
              .ignored_moe_raises = true};
    case Dialect::kSglangCompressedTensors:
      return {.test = PlainTest::kContainsIgnoringCase,
              .asks_expert_zero = true,
              .untargeted_raises = true,
              .linear_is_fp8 = fields.has_linear_fp8_config};
    default:
      return {};
  }
}

}  // namespace

ReaderResult MakeCompressedTensorsReader(const QuantizationFields& fields,
                                         const ReaderContext& context) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesOf(fields.ignore));
  ASSIGN_OR_RETURN(std::vector<ListedName> ignore,
                   CompileNames(AsWritten(names), EntryForm::kMarked));
  ASSIGN_OR_RETURN(std::vector<Group> groups, CompileGroups(fields));
  return std::unique_ptr<DialectReader>(std::make_unique<LibraryReader>(
      WrittenList{fields.ignore.exists() ? "ignore" : "", std::move(names)}, context.mapping,
      std::move(ignore), std::move(groups)));
}

ReaderResult MakeShardedNamesReader(Dialect dialect, const QuantizationFields& fields,
                                    const ReaderContext& context) {
  const NameList& read = dialect == Dialect::kSglangQuark ? fields.exclude : fields.ignore;
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesOf(read));
  std::vector<IgnoreEntry> entries = AsWritten(names);
  if (!context.mapper.IsEmpty()) {
    entries = RenameAll(context.mapper, std::move(entries));
  }
  ASSIGN_OR_RETURN(std::vector<ListedName> ignore, CompileNames(entries, EntryForm::kMarked));
  ASSIGN_OR_RETURN(std::vector<Group> groups, CompileGroups(fields));
  const std::string_view method = dialect == Dialect::kSglangQuark      ? "quark"
                                  : dialect == Dialect::kSglangW8a8Int8 ? "int8"
                                                                        : "compressed-tensors";
  return std::unique_ptr<DialectReader>(std::make_unique<ShardedNamesReader>(
      WrittenList{read.exists() ? read.key : "", std::move(names)}, std::string(method),
      RulesOf(dialect, fields), context.mapping, std::move(ignore), std::move(groups)));
}

}  // namespace octavo
