#include "octavo/policy/sglang_match.h"

#include <algorithm>
#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/policy/fused_shards.h"

namespace octavo {
namespace {

constexpr std::string_view kGateUp = "gate_up_proj";
constexpr std::string_view kExperts = "experts";

// The two names that SGLang knows as fused when the model class declares no mapping for them.
const std::vector<std::string>* FallbackShards(std::string_view fused) {
  static const std::vector<std::string> qkv_shards = {"q_proj", "k_proj", "v_proj"};
  static const std::vector<std::string> gate_up_shards = {"gate_proj", "up_proj"};
  if (fused == "qkv_proj") {
    return &qkv_shards;
  }
  if (fused == kGateUp) {
    return &gate_up_shards;
  }
  return nullptr;
}

// Null when `last` is no fused name. The fallback is consulted name by name.
const std::vector<std::string>* ShardsOf(std::string_view last,
                                         std::span<const FusedMapping> mapping) {
  const std::vector<std::string>* declared = DeclaredShards(mapping, last);
  return declared != nullptr ? declared : FallbackShards(last);
}

const IgnoreEntry* FirstDotted(std::span<const IgnoreEntry> entries, std::string_view path) {
  const auto hit = std::ranges::find_if(
      entries, [&](const IgnoreEntry& entry) { return IsDottedRun(entry.text, path); });
  return hit == entries.end() ? nullptr : &*hit;
}

const IgnoreEntry* FirstEqual(std::span<const IgnoreEntry> entries, std::string_view text) {
  const auto hit = std::ranges::find(entries, text, &IgnoreEntry::text);
  return hit == entries.end() ? nullptr : &*hit;
}

NameHit DottedHit(std::span<const IgnoreEntry> entries, std::string_view path) {
  const IgnoreEntry* hit = FirstDotted(entries, path);
  return hit == nullptr ? NameHit{} : NameHit{true, MatchRule::kPath, hit->original};
}

MatchResult Skipped(MatchRule rule, const IgnoreEntry& entry) {
  return {.verdict = Verdict::kSkipped, .rule = rule, .entry = entry.original, .shards = {}};
}

}  // namespace

std::string_view VerdictName(Verdict verdict) {
  switch (verdict) {
    case Verdict::kSkipped:
      return "skipped";
    case Verdict::kQuantized:
      return "quantized";
    case Verdict::kError:
      return "error";
  }
  return "unknown";
}

std::string_view MatchRuleName(MatchRule rule) {
  switch (rule) {
    case MatchRule::kPath:
      return "path";
    case MatchRule::kExpertReverse:
      return "expert_reverse";
    case MatchRule::kGateUpPair:
      return "gate_up_pair";
    case MatchRule::kFused:
      return "fused";
    case MatchRule::kClass:
      return "class";
    case MatchRule::kNone:
      return "none";
    case MatchRule::kEqual:
      return "equal";
    case MatchRule::kPrefix:
      return "prefix";
    case MatchRule::kSuffix:
      return "suffix";
    case MatchRule::kSubstring:
      return "substring";
    case MatchRule::kExpression:
      return "expression";
    case MatchRule::kWildcard:
      return "wildcard";
    case MatchRule::kMlaTail:
      return "mla_tail";
    case MatchRule::kExpertZero:
      return "expert_zero";
    case MatchRule::kTarget:
      return "target";
    case MatchRule::kLayerMap:
      return "layer_map";
    case MatchRule::kFilter:
      return "filter";
  }
  return "unknown";
}

std::string_view StripTrailingDots(std::string_view text) {
  const size_t last = text.find_last_not_of('.');
  return text.substr(0, last == std::string_view::npos ? 0 : last + 1);
}

bool IsDottedRun(std::string_view entry, std::string_view path) {
  // The text "." + entry + "." occurs in "." + path + ".".
  entry = StripTrailingDots(entry);
  path = StripTrailingDots(path);
  size_t pos = 0;
  while (pos <= path.size()) {
    const size_t hit = path.find(entry, pos);
    if (hit == std::string_view::npos) {
      return false;
    }
    const size_t end = hit + entry.size();
    const bool starts = hit == 0 || path[hit - 1] == '.';
    const bool ends = end == path.size() || path[end] == '.';
    // An empty entry needs two neighbouring dots, or an empty path.
    if (starts && ends) {
      return true;
    }
    pos = hit + 1;
  }
  return false;
}

MatchResult SglangMatch(std::span<const IgnoreEntry> entries, std::string_view module,
                        std::span<const FusedMapping> mapping) {
  if (const std::vector<std::string>* shards = ShardsOf(LastComponent(module), mapping)) {
    return JudgeShards(module, *shards,
                       [&](std::string_view path) { return DottedHit(entries, path); });
  }
  if (const IgnoreEntry* hit = FirstDotted(entries, module)) {
    return Skipped(MatchRule::kPath, *hit);
  }
  if (module.find(kGateUp) != std::string_view::npos) {
    const IgnoreEntry* gate = FirstEqual(entries, ReplaceAll(module, kGateUp, "gate_proj"));
    const IgnoreEntry* up = FirstEqual(entries, ReplaceAll(module, kGateUp, "up_proj"));
    if (gate != nullptr && up != nullptr) {
      return Skipped(MatchRule::kGateUpPair, *gate);
    }
  } else if (module.find(kExperts) != std::string_view::npos) {
    for (const IgnoreEntry& entry : entries) {
      if (entry.text.find(kExperts) != std::string::npos &&
          entry.text.find(module) != std::string::npos) {
        return Skipped(MatchRule::kExpertReverse, entry);
      }
    }
  }
  return {};
}

}  // namespace octavo
