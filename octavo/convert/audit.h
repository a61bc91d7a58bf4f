#pragma once
// The audit: does a checkpoint hold what its configuration says, and, with the source at hand, is
// every byte the one that the quantizer makes?

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/policy/policy_finding.h"

namespace octavo {

// `code` is one of docs/audit.md (audit_codes.h), or of policy/verdicts.h.
using AuditFinding = PolicyFinding;

struct AuditReport {
  std::vector<AuditFinding> findings;  // Errors first, then in the order of the table.
  std::string table_hash;              // Empty when no table could be read.
  int64_t num_weights = 0;             // Rows of the table.
  int64_t num_quantized = 0;
  int64_t bytes = 0;        // Of all tensors.
  bool compared = false;    // With a source.
  bool unreadable = false;  // Nothing but the finding "unreadable": a file is malformed.
  // Of quantized weights against the source: the largest RMS error over RMS value, and whose.
  double worst_relative_rms = 0.0;
  std::string worst_tensor;

  // No finding is an error.
  bool Passed() const;
};

// `source`, which may be null, is the checkpoint that this one was converted from: every row is
// transformed again and compared byte for byte. `pool` may be null.
AuditReport Audit(const Checkpoint& checkpoint, const Checkpoint* source, ThreadPool* pool);

// Opens and audits. A folder that exists and is no readable checkpoint gives the finding
// "unreadable"; one whose index and shards disagree gives findings about those and nothing else.
// `source_dir` may be empty.
// Errors: kNotFound for a folder that is not there; those of opening the source.
Result<AuditReport> AuditFolder(const std::string& dir, const std::string& source_dir,
                                ThreadPool* pool);

// {"passed", "table_hash", "weights", "quantized", "bytes", "compared", "worst_relative_rms",
//  "worst_tensor", "findings": [{"code", "severity", "tensor", "message", "cure"}]}
std::string AuditJson(const AuditReport& report);
// For people: a summary line, then the findings, at most `max_findings` of them.
std::string AuditText(const AuditReport& report, int max_findings = 50);

}  // namespace octavo
