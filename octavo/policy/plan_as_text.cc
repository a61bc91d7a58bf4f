// A plan of another engine, for people and for scripts.

#include <fmt/core.h>

#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "octavo/policy/engine_modules.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

// Which entry decided, per shard when they differ.
std::string EntryText(const MatchResult& match) {
  if (match.entry) {
    return fmt::format(" \"{}\"", *match.entry);
  }
  std::string text;
  for (const ShardMatch& shard : match.shards) {
    if (shard.entry) {
      text += fmt::format(" {}: \"{}\"", shard.shard, *shard.entry);
    }
  }
  return text;
}

Json ModuleJson(const PlannedModule& planned) {
  const MatchResult& match = planned.match;
  Json out = {{"module", planned.module.name},
              {"kind", ModuleKindName(planned.module.kind)},
              {"verdict", VerdictName(match.verdict)},
              {"method", match.method},
              {"rule", MatchRuleName(match.rule)}};
  out["entry"] = match.entry ? Json(*match.entry) : Json();
  if (!match.shards.empty()) {
    Json shards = Json::object();
    for (const ShardMatch& shard : match.shards) {
      shards[shard.shard] = shard.entry ? Json(*shard.entry) : Json();
    }
    out["shards"] = std::move(shards);
  }
  if (!match.error.empty()) {
    out["message"] = match.error;
  }
  out["stored"] = planned.stored;
  return out;
}

}  // namespace

std::string PlanAsText(const PlanAsReport& report) {
  std::string text =
      fmt::format("engine {}, dialect {}{}\n", EngineName(report.engine), report.dialect,
                  report.list_key.empty() ? "" : ", list " + report.list_key);
  int num_skipped = 0;
  int num_quantized = 0;
  int num_errors = 0;
  text += fmt::format("{:<12} {:<8} {}\n", "builds", "stored", "module");
  for (const PlannedModule& planned : report.modules) {
    if (planned.module.kind == ModuleKind::kNorm) {
      continue;
    }
    const MatchResult& match = planned.match;
    num_skipped += match.verdict == Verdict::kSkipped ? 1 : 0;
    num_quantized += match.verdict == Verdict::kQuantized ? 1 : 0;
    num_errors += match.verdict == Verdict::kError ? 1 : 0;
    text += fmt::format("{:<12} {:<8} {}  [{}]{}\n",
                        match.verdict == Verdict::kError ? "error"
                        : match.method.empty()           ? "quantized"
                                                         : match.method,
                        planned.stored, planned.module.name, MatchRuleName(match.rule),
                        EntryText(match));
  }
  text += fmt::format("{} modules in BF16, {} quantized, {} errors\n", num_skipped, num_quantized,
                      num_errors);
  for (const std::string& note : report.notes) {
    text += fmt::format("note: {}\n", note);
  }
  if (report.differences.empty()) {
    return text + "no difference from what is stored";
  }
  text += fmt::format("{} differences:", report.differences.size());
  for (const PolicyFinding& finding : report.differences) {
    text += fmt::format("\n{} {}: {} ({})", finding.severity, finding.code, finding.message,
                        finding.cure);
  }
  return text;
}

std::string PlanAsJson(const PlanAsReport& report) {
  Json modules = Json::array();
  for (const PlannedModule& planned : report.modules) {
    modules.push_back(ModuleJson(planned));
  }
  Json differences = Json::array();
  for (const PolicyFinding& finding : report.differences) {
    differences.push_back({{"code", finding.code},
                           {"severity", finding.severity},
                           {"tensor", finding.tensor},
                           {"message", finding.message},
                           {"cure", finding.cure}});
  }
  const Json out = {{"engine", EngineName(report.engine)},
                    {"dialect", report.dialect},
                    {"list_key", report.list_key},
                    {"modules", std::move(modules)},
                    {"differences", std::move(differences)},
                    {"notes", report.notes},
                    {"ok", report.ok()}};
  return out.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace octavo
