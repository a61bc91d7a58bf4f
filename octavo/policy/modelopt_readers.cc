// The ModelOpt dialects: sglang_modelopt, sglang_modelopt_mixed and vllm_modelopt.
//
// Sources: SGLang of 2026-06-11, python/sglang/srt/layers/quantization/modelopt_quant.py; vLLM of
// 2026, vllm/model_executor/layers/quantization/modelopt.py.

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/dialect_readers.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/modelopt_excluded.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/name_list.h"
#include "octavo/policy/name_pattern.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/vllm_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {
namespace {

constexpr std::string_view kWrapper = "language_model.";

std::string Lower(std::string text) {
  std::ranges::transform(text, text.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return text;
}

// The list of either form: `ignore` beside a flat quant_algo, exclude_modules under "quantization".
Result<WrittenList> ReadList(const QuantizationFields& fields) {
  const NameList& read =
      fields.has_flat_algo || fields.ignore.exists() ? fields.ignore : fields.exclude_modules;
  // MIXED_PRECISION gives each layer its own group size.
  if (fields.quant_algo.find("FP4") != std::string::npos) {
    if (!fields.group_size) {
      return InvalidArgument("quantization_config.group_size: expected one beside {}, got none",
                             fields.quant_algo);
    }
    if (read.state == NameList::State::kNull) {
      return InvalidArgument("quantization_config.{}: expected a list beside {}, got null",
                             read.key, fields.quant_algo);
    }
  }
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesOf(read));
  return WrittenList{read.exists() ? read.key : std::string(), std::move(names)};
}

// Renamed; each entry of a wrapped model also without the wrapper.
std::vector<IgnoreEntry> SglangEntries(const WrittenList& list, const WeightsMapper& mapper) {
  std::vector<IgnoreEntry> renamed = AsWritten(list.names);
  if (!mapper.IsEmpty()) {
    renamed = RenameAll(mapper, std::move(renamed));
  }
  std::vector<IgnoreEntry> entries;
  for (IgnoreEntry& entry : renamed) {
    entries.push_back(entry);
    if (entry.text.starts_with(kWrapper)) {
      entries.push_back({entry.text.substr(kWrapper.size()), std::move(entry.original)});
    }
  }
  return entries;
}

class SglangModelOptReader : public DialectReader {
 public:
  SglangModelOptReader(WrittenList list, std::string method, std::vector<FusedMapping> mapping,
                       std::vector<IgnoreEntry> entries, ExcludedNames excluded)
      : DialectReader(std::move(list), std::move(method)),
        mapping_(std::move(mapping)),
        entries_(std::move(entries)),
        excluded_(std::move(excluded)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (module.kind != ModuleKind::kLinear && module.kind != ModuleKind::kMoe) {
      return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
    }
    if (module.kind == ModuleKind::kMoe) {
      return JudgeName(module.name, excluded_.FirstHit(module.name));
    }
    MatchResult listed = SglangMatch(entries_, module.name, mapping_);
    if (listed.verdict != Verdict::kQuantized) {
      return listed;
    }
    NameHit hit = excluded_.FirstHit(module.name);
    return hit.hit || !hit.error.empty() ? JudgeName(module.name, std::move(hit)) : listed;
  }

 private:
  std::vector<FusedMapping> mapping_;
  std::vector<IgnoreEntry> entries_;
  ExcludedNames excluded_;
};

using LayerMap = std::vector<std::pair<std::string, std::string>>;

// An algorithm a module, from a map; "" for none.
class SglangModelOptMixedReader : public DialectReader {
 public:
  SglangModelOptMixedReader(SglangModelOptReader exclusion, std::vector<FusedMapping> mapping,
                            LayerMap algorithms)
      : DialectReader(exclusion.list(), /*method=*/{}),
        exclusion_(std::move(exclusion)),
        mapping_(std::move(mapping)),
        algorithms_(std::move(algorithms)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    std::string algorithm;
    // Raises before exclusion is looked at.
    if (std::string error = FindAlgorithm(module.name, &algorithm); !error.empty()) {
      return {.verdict = Verdict::kError,
              .rule = MatchRule::kLayerMap,
              .entry = {},
              .shards = {},
              .error = std::move(error)};
    }
    MatchResult result = exclusion_.Judge(module);
    if (result.verdict != Verdict::kQuantized) {
      return result;
    }
    if (algorithm != "FP8" && algorithm != "NVFP4") {
      return {
          .verdict = Verdict::kSkipped, .rule = MatchRule::kLayerMap, .entry = {}, .shards = {}};
    }
    result.method = Lower(std::move(algorithm));
    return result;
  }

 private:
  const std::string* Find(std::string_view name) const {
    const auto found = std::ranges::find(algorithms_, name, &LayerMap::value_type::first);
    return found == algorithms_.end() ? nullptr : &found->second;
  }

  // Returns what the reference raises, empty for nothing.
  std::string FindAlgorithm(std::string_view module, std::string* algorithm) const {
    if (const std::string* exact = Find(module)) {
      *algorithm = *exact;
      return {};
    }
    const std::string_view last = LastComponent(module);
    const std::vector<std::string>* shards = DeclaredShards(mapping_, last);
    bool any = false;
    for (const std::string& shard : shards == nullptr ? std::vector<std::string>() : *shards) {
      const std::string* found = Find(ReplaceAll(module, last, shard));
      if (found == nullptr) {
        continue;  // Missing shards are not noticed.
      }
      if (any && *found != *algorithm) {
        return fmt::format("{}: its shards have different algorithms: {} and {}", module,
                           *algorithm, *found);
      }
      *algorithm = *found;
      any = true;
    }
    if (any) {
      return {};
    }
    const std::string below = std::string(module) + ".";
    const auto inside = std::ranges::find_if(
        algorithms_, [&](const auto& layer) { return layer.first.starts_with(below); });
    if (inside != algorithms_.end()) {
      *algorithm = inside->second;
    }
    return {};
  }

  SglangModelOptReader exclusion_;
  std::vector<FusedMapping> mapping_;
  LayerMap algorithms_;
};

class VllmModelOptReader : public DialectReader {
 public:
  VllmModelOptReader(WrittenList list, std::string method, std::vector<FusedMapping> mapping,
                     std::vector<IgnoreEntry> entries)
      : DialectReader(std::move(list), std::move(method)),
        mapping_(std::move(mapping)),
        entries_(std::move(entries)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    // lm_head is eligible: it must be listed.
    if (module.kind == ModuleKind::kEmbedding || module.kind == ModuleKind::kRouter ||
        module.kind == ModuleKind::kNorm) {
      return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
    }
    if (!entries_.empty()) {
      MatchResult listed = VllmExactMatch(entries_, module.name, mapping_);
      if (listed.verdict != Verdict::kQuantized) {
        return listed;
      }
      if (NameHit hit = LooseHit(module.name); hit.hit) {
        return JudgeName(module.name, std::move(hit));
      }
    }
    for (const std::string_view vision : {"vision_tower", "vision_model", "visual"}) {
      if (module.name.find(vision) != std::string_view::npos) {
        return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
      }
    }
    return {};
  }

 private:
  NameHit LooseHit(std::string_view module) const {
    const std::string_view bare =
        module.starts_with(kWrapper) ? module.substr(kWrapper.size()) : module;
    for (const IgnoreEntry& entry : entries_) {
      // An equal entry was the exact test's business. In the bare name lies no text that the module
      // does not hold; both are asked for the equal case.
      if (entry.text != module && (module.find(entry.text) != std::string_view::npos ||
                                   bare.find(entry.text) != std::string_view::npos)) {
        return {true, MatchRule::kSubstring, entry.original};
      }
    }
    for (const IgnoreEntry& entry : entries_) {
      if (ShellGlobMatches(entry.text, module)) {
        return {true, MatchRule::kWildcard, entry.original};
      }
    }
    return {};
  }

  std::vector<FusedMapping> mapping_;
  std::vector<IgnoreEntry> entries_;
};

// Before renaming, "x*" becomes "x" and "x.*", so that rules which end in a dot still apply.
std::vector<IgnoreEntry> VllmEntries(const WrittenList& list, const WeightsMapper& mapper) {
  if (mapper.IsEmpty()) {
    return AsWritten(list.names);
  }
  std::vector<IgnoreEntry> split;
  for (const std::string& name : list.names) {
    if (name.size() >= 2 && name.ends_with('*') && !name.ends_with(".*")) {
      const std::string stem = name.substr(0, name.size() - 1);
      split.push_back({stem, name});
      split.push_back({stem + ".*", name});
    } else {
      split.push_back({name, name});
    }
  }
  return RenameAll(mapper, std::move(split));
}

Result<SglangModelOptReader> BuildSglangReader(const QuantizationFields& fields,
                                               const ReaderContext& context) {
  ASSIGN_OR_RETURN(WrittenList list, ReadList(fields));
  std::vector<IgnoreEntry> entries = SglangEntries(list, context.mapper);
  ASSIGN_OR_RETURN(ExcludedNames excluded, ExcludedNames::Compile(entries));
  return SglangModelOptReader(std::move(list), Lower(fields.quant_algo), context.mapping,
                              std::move(entries), std::move(excluded));
}

}  // namespace

ReaderResult MakeSglangModelOptReader(const QuantizationFields& fields,
                                      const ReaderContext& context) {
  ASSIGN_OR_RETURN(SglangModelOptReader reader, BuildSglangReader(fields, context));
  return std::unique_ptr<DialectReader>(std::make_unique<SglangModelOptReader>(std::move(reader)));
}

ReaderResult MakeSglangModelOptMixedReader(const QuantizationFields& fields,
                                           const ReaderContext& context) {
  ASSIGN_OR_RETURN(SglangModelOptReader reader, BuildSglangReader(fields, context));
  LayerMap renamed;
  for (const auto& [module, algorithm] : fields.quantized_layers) {
    std::string name = module;
    if (Rename(context.mapper, &name)) {
      renamed.emplace_back(std::move(name), algorithm);
    }
  }
  return std::unique_ptr<DialectReader>(std::make_unique<SglangModelOptMixedReader>(
      std::move(reader), context.mapping, std::move(renamed)));
}

ReaderResult MakeVllmModelOptReader(const QuantizationFields& fields,
                                    const ReaderContext& context) {
  ASSIGN_OR_RETURN(WrittenList list, ReadList(fields));
  std::vector<IgnoreEntry> entries = VllmEntries(list, context.mapper);
  return std::unique_ptr<DialectReader>(std::make_unique<VllmModelOptReader>(
      std::move(list), Lower(fields.quant_algo), context.mapping, std::move(entries)));
}

}  // namespace octavo
