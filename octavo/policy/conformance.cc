#include "octavo/policy/conformance.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

// Ordered, because the rules of a mapper are tried in the order written.
using Json = nlohmann::ordered_json;

constexpr size_t kMaxFailures = 10;
constexpr std::string_view kMatchDialect = "sglang_match";
constexpr std::string_view kFp8Dialect = "sglang_fp8";

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

// The value at `key`, null when there is none.
const Json& At(const Json& object, std::string_view key) {
  static const Json null;
  const auto found = object.find(key);
  return found == object.end() ? null : *found;
}

Result<std::string> Text(const Json& object, std::string_view key) {
  const Json& value = At(object, key);
  if (!value.is_string()) {
    return Corrupt("{}: expected a string, got {}", key, value.type_name());
  }
  return value.get<std::string>();
}

Result<std::vector<std::string>> Texts(const Json& value, std::string_view what) {
  std::vector<std::string> out;
  if (!value.is_array()) {
    return Corrupt("{}: expected a list, got {}", what, value.type_name());
  }
  for (const Json& item : value) {
    if (!item.is_string()) {
      return Corrupt("{}: expected strings, got {}", what, item.type_name());
    }
    out.push_back(item.get<std::string>());
  }
  return out;
}

Result<std::vector<FusedMapping>> ReadMapping(const Json& value) {
  std::vector<FusedMapping> mapping;
  if (!value.is_object()) {
    return Corrupt("packed_modules_mapping: expected an object, got {}", value.type_name());
  }
  for (const auto& [fused, shards] : value.items()) {
    ASSIGN_OR_RETURN(std::vector<std::string> names, Texts(shards, "packed_modules_mapping"));
    mapping.push_back({fused, std::move(names)});
  }
  return mapping;
}

Result<std::vector<RenameRule>> ReadRenames(const Json& value) {
  std::vector<RenameRule> rules;
  if (value.is_null()) {
    return rules;
  }
  if (!value.is_object()) {
    return Corrupt("weights_mapper: expected objects, got {}", value.type_name());
  }
  for (const auto& [key, target] : value.items()) {
    if (!target.is_string() && !target.is_null()) {
      return Corrupt("weights_mapper: expected strings, got {}", target.type_name());
    }
    rules.push_back(
        {key, target.is_null() ? std::nullopt : std::optional(target.get<std::string>())});
  }
  return rules;
}

Result<SglangFp8Options> ReadOptions(const Json& line) {
  SglangFp8Options options;
  if (line.contains("env_ignored")) {
    ASSIGN_OR_RETURN(options.env_ignored, Text(line, "env_ignored"));
  }
  if (const Json& mapper = At(line, "weights_mapper"); !mapper.is_null()) {
    if (!mapper.is_object()) {
      return Corrupt("weights_mapper: expected an object, got {}", mapper.type_name());
    }
    ASSIGN_OR_RETURN(options.mapper.substr, ReadRenames(At(mapper, "substr")));
    ASSIGN_OR_RETURN(options.mapper.prefix, ReadRenames(At(mapper, "prefix")));
    ASSIGN_OR_RETURN(options.mapper.suffix, ReadRenames(At(mapper, "suffix")));
  }
  return options;
}

// What a line asks, apart from the module.
struct Question {
  std::string dialect;
  std::vector<FusedMapping> mapping;
  std::vector<IgnoreEntry> entries;
};

Result<Question> ReadQuestion(const Json& line, std::string dialect) {
  Question question{.dialect = std::move(dialect), .mapping = {}, .entries = {}};
  ASSIGN_OR_RETURN(question.mapping, ReadMapping(At(line, "packed_modules_mapping")));
  if (question.dialect == kMatchDialect) {
    ASSIGN_OR_RETURN(const std::vector<std::string> ignored, Texts(At(line, "ignored"), "ignored"));
    for (const std::string& entry : ignored) {
      question.entries.push_back({entry, entry});
    }
    return question;
  }
  ASSIGN_OR_RETURN(const SglangFp8Options options, ReadOptions(line));
  const Json config = line.contains("config")
                          ? line["config"]
                          : Json{{"modules_to_not_convert", At(line, "ignored")}};
  ASSIGN_OR_RETURN(SglangFp8List list, ReadSglangFp8List(Dump(config), options));
  question.entries = std::move(list.entries);
  return question;
}

Result<MatchResult> Ask(const Question& question, const std::string& module,
                        const std::string& kind_name) {
  const std::optional<ModuleKind> kind = ParseModuleKind(kind_name);
  if (!kind) {
    return Corrupt("kind: expected linear, moe, lm_head, embedding or router, got {}", kind_name);
  }
  if (question.dialect == kMatchDialect) {
    return SglangMatch(question.entries, module, question.mapping);
  }
  return SglangFp8Match(question.entries, module, *kind, question.mapping);
}

// `why` in the form of the vectors.
Json WhyOf(const MatchResult& match) {
  Json why = {{"rule", MatchRuleName(match.rule)}};
  if (match.entry) {
    why["entry"] = *match.entry;
  }
  if (match.rule == MatchRule::kFused) {
    Json shards = Json::object();
    for (const ShardMatch& shard : match.shards) {
      shards[shard.shard] = shard.entry ? Json(*shard.entry) : Json();
    }
    why["shards"] = std::move(shards);
  }
  return why;
}

// Empty when the line holds, otherwise a sentence.
Result<std::string> RunQuestion(const Json& line, const Question& question) {
  ASSIGN_OR_RETURN(const std::string module, Text(line, "module"));
  ASSIGN_OR_RETURN(const std::string kind, Text(line, "kind"));
  ASSIGN_OR_RETURN(const std::string expect, Text(line, "expect"));
  ASSIGN_OR_RETURN(const MatchResult match, Ask(question, module, kind));
  if (VerdictName(match.verdict) != expect) {
    return fmt::format("{}: expected {}, got {}", module, expect, VerdictName(match.verdict));
  }
  // Key order means nothing here.
  const auto expected_why = nlohmann::json::parse(Dump(At(line, "why")), nullptr, false);
  const auto why = nlohmann::json::parse(Dump(WhyOf(match)), nullptr, false);
  if (line.contains("why") && expected_why != why) {
    return fmt::format("{}: expected why {}, got {}", module, expected_why.dump(), why.dump());
  }
  return std::string();
}

// The same for a whole model: every module is judged.
Result<std::string> RunModel(const Json& line, const Question& question) {
  ASSIGN_OR_RETURN(const std::vector<std::string> skipped, Texts(At(line, "skipped"), "skipped"));
  ASSIGN_OR_RETURN(const std::vector<std::string> errors, Texts(At(line, "error"), "error"));
  size_t num_skipped = 0;
  size_t num_errors = 0;
  for (const Json& pair : At(line, "modules")) {
    ASSIGN_OR_RETURN(const std::vector<std::string> names, Texts(pair, "modules"));
    if (names.size() != 2) {
      return Corrupt("modules: expected [name, kind], got {} items", names.size());
    }
    ASSIGN_OR_RETURN(const MatchResult match, Ask(question, names[0], names[1]));
    const bool expect_error = std::ranges::find(errors, names[0]) != errors.end();
    const bool expect_skipped = std::ranges::find(skipped, names[0]) != skipped.end();
    const Verdict expected = expect_error     ? Verdict::kError
                             : expect_skipped ? Verdict::kSkipped
                                              : Verdict::kQuantized;
    if (match.verdict != expected) {
      return fmt::format("{}: expected {}, got {}", names[0], VerdictName(expected),
                         VerdictName(match.verdict));
    }
    num_skipped += expect_skipped ? 1 : 0;
    num_errors += expect_error ? 1 : 0;
  }
  if (num_skipped != skipped.size() || num_errors != errors.size()) {
    return std::string("the line expects verdicts for modules that it does not list");
  }
  return std::string();
}

DialectTally& TallyOf(const std::string& dialect, MatchingReport* report) {
  for (DialectTally& tally : report->dialects) {
    if (tally.dialect == dialect) {
      return tally;
    }
  }
  report->dialects.push_back({.dialect = dialect,
                              .is_supported = dialect == kMatchDialect || dialect == kFp8Dialect,
                              .failures = {}});
  return report->dialects.back();
}

Status RunLine(std::string_view text, MatchingReport* report) {
  if (!IsShallowJson(text)) {
    return Corrupt("expected at most {} levels of nesting", kJsonDepthMax);
  }
  const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) {
    return Corrupt("expected a JSON object");
  }
  ASSIGN_OR_RETURN(const std::string dialect, Text(line, "dialect"));
  DialectTally& tally = TallyOf(dialect, report);
  ++tally.num_lines;
  if (!tally.is_supported) {
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const Question question, ReadQuestion(line, dialect));
  ASSIGN_OR_RETURN(const std::string failure, line.contains("modules")
                                                  ? RunModel(line, question)
                                                  : RunQuestion(line, question));
  if (failure.empty()) {
    ++tally.num_passed;
    return OkStatus();
  }
  ++tally.num_failed;
  if (tally.failures.size() < kMaxFailures) {
    const Json& id = At(line, line.contains("id") ? "id" : "model");
    tally.failures.push_back(
        fmt::format("{}: {}", id.is_string() ? id.get<std::string>() : Dump(id), failure));
  }
  return OkStatus();
}

}  // namespace

const DialectTally* MatchingReport::Find(std::string_view dialect) const {
  const auto found = std::ranges::find(dialects, dialect, &DialectTally::dialect);
  return found == dialects.end() ? nullptr : &*found;
}

bool MatchingReport::ok() const {
  int num_passed = 0;
  for (const DialectTally& tally : dialects) {
    if (tally.num_failed != 0) {
      return false;
    }
    num_passed += tally.num_passed;
  }
  return num_passed > 0;
}

Result<MatchingReport> RunMatchingVectors(std::string_view jsonl) {
  MatchingReport report;
  for (int line_num = 1; !jsonl.empty(); ++line_num) {
    const size_t end = jsonl.find('\n');
    const std::string_view line = jsonl.substr(0, end);
    jsonl.remove_prefix(end == std::string_view::npos ? jsonl.size() : end + 1);
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    if (const Status status = RunLine(line, &report); !status.ok()) {
      return status.WithContext(fmt::format("line {}", line_num));
    }
  }
  return report;
}

std::string MatchingReportText(const MatchingReport& report) {
  std::string text =
      fmt::format("{:<28} {:>6} {:>7} {:>7}", "dialect", "lines", "passed", "failed");
  for (const DialectTally& tally : report.dialects) {
    text += tally.is_supported
                ? fmt::format("\n{:<28} {:>6} {:>7} {:>7}", tally.dialect, tally.num_lines,
                              tally.num_passed, tally.num_failed)
                : fmt::format("\n{:<28} {:>6} unsupported", tally.dialect, tally.num_lines);
  }
  for (const DialectTally& tally : report.dialects) {
    for (const std::string& failure : tally.failures) {
      text += fmt::format("\n{} {}", tally.dialect, failure);
    }
  }
  return text;
}

std::string MatchingReportJson(const MatchingReport& report) {
  Json dialects = Json::array();
  for (const DialectTally& tally : report.dialects) {
    dialects.push_back({{"dialect", tally.dialect},
                        {"supported", tally.is_supported},
                        {"lines", tally.num_lines},
                        {"passed", tally.num_passed},
                        {"failed", tally.num_failed},
                        {"failures", tally.failures}});
  }
  return Dump({{"dialects", std::move(dialects)}, {"ok", report.ok()}});
}

}  // namespace octavo
