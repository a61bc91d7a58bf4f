#pragma once
// The conformance kit: what another quantizer made of our inputs, held against the bytes that
// docs/formats.md asks for, and a guess at the rules it follows instead.
//
// A kit is a folder (conformance/ of this repository):
//   cases.json                    the cases: name, shape, formats, sets that share a scale
//   inputs.safetensors            CASE.weight, BF16
//   expected/FORMAT.safetensors   CASE.weight and its scales, in the layout of the format
// Output is judged from a folder of files FORMAT.safetensors in the layout of expected/.

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// A tensor that is not what it should be.
struct KitDifference {
  std::string case_name = {};
  std::string tensor = {};
  std::string what = {};      // "missing", "dtype", "shape" or "bytes".
  std::string index = {};     // "[0, 3]", of the first element that differs; bytes only.
  std::string expected = {};  // Of that element (hexadecimal), dtype or shape.
  std::string got = {};       // The same.
  int64_t num_differs = 0;    // Elements that differ; bytes only.
};

// One choice that quantizers make differently, and what the output says about it.
struct KitRule {
  std::string aspect = {};  // "scale", "zero_sign", ...
  std::string rule = {};    // "divide", "reciprocal", ...; the nearest one when it is not exact.
  std::string means = {};   // The rule as a formula or sentence.
  bool ours = false;        // It is the rule of docs/formats.md.
  bool exact = false;       // It explains every value that depends on it.
  std::vector<std::string> also = {};  // Rules that explain the output as well.
  int64_t num_unexplained = 0;         // Values (scales or codes) that no rule explains.
};

struct KitFormatReport {
  std::string format = {};
  int64_t num_cases = 0;
  int64_t num_passed = 0;
  std::vector<KitDifference> differences = {};  // In the order of the cases.
  std::vector<KitRule> rules = {};
  std::vector<std::string> follows = {};  // Known quantizers whose rules explain the whole output.

  bool Passed() const { return differences.empty(); }
};

struct KitReport {
  std::vector<KitFormatReport> formats;  // Of the files that are there.
  std::vector<std::string> absent;       // Formats of the kit without a file.

  bool Passed() const;
};

// Judges the files of `output_dir` with the kit in `kit_dir`.
// Errors: kNotFound when a folder or file of the kit is not there, or `output_dir` holds no file of
// any format; kCorrupt for a malformed kit or a malformed output file, by name.
Result<KitReport> JudgeQuantizer(const std::string& kit_dir, const std::string& output_dir);

// {"passed", "absent", "formats": [{"format", "passed", "cases", "cases_passed", "follows",
//   "rules": [{"aspect", "rule", "means", "ours", "exact", "also", "unexplained"}],
//   "differences": [{"case", "tensor", "what", "index", "expected", "got", "differs"}]}]}
std::string KitJson(const KitReport& report);
// For people: a line a format, its rules that are not ours, and at most `max_differences` tensors.
std::string KitText(const KitReport& report, int max_differences = 20);

}  // namespace octavo
