#pragma once
// `octavo conformance --matching FILE.jsonl`: published vectors of who skips which module, run
// against our readers.
//
// A line is one JSON object: dialect, kind, ignored (or config), packed_modules_mapping, module,
// expect, and optionally why, method, env_ignored, weights_mapper, quantized_layers, source_fp8,
// targets, module_class, id. A line with `modules` is a whole
// model: its modules [name, kind] and the names expected to be skipped or errors.

#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// One line, run. A whole model has its counts in `verdict` and no rule.
struct MatchingLine {
  int line_num = 0;
  std::string id = {};
  std::string dialect = {};
  std::string module = {};
  std::string verdict = {};  // "skipped", "quantized", "error"; "unsupported" for other dialects.
  std::string rule = {};
  std::optional<std::string> entry = {};  // As written.
  std::string message = {};               // Of an error verdict.
  std::string mismatch = {};              // Empty when the line holds, otherwise a sentence.
};

struct DialectTally {
  std::string dialect;
  bool is_supported = false;  // False: its lines are counted and never run.
  int num_lines = 0;
  int num_passed = 0;
  int num_failed = 0;
};

struct MatchingReport {
  std::vector<MatchingLine> lines = {};
  std::vector<DialectTally> dialects = {};  // In order of appearance.

  const DialectTally* Find(std::string_view dialect) const;
  // No line failed and at least one ran.
  bool ok() const;
};

// Errors: kCorrupt for a line that is no JSON object of this form, by line number.
Result<MatchingReport> RunMatchingVectors(std::string_view jsonl);

// For a terminal: verdict, rule, entry and mismatch of each line, then one line a dialect; no
// newline at the end.
std::string MatchingReportText(const MatchingReport& report);
// {"lines":[{"line","id","dialect","module","verdict","rule","entry","message"?,"mismatch"}],
//  "dialects":[{"dialect","supported","lines","passed","failed"}],"ok"}.
std::string MatchingReportJson(const MatchingReport& report);

}  // namespace octavo
