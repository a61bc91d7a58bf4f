#pragma once
// `octavo plan MODEL --as ENGINE`: what an engine will build from a checkpoint, and where that
// differs from what the checkpoint stores.

#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

struct PlanAsInput {
  const ModelSpec* spec = nullptr;
  std::string_view quantization_config;  // JSON; empty for a checkpoint without one.
  std::span<const StoredDType> stored;   // Every tensor of the checkpoint.
  ForeignEngine engine = ForeignEngine::kSglang;
};

struct PlannedModule {
  EngineModule module;
  MatchResult match;
  // How its weights are stored: "bf16", "fp8", "mxfp8", "nvfp4", "fp8 without scales", another
  // dtype, "mixed" when they differ, "missing".
  std::string stored;
};

// Codes of the differences. Errors, about one module each:
//   build-error           the engine raises while it builds the module
//   would-quantize        built in a low precision, stored in BF16
//   would-not-quantize    built in BF16, stored as codes: they are cast without their scales
//   method-differs        built in one low precision, stored in another
//   scale-missing         quantized, but stored without scales
//   stored-mixed          the weights of one module are stored in different ways
//   weight-missing        a weight is not stored
// Warnings: those of ListFindings (list_findings.h).
struct PlanAsReport {
  ForeignEngine engine = ForeignEngine::kSglang;
  std::string dialect;  // "none" without a quantization_config.
  std::string list_key;
  std::vector<PlannedModule> modules;
  std::vector<PolicyFinding> differences;
  // Sentences about conditions under which the plan holds: shared experts that are served otherwise
  // than the routed ones.
  std::vector<std::string> notes;

  // No difference is an error.
  bool ok() const;
};

// The dialect in which `engine` reads a configuration.
// Errors: kUnsupported for a quant_method that the engine does not read, or that is not known here.
Result<Dialect> DialectOf(ForeignEngine engine, const QuantizationFields& fields);

// Errors: those of ReadQuantizationFields, DialectOf and MakeReader.
Result<PlanAsReport> PlanAs(const PlanAsInput& input);

// For a terminal: a line a module (norms and biases left out), the counts, the differences; no
// newline at the end.
std::string PlanAsText(const PlanAsReport& report);
// {"engine","dialect","list_key","modules":[{"module","kind","verdict","method","rule","entry",
//  "shards"?,"message"?,"stored"}],"differences":[{"code","severity","tensor","message","cure"}],
//  "notes":[...],"ok"}
std::string PlanAsJson(const PlanAsReport& report);

}  // namespace octavo
