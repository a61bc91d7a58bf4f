#pragma once
// `octavo conformance --matching FILE.jsonl`: published vectors of who skips which module, run
// against our readers.
//
// A line is one JSON object: dialect, kind, ignored (or config), packed_modules_mapping, module,
// expect, and optionally why, env_ignored, weights_mapper, id. A line with `modules` is a whole
// model: its modules [name, kind] and the names expected to be skipped or errors.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

struct DialectTally {
  std::string dialect;
  bool is_supported = false;  // False: its lines are counted and never run.
  int num_lines = 0;
  int num_passed = 0;
  int num_failed = 0;
  std::vector<std::string> failures = {};  // The first of them, one sentence each.
};

struct MatchingReport {
  std::vector<DialectTally> dialects;  // In order of appearance.

  const DialectTally* Find(std::string_view dialect) const;
  // No line failed and at least one ran.
  bool ok() const;
};

// Errors: kCorrupt for a line that is no JSON object of this form, by line number.
Result<MatchingReport> RunMatchingVectors(std::string_view jsonl);

// For a terminal: one line a dialect, then the failures; no newline at the end.
std::string MatchingReportText(const MatchingReport& report);
// {"dialects":[{"dialect","supported","lines","passed","failed","failures"}],"ok"}.
std::string MatchingReportJson(const MatchingReport& report);

}  // namespace octavo
