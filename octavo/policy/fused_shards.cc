#include "octavo/policy/fused_shards.h"

#include <fmt/core.h>

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

std::string DisagreementText(std::string_view module, const std::vector<ShardMatch>& shards) {
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

}  // namespace

std::string_view LastComponent(std::string_view module) {
  const size_t dot = module.rfind('.');
  return dot == std::string_view::npos ? module : module.substr(dot + 1);
}

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

const std::vector<std::string>* DeclaredShards(std::span<const FusedMapping> mapping,
                                               std::string_view last) {
  for (const FusedMapping& candidate : mapping) {
    if (candidate.fused == last) {
      return &candidate.shards;
    }
  }
  return nullptr;
}

MatchResult JudgeShards(std::string_view module, const std::vector<std::string>& shards,
                        FunctionRef<NameHit(std::string_view path)> ask) {
  MatchResult result{.rule = MatchRule::kFused, .entry = {}, .shards = {}};
  size_t num_skipped = 0;
  for (const std::string& shard : shards) {
    NameHit hit = ask(ReplaceAll(module, LastComponent(module), shard));
    if (!hit.error.empty()) {
      result.verdict = Verdict::kError;
      result.error = fmt::format("{}: {}: {}", module, shard, hit.error);
      return result;
    }
    num_skipped += hit.hit ? 1 : 0;
    result.shards.push_back({shard, std::move(hit.entry)});
  }
  if (shards.empty() || (num_skipped != 0 && num_skipped != shards.size())) {
    result.verdict = Verdict::kError;
    result.error = DisagreementText(module, result.shards);
  } else {
    result.verdict = num_skipped != 0 ? Verdict::kSkipped : Verdict::kQuantized;
  }
  return result;
}

MatchResult JudgeName(std::string_view module, NameHit hit) {
  MatchResult result{.rule = hit.rule, .entry = std::move(hit.entry), .shards = {}};
  if (!hit.error.empty()) {
    result.verdict = Verdict::kError;
    result.error = fmt::format("{}: {}", module, hit.error);
  } else {
    result.verdict = hit.hit ? Verdict::kSkipped : Verdict::kQuantized;
  }
  return result;
}

}  // namespace octavo
