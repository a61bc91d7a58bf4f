// CheckEngines of audit_checks.h: would each engine build every module as it is stored?

#include <fmt/core.h>

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_checks.h"
#include "octavo/convert/audit_codes.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"

namespace octavo {
namespace {

struct Consumer {
  std::string_view name;
  ForeignEngine engine;
  EngineWeight weight;
};

}  // namespace

void CheckEngines(const Checkpoint& checkpoint, const ModelSpec& spec, EngineWeight sglang,
                  AuditReport& report) {
  std::vector<StoredDType> stored;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    stored.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
  }
  for (const Consumer& consumer :
       {Consumer{"SGLang", ForeignEngine::kSglang, sglang},
        Consumer{"vLLM", ForeignEngine::kVllm, EngineWeight::kOther},
        Consumer{"transformers", ForeignEngine::kTransformers, EngineWeight::kOther}}) {
    if (consumer.weight == EngineWeight::kNone) {
      continue;
    }
    const auto plan = PlanAs({.spec = &spec,
                              .quantization_config = checkpoint.config().quantization_config,
                              .stored = stored,
                              .engine = consumer.engine});
    if (!plan) {
      continue;  // It does not read this method, or not here; that is no fault of the checkpoint.
    }
    for (const PolicyFinding& difference : plan->differences) {
      // What is not stored at all has findings of its own.
      const bool is_missing =
          difference.code == "scale-missing" || difference.code == "weight-missing";
      if (difference.severity == "error" && !is_missing) {
        report.findings.push_back(MakeFinding(
            consumer.weight == EngineWeight::kFirst ? "engine-differs" : "engine-differs-other",
            difference.tensor,
            fmt::format("{}: {} ({})", consumer.name, difference.message, difference.code)));
      }
    }
  }
}

}  // namespace octavo
