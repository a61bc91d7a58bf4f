#include "octavo/policy/sglang_fp8.h"

#include <cstddef>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {
namespace {

constexpr std::string_view kModelPrefix = "model.";
constexpr std::string_view kBlanks = " \t\n\r\f\v";

// Python's str.strip for ASCII.
std::string_view TrimBlanks(std::string_view text) {
  const size_t first = text.find_first_not_of(kBlanks);
  if (first == std::string_view::npos) {
    return {};
  }
  return text.substr(first, text.find_last_not_of(kBlanks) - first + 1);
}

void AppendEnvironment(std::string_view list, std::vector<IgnoreEntry>* entries) {
  while (true) {
    const size_t comma = list.find(',');
    const std::string item(TrimBlanks(list.substr(0, comma)));
    if (!item.empty()) {
      entries->push_back({item, item});
    }
    if (comma == std::string_view::npos) {
      return;
    }
    list.remove_prefix(comma + 1);
  }
}

}  // namespace

std::vector<IgnoreEntry> SglangFp8Entries(std::span<const std::string> written,
                                          const SglangFp8Options& options) {
  std::vector<IgnoreEntry> entries;
  for (const std::string& original : written) {
    // Each entry is tried with and without one leading "model.".
    std::string_view bare = original;
    if (bare.starts_with(kModelPrefix)) {
      bare.remove_prefix(kModelPrefix.size());
    }
    entries.push_back({std::string(bare), original});
    entries.push_back({std::string(kModelPrefix).append(bare), original});
  }
  AppendEnvironment(options.env_ignored, &entries);
  return options.mapper.IsEmpty() ? entries : RenameAll(options.mapper, std::move(entries));
}

Result<SglangFp8List> ReadSglangFp8List(std::string_view quantization_config,
                                        const SglangFp8Options& options) {
  ASSIGN_OR_RETURN(const QuantizationFields fields, ReadQuantizationFields(quantization_config));
  return SglangFp8ListOf(fields, options);
}

Result<SglangFp8List> SglangFp8ListOf(const QuantizationFields& fields,
                                      const SglangFp8Options& options) {
  SglangFp8List list;
  const NameList& first = fields.ignored_layers;
  const NameList& second = fields.modules_to_not_convert;
  // Existence decides: a null or empty ignored_layers hides the other key.
  list.hides_other_key = first.exists() && !second.names.empty();
  const NameList& read = first.exists() ? first : second;
  if (read.exists()) {
    list.key = read.key;
    ASSIGN_OR_RETURN(list.written, NamesOf(read));
  }
  list.entries = SglangFp8Entries(list.written, options);
  return list;
}

MatchResult SglangFp8Match(std::span<const IgnoreEntry> entries, std::string_view module,
                           ModuleKind kind, std::span<const FusedMapping> mapping) {
  if (kind != ModuleKind::kLinear && kind != ModuleKind::kMoe) {
    return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
  }
  return SglangMatch(entries, module, mapping);
}

}  // namespace octavo
