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
#include "octavo/policy/module_kind.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {

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
Result<SglangFp8List> SglangFp8ListOf(const QuantizationFields& fields,
                                      const SglangFp8Options& options);

// The steps after the key: normalise, append the environment list, rename.
std::vector<IgnoreEntry> SglangFp8Entries(std::span<const std::string> written,
                                          const SglangFp8Options& options);

// Thread-safe.
MatchResult SglangFp8Match(std::span<const IgnoreEntry> entries, std::string_view module,
                           ModuleKind kind, std::span<const FusedMapping> mapping);

}  // namespace octavo
