// A quantization_config, and after the first NUL a module name: every dialect reads and judges a
// few modules. Whatever is accepted must give whole verdicts that come out the same twice; whatever
// is refused must say why. Then each engine's plan for two small models.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/sglang_match.h"

namespace {

using octavo::Dialect;
using octavo::MatchResult;
using octavo::ModelSpec;
using octavo::ModuleKind;
using octavo::ReaderContext;
using octavo::Verdict;

// More text shows nothing new, and each entry of a list costs a reading of its own in a plan.
constexpr size_t kInputBytesMax = 4096;
constexpr size_t kPlanBytesMax = 512;

// One sparse layer, untied: every kind of module but MLA's.
ModelSpec SmallSpec() {
  octavo::HfConfig config;
  config.architecture = "Qwen3MoeForCausalLM";
  config.hidden_size = 64;
  config.num_layers = 1;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 32;
  config.intermediate_size = 64;
  config.vocab_size = 10;
  config.max_position_embeddings = 64;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 1e4;
  config.moe.num_experts = 2;
  config.moe.num_experts_per_tok = 1;
  config.moe.moe_intermediate_size = 32;
  return octavo::MakeModelSpec(config).value();
}

void CheckResult(const MatchResult& result) {
  CHECK((result.verdict != Verdict::kError || !result.error.empty()));
  CHECK((result.verdict != Verdict::kSkipped || result.method == "bf16"));
  CHECK(octavo::MatchRuleName(result.rule) != "unknown");
}

void RunDialect(Dialect dialect, std::string_view config, std::string_view module) {
  const ReaderContext context = {
      .mapping = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                  {"gate_up_proj", {"gate_proj", "up_proj"}}},
      .mapper = {.substr = {{"a.b", "c"}}, .prefix = {{"model.", "m."}}, .suffix = {{".x", {}}}},
      .env_ignored = std::string(module)};
  const auto reader = octavo::MakeReader(dialect, config, context);
  if (!reader.has_value()) {
    CHECK(!reader.error().message().empty());
    return;
  }
  for (const std::string_view name : {module, std::string_view("model.layers.0.self_attn.qkv_proj"),
                                      std::string_view("model.layers.3.mlp.experts")}) {
    for (const ModuleKind kind : {ModuleKind::kLinear, ModuleKind::kMoe, ModuleKind::kLmHead}) {
      const MatchResult first = (*reader)->Judge({.name = name, .kind = kind});
      CheckResult(first);
      const MatchResult again = (*reader)->Judge({.name = name, .kind = kind});
      CHECK(first.verdict == again.verdict);
      CHECK(first.entry == again.entry);
    }
  }
}

void RunPlans(const ModelSpec& spec, std::string_view config) {
  std::vector<octavo::StoredDType> stored;
  for (const octavo::WeightSpec& weight : spec.weights) {
    stored.push_back({weight.name, octavo::DType::kBf16});
  }
  for (const octavo::ForeignEngine engine : octavo::AllEngines()) {
    const auto report = octavo::PlanAs(
        {.spec = &spec, .quantization_config = config, .stored = stored, .engine = engine});
    if (report.has_value()) {
      CHECK(!octavo::PlanAsText(*report).empty());
      CHECK(!octavo::PlanAsJson(*report).empty());
    } else {
      CHECK(!report.error().message().empty());
    }
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  if (num_bytes > kInputBytesMax) {
    return 0;
  }
  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  static const ModelSpec spec = SmallSpec();
  const size_t split = input.find('\0');
  const std::string_view config = input.substr(0, split);
  const std::string_view module =
      split == std::string_view::npos ? "lm_head" : input.substr(split + 1);
  for (const Dialect dialect : octavo::AllDialects()) {
    RunDialect(dialect, config, module);
  }
  if (num_bytes <= kPlanBytesMax) {
    RunPlans(spec, config);
  }
  return 0;
}
