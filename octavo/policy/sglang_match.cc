#include "octavo/policy/sglang_match.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

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
  for (const FusedMapping& candidate : mapping) {
    if (candidate.fused == last) {
      return &candidate.shards;
    }
  }
  return FallbackShards(last);
}

// Python's str.replace: every occurrence, left to right.
std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t pos = 0;
  while (!from.empty()) {
    const size_t hit = text.find(from, pos);
    if (hit == std::string_view::npos) {
      break;
    }
    out.append(text.substr(pos, hit - pos)).append(to);
    pos = hit + from.size();
  }
  return out.append(text.substr(pos));
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

std::string FusedError(std::string_view module, const std::vector<ShardMatch>& shards) {
  if (shards.empty()) {
    return fmt::format("{}: the mapping of this fused module names no shards", module);
  }
  std::string text = fmt::format("{}: its shards must all be listed or none of them:", module);
  std::string_view separator = " ";
  for (const ShardMatch& shard : shards) {
    text += separator;
    text += shard.entry ? fmt::format("{} is listed by \"{}\"", shard.shard, *shard.entry)
                        : fmt::format("{} is not listed", shard.shard);
    separator = ", ";
  }
  return text;
}

MatchResult MatchFused(std::span<const IgnoreEntry> entries, std::string_view module,
                       std::string_view last, const std::vector<std::string>& shards) {
  MatchResult result;
  result.rule = MatchRule::kFused;
  size_t num_skipped = 0;
  for (const std::string& shard : shards) {
    const IgnoreEntry* hit = FirstDotted(entries, ReplaceAll(module, last, shard));
    num_skipped += hit != nullptr ? 1 : 0;
    result.shards.push_back({shard, hit != nullptr ? std::optional(hit->original) : std::nullopt});
  }
  if (shards.empty() || (num_skipped != 0 && num_skipped != shards.size())) {
    result.verdict = Verdict::kError;
    result.error = FusedError(module, result.shards);
  } else {
    result.verdict = num_skipped != 0 ? Verdict::kSkipped : Verdict::kQuantized;
  }
  return result;
}

MatchResult Skipped(MatchRule rule, const IgnoreEntry& entry) {
  return {Verdict::kSkipped, rule, entry.original, {}, {}};
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
  const size_t dot = module.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? module : module.substr(dot + 1);
  if (const std::vector<std::string>* shards = ShardsOf(last, mapping)) {
    return MatchFused(entries, module, last, *shards);
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
