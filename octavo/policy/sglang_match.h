#pragma once
// SGLang's matcher: which modules a list of names keeps in BF16 (docs/policy.md, "Foreign lists").
//
// An entry is one string of the list; a module is the dotted path under which the engine builds a
// layer; a fused module holds several checkpoint tensors, its shards.
//
// Source: SGLang of 2026-06-11, python/sglang/srt/layers/quantization/utils.py, is_layer_skipped.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace octavo {

enum class Verdict {
  kSkipped,    // Stays in BF16.
  kQuantized,  // Built in the low-precision format.
  kError,      // The engine raises while it builds the model.
};

// Which test decided.
enum class MatchRule {
  kPath,           // An entry is a run of whole components of the module's path.
  kExpertReverse,  // An entry that names one expert keeps the whole container.
  kGateUpPair,     // Both halves of a gate_up_proj inside the path are listed.
  kFused,          // The shards decided.
  kClass,          // The module's class is never quantized, listed or not.
  kNone,           // Nothing matched.
  // Of other dialects than sglang_match:
  kEqual,       // An entry is the name, or the name's class.
  kPrefix,      // An entry and a dot begin the name.
  kSuffix,      // The name ends with an entry as text.
  kSubstring,   // An entry occurs in the name as text.
  kExpression,  // A regular expression.
  kWildcard,    // A pattern with '*', against the whole name or one component of it.
  kMlaTail,     // The last component of an entry names one of MLA's projections.
  kExpertZero,  // Expert 0's three projections decided for the container.
  kTarget,      // No target fits the module, or one of another kind.
  kLayerMap,    // The map of algorithms does not name the module, or names another algorithm.
  kFilter,      // A fixed list of name parts.
};

// "skipped", "path", ...: the spelling of the published vectors.
std::string_view VerdictName(Verdict verdict);
std::string_view MatchRuleName(MatchRule rule);

// One entry as the matcher sees it, and as the checkpoint wrote it.
struct IgnoreEntry {
  std::string text;
  std::string original;
};

// Fused last component -> shard names, as a model class declares it.
struct FusedMapping {
  std::string fused;
  std::vector<std::string> shards;
};

struct ShardMatch {
  std::string shard;                 // "q_proj".
  std::optional<std::string> entry;  // The first entry (original) that matched it.
};

struct MatchResult {
  Verdict verdict = Verdict::kQuantized;
  MatchRule rule = MatchRule::kNone;
  // The first entry (original) that decided, for kPath and kExpertReverse; for kGateUpPair the
  // entry of the gate half.
  std::optional<std::string> entry;
  // For kFused in the order of the mapping; for kExpertZero gate_proj, up_proj, down_proj.
  std::vector<ShardMatch> shards;
  std::string error = {};  // For kError: module, shards and entries.
  // Of compressed-tensors: the position of the group in config_groups whose target reached the
  // module; -1 where none did.
  int group = -1;
  // What the engine builds: "bf16" for a skipped module, otherwise the format of its kernels as
  // the configuration names it ("fp8", "nvfp4"); empty when it does not say. Set by
  // DialectReader (dialect.h).
  std::string method = {};
};

// True when the components of `entry` are a run of whole components of `path`; trailing dots of
// both are ignored. An empty entry is in no path without an empty component.
bool IsDottedRun(std::string_view entry, std::string_view path);

// `text` without any trailing dots.
std::string_view StripTrailingDots(std::string_view text);

// Thread-safe.
MatchResult SglangMatch(std::span<const IgnoreEntry> entries, std::string_view module,
                        std::span<const FusedMapping> mapping);

}  // namespace octavo
