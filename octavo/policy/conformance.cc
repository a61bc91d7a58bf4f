#include "octavo/policy/conformance.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/json_depth.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {
namespace {

// Ordered, because the rules of a mapper are tried in the order written.
using Json = nlohmann::ordered_json;

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

Result<ReaderContext> ReadContext(const Json& line) {
  ReaderContext context;
  ASSIGN_OR_RETURN(context.mapping, ReadMapping(At(line, "packed_modules_mapping")));
  if (line.contains("env_ignored")) {
    ASSIGN_OR_RETURN(context.env_ignored, Text(line, "env_ignored"));
  }
  if (const Json& mapper = At(line, "weights_mapper"); !mapper.is_null()) {
    if (!mapper.is_object()) {
      return Corrupt("weights_mapper: expected an object, got {}", mapper.type_name());
    }
    ASSIGN_OR_RETURN(context.mapper.substr, ReadRenames(At(mapper, "substr")));
    ASSIGN_OR_RETURN(context.mapper.prefix, ReadRenames(At(mapper, "prefix")));
    ASSIGN_OR_RETURN(context.mapper.suffix, ReadRenames(At(mapper, "suffix")));
  }
  if (const Json& source = At(line, "source_fp8"); !source.is_null()) {
    if (!source.is_boolean()) {
      return Corrupt("source_fp8: expected a boolean, got {}", source.type_name());
    }
    context.source_fp8 = source.get<bool>();
  }
  return context;
}

// The key under which a dialect finds its list.
std::string_view ListKeyOf(Dialect dialect) {
  switch (dialect) {
    case Dialect::kSglangQuark:
      return "exclude";
    case Dialect::kSglangPetitNvfp4:
      return "exclude_modules";
    case Dialect::kSglangBlockwiseInt8:
      return "ignored_layers";
    case Dialect::kSglangModelOpt:
    case Dialect::kSglangModelOptMixed:
    case Dialect::kVllmModelOpt:
    case Dialect::kSglangCompressedTensors:
    case Dialect::kVllmCompressedTensors:
    case Dialect::kCompressedTensors:
    case Dialect::kSglangW8a8Int8:
    case Dialect::kRefitMilesNvfp4:
      return "ignore";
    default:
      return "modules_to_not_convert";
  }
}

// The quantization_config that a line means: its own, or the least one that carries its list.
Json ConfigOf(const Json& line, Dialect dialect) {
  if (line.contains("config")) {
    return line["config"];
  }
  Json config = {{ListKeyOf(dialect), At(line, "ignored")}};
  switch (dialect) {
    case Dialect::kSglangModelOpt:
    case Dialect::kVllmModelOpt:
      config["quant_algo"] = "FP8";
      break;
    case Dialect::kSglangModelOptMixed:
      config["quant_algo"] = "MIXED_PRECISION";
      config["quantized_layers"] = At(line, "quantized_layers");
      break;
    case Dialect::kSglangCompressedTensors:
    case Dialect::kVllmCompressedTensors:
    case Dialect::kCompressedTensors: {
      const Json targets = line.contains("targets") ? line["targets"] : Json::array({"Linear"});
      config["config_groups"]["group_0"]["targets"] = targets;
      break;
    }
    default:
      break;
  }
  return config;
}

// What a line asks, apart from the module.
struct Question {
  std::unique_ptr<DialectReader> reader;
  std::string class_name = {};
};

Result<Question> ReadQuestion(const Json& line, Dialect dialect) {
  Question question;
  ASSIGN_OR_RETURN(const ReaderContext context, ReadContext(line));
  // Apart from `config` the list must be there: a line without one asks nothing.
  if (!line.contains("config")) {
    ASSIGN_OR_RETURN(const std::vector<std::string> ignored, Texts(At(line, "ignored"), "ignored"));
  }
  if (line.contains("module_class")) {
    ASSIGN_OR_RETURN(question.class_name, Text(line, "module_class"));
  }
  ASSIGN_OR_RETURN(question.reader, MakeReader(dialect, Dump(ConfigOf(line, dialect)), context));
  return question;
}

Result<MatchResult> Ask(const Question& question, const std::string& module,
                        const std::string& kind_name) {
  const std::optional<ModuleKind> kind = ParseModuleKind(kind_name);
  if (!kind) {
    return Corrupt("kind: expected linear, moe, lm_head, embedding or router, got {}", kind_name);
  }
  return question.reader->Judge({.name = module, .kind = *kind, .class_name = question.class_name});
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

// Judges one module; `out->mismatch` stays empty when the line holds.
Status RunQuestion(const Json& line, const Question& question, MatchingLine* out) {
  ASSIGN_OR_RETURN(out->module, Text(line, "module"));
  ASSIGN_OR_RETURN(const std::string kind, Text(line, "kind"));
  ASSIGN_OR_RETURN(const std::string expect, Text(line, "expect"));
  ASSIGN_OR_RETURN(const MatchResult match, Ask(question, out->module, kind));
  out->verdict = VerdictName(match.verdict);
  out->rule = MatchRuleName(match.rule);
  out->entry = match.entry;
  out->message = match.error;
  if (out->verdict != expect) {
    out->mismatch = fmt::format("expected {}, got {}", expect, out->verdict);
    return OkStatus();
  }
  // Key order means nothing here.
  const auto expected_why = nlohmann::json::parse(Dump(At(line, "why")), nullptr, false);
  const auto why = nlohmann::json::parse(Dump(WhyOf(match)), nullptr, false);
  if (line.contains("why") && expected_why != why) {
    out->mismatch = fmt::format("expected why {}, got {}", expected_why.dump(), why.dump());
  } else if (line.contains("method")) {
    ASSIGN_OR_RETURN(const std::string method, Text(line, "method"));
    if (match.method != method) {
      out->mismatch = fmt::format("expected method {}, got {}", method, match.method);
    }
  }
  return OkStatus();
}

// The same for a whole model: every module is judged, and the first that differs is named.
Status RunModel(const Json& line, const Question& question, MatchingLine* out) {
  ASSIGN_OR_RETURN(const std::vector<std::string> skipped, Texts(At(line, "skipped"), "skipped"));
  ASSIGN_OR_RETURN(const std::vector<std::string> errors, Texts(At(line, "error"), "error"));
  size_t num_modules = 0;
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
      out->mismatch = fmt::format("{}: expected {}, got {}", names[0], VerdictName(expected),
                                  VerdictName(match.verdict));
      return OkStatus();
    }
    ++num_modules;
    num_skipped += expect_skipped ? 1 : 0;
    num_errors += expect_error ? 1 : 0;
  }
  if (num_skipped != skipped.size() || num_errors != errors.size()) {
    out->mismatch = "the line expects verdicts for modules that it does not list";
    return OkStatus();
  }
  out->module = fmt::format("{} modules", num_modules);
  out->verdict = fmt::format("{} skipped, {} quantized, {} errors", num_skipped,
                             num_modules - num_skipped - num_errors, num_errors);
  return OkStatus();
}

DialectTally& TallyOf(const std::string& dialect, MatchingReport* report) {
  for (DialectTally& tally : report->dialects) {
    if (tally.dialect == dialect) {
      return tally;
    }
  }
  report->dialects.push_back(
      {.dialect = dialect, .is_supported = ParseDialect(dialect).has_value()});
  return report->dialects.back();
}

Status RunLine(std::string_view text, MatchingReport* report, MatchingLine* out) {
  if (!IsShallowJson(text)) {
    return Corrupt("expected at most {} levels of nesting", kJsonDepthMax);
  }
  const Json line = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!line.is_object()) {
    return Corrupt("expected a JSON object");
  }
  ASSIGN_OR_RETURN(out->dialect, Text(line, "dialect"));
  const Json& id = At(line, line.contains("id") ? "id" : "model");
  out->id = id.is_string() ? id.get<std::string>() : Dump(id);
  DialectTally& tally = TallyOf(out->dialect, report);
  ++tally.num_lines;
  const std::optional<Dialect> dialect = ParseDialect(out->dialect);
  if (!dialect) {
    out->verdict = "unsupported";
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const Question question, ReadQuestion(line, *dialect));
  RETURN_IF_ERROR(line.contains("modules") ? RunModel(line, question, out)
                                           : RunQuestion(line, question, out));
  ++(out->mismatch.empty() ? tally.num_passed : tally.num_failed);
  return OkStatus();
}

Json LineJson(const MatchingLine& line) {
  Json out = {{"line", line.line_num}, {"id", line.id},           {"dialect", line.dialect},
              {"module", line.module}, {"verdict", line.verdict}, {"rule", line.rule}};
  out["entry"] = line.entry ? Json(*line.entry) : Json();
  if (!line.message.empty()) {
    out["message"] = line.message;
  }
  out["mismatch"] = line.mismatch.empty() ? Json() : Json(line.mismatch);
  return out;
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
    MatchingLine out{.line_num = line_num};
    if (const Status status = RunLine(line, &report, &out); !status.ok()) {
      return status.WithContext(fmt::format("line {}", line_num));
    }
    report.lines.push_back(std::move(out));
  }
  return report;
}

std::string MatchingReportText(const MatchingReport& report) {
  std::string text;
  for (const MatchingLine& line : report.lines) {
    text += fmt::format("{} {} {}: {}", line.id, line.dialect, line.module, line.verdict);
    if (!line.rule.empty()) {
      text += fmt::format(" by {}", line.rule);
    }
    if (line.entry) {
      text += fmt::format(" \"{}\"", *line.entry);
    }
    text += line.mismatch.empty() ? "\n" : fmt::format("  MISMATCH: {}\n", line.mismatch);
  }
  text += fmt::format("{:<28} {:>6} {:>7} {:>7}", "dialect", "lines", "passed", "failed");
  for (const DialectTally& tally : report.dialects) {
    text += tally.is_supported
                ? fmt::format("\n{:<28} {:>6} {:>7} {:>7}", tally.dialect, tally.num_lines,
                              tally.num_passed, tally.num_failed)
                : fmt::format("\n{:<28} {:>6} unsupported", tally.dialect, tally.num_lines);
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
                        {"failed", tally.num_failed}});
  }
  Json lines = Json::array();
  for (const MatchingLine& line : report.lines) {
    lines.push_back(LineJson(line));
  }
  return Dump(
      {{"lines", std::move(lines)}, {"dialects", std::move(dialects)}, {"ok", report.ok()}});
}

}  // namespace octavo
