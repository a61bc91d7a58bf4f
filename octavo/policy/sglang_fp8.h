#pragma once
// The dialect "sglang_fp8": how SGLang reads the list of an FP8 (or MXFP8) checkpoint.
//
//   key -> normalised entries -> environment list -> renaming by the model class -> matcher
//
// Source: SGLang of 2026-06-11, python/sglang/srt/layers/quantization/fp8.py, Fp8Config.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

// What an engine builds a module as; it decides whether the list is asked at all.
enum class ModuleKind {
  kLinear,  // A linear layer that was given the quantization config.
  kMoe,     // The container of routed experts.
  kLmHead,
  kEmbedding,
  kRouter,  // A router class that is no linear layer.
  kNorm,
};

// "linear", "moe", ...; the spelling of the published vectors.
std::string_view ModuleKindName(ModuleKind kind);
std::optional<ModuleKind> ParseModuleKind(std::string_view name);

// One renaming of the model class. No target: an entry that the rule hits is dropped.
struct RenameRule {
  std::string key;
  std::optional<std::string> target;
};

// At most one rule of each kind is applied to an entry, the longest key first, in this order.
struct WeightsMapper {
  std::vector<RenameRule> substr;  // Replaces the first occurrence.
  std::vector<RenameRule> prefix;
  std::vector<RenameRule> suffix;

  bool IsEmpty() const { return substr.empty() && prefix.empty() && suffix.empty(); }
};

struct SglangFp8Options {
  std::string env_ignored;  // Comma-separated; SGLang's SGLANG_FP8_IGNORED_LAYERS.
  WeightsMapper mapper;
};

// The list of a checkpoint, ready for the matcher.
struct SglangFp8List {
  std::string key;  // "ignored_layers", "modules_to_not_convert", or empty when neither is there.
  bool hides_other_key = false;  // ignored_layers is there, and modules_to_not_convert is filled.
  std::vector<std::string> written;  // The entries as the checkpoint has them.
  std::vector<IgnoreEntry> entries;  // After all four steps.
};

// `quantization_config` is a JSON object, or empty for a checkpoint without one.
// Errors: kCorrupt for text that is not a JSON object, kInvalidArgument for a list that is not a
// list of strings; both name the key.
Result<SglangFp8List> ReadSglangFp8List(std::string_view quantization_config,
                                        const SglangFp8Options& options);

// The steps after the key: normalise, append the environment list, rename.
std::vector<IgnoreEntry> SglangFp8Entries(std::span<const std::string> written,
                                          const SglangFp8Options& options);

// Thread-safe.
MatchResult SglangFp8Match(std::span<const IgnoreEntry> entries, std::string_view module,
                           ModuleKind kind, std::span<const FusedMapping> mapping);

}  // namespace octavo
