// AuditJson and AuditText of audit.h.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/convert/audit.h"

namespace octavo {
namespace {

int64_t CountOf(const AuditReport& report, std::string_view severity) {
  return std::ranges::count(report.findings, severity, &AuditFinding::severity);
}

}  // namespace

std::string AuditJson(const AuditReport& report) {
  nlohmann::ordered_json findings = nlohmann::ordered_json::array();
  for (const AuditFinding& finding : report.findings) {
    findings.push_back({{"code", finding.code},
                        {"severity", finding.severity},
                        {"tensor", finding.tensor},
                        {"message", finding.message},
                        {"cure", finding.cure}});
  }
  const nlohmann::ordered_json json = {{"passed", report.Passed()},
                                       {"table_hash", report.table_hash},
                                       {"weights", report.num_weights},
                                       {"quantized", report.num_quantized},
                                       {"bytes", report.bytes},
                                       {"compared", report.compared},
                                       {"worst_relative_rms", report.worst_relative_rms},
                                       {"worst_tensor", report.worst_tensor},
                                       {"findings", std::move(findings)}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

std::string AuditText(const AuditReport& report, int max_findings) {
  std::string text = fmt::format(
      "{}: {} weights, {} quantized, {} bytes; {} errors, {} warnings, {} notes\n",
      report.Passed() ? "passed" : "FAILED", report.num_weights, report.num_quantized, report.bytes,
      CountOf(report, "error"), CountOf(report, "warning"), CountOf(report, "info"));
  if (!report.table_hash.empty()) {
    text += fmt::format("table {}\n", report.table_hash);
  }
  if (report.compared) {
    text += report.worst_tensor.empty()
                ? std::string("compared with the source; no quantized weight to measure\n")
                : fmt::format("compared with the source; largest relative RMS error {:.4f} ({})\n",
                              report.worst_relative_rms, report.worst_tensor);
  }
  int num_shown = 0;
  for (const AuditFinding& finding : report.findings) {
    if (num_shown++ == max_findings) {
      text += fmt::format("... and {} more\n",
                          report.findings.size() - static_cast<size_t>(max_findings));
      break;
    }
    text += fmt::format("{:7} {}: {}\n        cure: {}\n", finding.severity, finding.code,
                        finding.message, finding.cure);
  }
  text.pop_back();  // Its last newline.
  return text;
}

}  // namespace octavo
