// KitJson and KitText of conformance_kit.h.

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <cstddef>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>

#include "octavo/convert/conformance_kit.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

Json RuleJson(const KitRule& rule) {
  return {{"aspect", rule.aspect},
          {"rule", rule.rule},
          {"means", rule.means},
          {"ours", rule.ours},
          {"exact", rule.exact},
          {"also", rule.also},
          {"unexplained", rule.num_unexplained}};
}

Json DifferenceJson(const KitDifference& difference) {
  return {{"case", difference.case_name},     {"tensor", difference.tensor},
          {"what", difference.what},          {"index", difference.index},
          {"expected", difference.expected},  {"got", difference.got},
          {"differs", difference.num_differs}};
}

Json FormatJson(const KitFormatReport& report) {
  Json rules = Json::array();
  for (const KitRule& rule : report.rules) {
    rules.push_back(RuleJson(rule));
  }
  Json differences = Json::array();
  for (const KitDifference& difference : report.differences) {
    differences.push_back(DifferenceJson(difference));
  }
  return {{"format", report.format},
          {"passed", report.Passed()},
          {"cases", report.num_cases},
          {"cases_passed", report.num_passed},
          {"follows", report.follows},
          {"rules", std::move(rules)},
          {"differences", std::move(differences)}};
}

std::string RuleLine(const KitRule& rule) {
  std::string line = fmt::format("  {:12} {}: {}", rule.aspect, rule.rule, rule.means);
  if (!rule.also.empty()) {
    line += fmt::format(" (or {})", fmt::join(rule.also, ", "));
  }
  if (!rule.exact) {
    line += fmt::format("; the nearest rule: {} values are made otherwise", rule.num_unexplained);
  }
  return line + "\n";
}

std::string DifferenceLine(const KitDifference& difference) {
  if (difference.what != "bytes") {
    return fmt::format("  {}: {}: expected {}, got {}\n", difference.tensor, difference.what,
                       difference.expected, difference.got);
  }
  return fmt::format("  {}{}: expected {}, got {}; {} elements differ\n", difference.tensor,
                     difference.index, difference.expected, difference.got, difference.num_differs);
}

std::string FormatText(const KitFormatReport& report, int max_differences) {
  std::string text =
      fmt::format("{:26} {}: {} of {} cases\n", report.format,
                  report.Passed() ? "passed" : "FAILED", report.num_passed, report.num_cases);
  if (report.Passed()) {
    return text;
  }
  if (!report.follows.empty()) {
    text += fmt::format("  follows      {}\n", fmt::join(report.follows, "; "));
  }
  for (const KitRule& rule : report.rules) {
    if (!rule.ours || !rule.exact) {
      text += RuleLine(rule);
    }
  }
  for (int i = 0; i < static_cast<int>(report.differences.size()); ++i) {
    if (i == max_differences) {
      text += fmt::format("  ... and {} more tensors\n",
                          report.differences.size() - static_cast<size_t>(i));
      break;
    }
    text += DifferenceLine(report.differences[static_cast<size_t>(i)]);
  }
  return text;
}

}  // namespace

std::string KitJson(const KitReport& report) {
  Json formats = Json::array();
  for (const KitFormatReport& one : report.formats) {
    formats.push_back(FormatJson(one));
  }
  const Json json = {
      {"passed", report.Passed()}, {"absent", report.absent}, {"formats", std::move(formats)}};
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string KitText(const KitReport& report, int max_differences) {
  std::string text;
  for (const KitFormatReport& one : report.formats) {
    text += FormatText(one, max_differences);
  }
  if (!report.absent.empty()) {
    text += fmt::format("not judged, no file: {}\n", fmt::join(report.absent, ", "));
  }
  return text;
}

}  // namespace octavo
