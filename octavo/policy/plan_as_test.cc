// Method: small models of each family, stored in one way and described by a configuration in
// another; each difference once, and a checkpoint without any.

#include "octavo/policy/plan_as.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

ModelSpec Spec(const HfConfig& config) { return MakeModelSpec(config).value(); }

// Every linear weight as FP8 blocks, but for modules whose name holds `kept`.
std::vector<StoredDType> StoredFp8(const ModelSpec& spec, std::string_view kept) {
  std::vector<StoredDType> stored;
  for (const WeightSpec& weight : spec.weights) {
    const bool is_low =
        IsLinearRole(weight.role) && (kept.empty() || weight.name.find(kept) == std::string::npos);
    stored.push_back({weight.name, is_low ? DType::kF8E4m3 : DType::kBf16});
    if (is_low) {
      stored.push_back({weight.name + "_scale_inv", DType::kF32});
    }
  }
  return stored;
}

PlanAsReport Plan(const ModelSpec& spec, std::string_view config,
                  const std::vector<StoredDType>& stored, ForeignEngine engine) {
  Result<PlanAsReport> report =
      PlanAs({.spec = &spec, .quantization_config = config, .stored = stored, .engine = engine});
  EXPECT_TRUE(report.has_value()) << report.error().message();
  return report.has_value() ? std::move(report).value() : PlanAsReport{};
}

std::vector<std::string> Codes(const PlanAsReport& report) {
  std::vector<std::string> codes;
  for (const PolicyFinding& finding : report.differences) {
    codes.push_back(finding.code + " " + finding.tensor);
  }
  return codes;
}

std::vector<std::string> Names(const std::vector<EngineModule>& modules, ModuleKind kind) {
  std::vector<std::string> names;
  for (const EngineModule& module : modules) {
    if (module.kind == kind) {
      names.push_back(module.name);
    }
  }
  return names;
}

TEST(EngineModules, EveryWeightIsInOneModuleForEveryEngine) {
  for (const HfConfig& config : {TinyConfig("Qwen3ForCausalLM"), TinyQwen3Moe(), TinyDeepseek()}) {
    const ModelSpec spec = Spec(config);
    for (const ForeignEngine engine : AllEngines()) {
      std::vector<int> seen(spec.weights.size(), 0);
      for (const EngineModule& module : EngineModulesOf(spec, engine)) {
        for (const int weight_idx : module.weights) {
          ++seen[static_cast<size_t>(weight_idx)];
        }
      }
      EXPECT_TRUE(std::ranges::all_of(seen, [](int count) { return count == 1; }))
          << config.architecture << " " << EngineName(engine);
      EXPECT_EQ(ParseEngine(EngineName(engine)), engine);
    }
  }
}

TEST(EngineModules, DeepseekAsEachEngineBuildsIt) {
  const ModelSpec spec = Spec(TinyDeepseek());
  const auto sglang = EngineModulesOf(spec, ForeignEngine::kSglang);
  EXPECT_THAT(Names(sglang, ModuleKind::kMoe),
              ElementsAre("model.layers.1.mlp.experts", "model.decoder.mlp.experts"));
  EXPECT_THAT(Names(sglang, ModuleKind::kLinear),
              Contains("model.layers.0.self_attn.fused_qkv_a_proj_with_mqa"));
  EXPECT_THAT(Names(sglang, ModuleKind::kLinear), Contains("model.decoder.self_attn.kv_b_proj"));
  EXPECT_THAT(Names(sglang, ModuleKind::kRouter), Contains("model.eh_proj"));
  const auto vllm = EngineModulesOf(spec, ForeignEngine::kVllm);
  EXPECT_THAT(Names(vllm, ModuleKind::kLinear),
              Contains("model.layers.0.self_attn.fused_qkv_a_proj"));
  EXPECT_THAT(Names(vllm, ModuleKind::kMoe), Contains("model.layers.2.mlp.experts"));
  const auto library = EngineModulesOf(spec, ForeignEngine::kCompressedTensors);
  EXPECT_THAT(Names(library, ModuleKind::kMoe), IsEmpty());
  EXPECT_THAT(Names(library, ModuleKind::kLinear),
              Contains("model.layers.1.mlp.experts.3.down_proj"));
  EXPECT_EQ(DeclaredMappingOf(spec, ForeignEngine::kSglang).size(), 1U);
  EXPECT_EQ(DeclaredMappingOf(spec, ForeignEngine::kVllm).size(), 2U);
  EXPECT_TRUE(DeclaredMappingOf(spec, ForeignEngine::kTransformers).empty());
}

TEST(PlanAs, NamesThatEveryEngineHonoursDifferNowhere) {
  const ModelSpec spec = Spec(TinyConfig("Qwen3ForCausalLM"));
  const std::vector<StoredDType> stored = StoredFp8(spec, "down_proj");
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["lm_head","model.layers.0.mlp.down_proj"]})";
  for (const ForeignEngine engine :
       {ForeignEngine::kSglang, ForeignEngine::kVllm, ForeignEngine::kTransformers}) {
    const PlanAsReport report = Plan(spec, config, stored, engine);
    EXPECT_TRUE(report.ok()) << PlanAsText(report);
    EXPECT_THAT(Codes(report), IsEmpty());
  }
}

TEST(PlanAs, ALayerPrefixIsInertInVllm) {
  const ModelSpec spec = Spec(TinyQwen3Moe());
  const std::vector<StoredDType> stored = StoredFp8(spec, "layers.3.");
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["model.layers.3."]})";
  EXPECT_TRUE(Plan(spec, config, stored, ForeignEngine::kSglang).ok());
  const PlanAsReport vllm = Plan(spec, config, stored, ForeignEngine::kVllm);
  EXPECT_FALSE(vllm.ok());
  EXPECT_THAT(Codes(vllm), Contains("would-quantize model.layers.3.mlp.experts"));
  EXPECT_THAT(Codes(vllm), Contains("would-quantize model.layers.3.self_attn.qkv_proj"));
  EXPECT_THAT(Codes(vllm), Contains("entry-unmatched model.layers.3."));
}

TEST(PlanAs, SaysWhenCodesWouldBeCastWithoutScales) {
  const ModelSpec spec = Spec(TinyQwen3Moe());
  const std::string_view config =
      R"({"quant_method":"fp8","ignored_layers":["model.layers.1.mlp.experts.2.up_proj"],)"
      R"("modules_to_not_convert":["x"]})";
  const PlanAsReport report = Plan(spec, config, StoredFp8(spec, ""), ForeignEngine::kSglang);
  EXPECT_THAT(Codes(report), Contains("would-not-quantize model.layers.1.mlp.experts"));
  EXPECT_THAT(Codes(report), Contains("kept-by-one-expert model.layers.1.mlp.experts"));
  EXPECT_THAT(Codes(report), Contains("list-hidden modules_to_not_convert"));
}

TEST(PlanAs, APartialShardListIsABuildError) {
  const ModelSpec spec = Spec(TinyConfig("Qwen3ForCausalLM"));
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["model.layers.0.self_attn.q_proj"]})";
  const PlanAsReport report = Plan(spec, config, StoredFp8(spec, "q_proj"), ForeignEngine::kSglang);
  EXPECT_THAT(Codes(report), ElementsAre("build-error model.layers.0.self_attn.qkv_proj"));
  EXPECT_THAT(report.differences[0].message, HasSubstr("k_proj is not listed"));
  // Unfused, the same list is sound.
  EXPECT_TRUE(
      Plan(spec, config, StoredFp8(spec, "q_proj"), ForeignEngine::kTransformers).modules.size() >
      0);
}

TEST(PlanAs, ComparesWhatIsStored) {
  const ModelSpec spec = Spec(TinyConfig("Qwen3ForCausalLM"));
  std::vector<StoredDType> stored = StoredFp8(spec, "");
  std::erase_if(stored, [](const StoredDType& tensor) {
    return tensor.name == "model.layers.0.mlp.down_proj.weight_scale_inv" ||
           tensor.name == "model.layers.0.self_attn.o_proj.weight";
  });
  for (StoredDType& tensor : stored) {
    if (tensor.name == "model.layers.0.mlp.up_proj.weight") {
      tensor.dtype = DType::kBf16;
    }
  }
  const PlanAsReport report =
      Plan(spec, R"({"quant_method":"fp8"})", stored, ForeignEngine::kSglang);
  EXPECT_THAT(Codes(report), ElementsAre("weight-missing model.layers.0.self_attn.o_proj",
                                         "stored-mixed model.layers.0.mlp.gate_up_proj",
                                         "scale-missing model.layers.0.mlp.down_proj"));
  const PlanAsReport other =
      Plan(spec, R"({"quant_method":"mxfp8"})", StoredFp8(spec, ""), ForeignEngine::kSglang);
  EXPECT_THAT(Codes(other), Contains("method-differs model.layers.0.mlp.down_proj"));
  EXPECT_TRUE(Plan(spec, "", StoredFp8(spec, "layers"), ForeignEngine::kVllm).ok());
}

TEST(PlanAs, MtpIsJudgedUnderItsOwnName) {
  const ModelSpec spec = Spec(TinyDeepseek());
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["model.layers.2."]})";
  const PlanAsReport report =
      Plan(spec, config, StoredFp8(spec, "layers.2."), ForeignEngine::kSglang);
  EXPECT_TRUE(report.ok()) << PlanAsText(report);
  EXPECT_THAT(Codes(report), Not(Contains("entry-unmatched model.layers.2.")));
  // A checkpoint may leave the MTP layer out.
  std::vector<StoredDType> without = StoredFp8(spec, "");
  std::erase_if(without, [](const StoredDType& tensor) {
    return tensor.name.find("layers.2.") != std::string::npos;
  });
  EXPECT_TRUE(Plan(spec, R"({"quant_method":"fp8"})", without, ForeignEngine::kSglang).ok());
}

TEST(PlanAs, NamesForOtherEnginesDoNoHarmWhereTheirWeightsAreKept) {
  HfConfig config = TinyConfig("Qwen3ForCausalLM");
  config.tie_word_embeddings = true;
  const ModelSpec spec = Spec(config);
  const std::string shards =
      R"("model.layers.0.self_attn.q_proj","model.layers.0.self_attn.k_proj",)"
      R"("model.layers.0.self_attn.v_proj",)";
  const std::string names = R"("model.layers.0.self_attn.qkv_proj","lm_head"]})";
  const std::string head = R"({"quant_method":"fp8","modules_to_not_convert":[)";
  std::vector<StoredDType> stored = StoredFp8(spec, "");
  for (StoredDType& tensor : stored) {
    const bool is_qkv = tensor.name.find("q_proj.w") != std::string::npos ||
                        tensor.name.find("k_proj.w") != std::string::npos ||
                        tensor.name.find("v_proj.w") != std::string::npos;
    tensor.dtype = is_qkv && tensor.name.ends_with("weight") ? DType::kBf16 : tensor.dtype;
  }
  EXPECT_THAT(Codes(Plan(spec, head + shards + names, stored, ForeignEngine::kSglang)), IsEmpty());
  // Alone, the fused name is inert in SGLang.
  EXPECT_THAT(Codes(Plan(spec, head + names, stored, ForeignEngine::kSglang)),
              ElementsAre("would-quantize model.layers.0.self_attn.qkv_proj",
                          "entry-fused-name model.layers.0.self_attn.qkv_proj"));
}

TEST(PlanAs, NotesSharedExpertsThatAreServedOtherwise) {
  const ModelSpec spec = Spec(TinyDeepseek());
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["model.layers.1.mlp.shared_experts"]})";
  const PlanAsReport report =
      Plan(spec, config, StoredFp8(spec, "layers.1.mlp.shared"), ForeignEngine::kSglang);
  EXPECT_TRUE(report.ok()) << PlanAsText(report);
  EXPECT_THAT(report.notes, ElementsAre(HasSubstr("model.layers.1.mlp.shared_experts.down_proj")));
  EXPECT_THAT(PlanAsText(report), HasSubstr("note: model.layers.1"));
}

TEST(PlanAs, RefusesMethodsThatAnEngineDoesNotRead) {
  const ModelSpec spec = Spec(TinyConfig("Qwen3ForCausalLM"));
  for (const ForeignEngine engine :
       {ForeignEngine::kTransformers, ForeignEngine::kCompressedTensors}) {
    const Result<PlanAsReport> report =
        PlanAs({.spec = &spec,
                .quantization_config = R"({"quant_method":"modelopt"})",
                .stored = {},
                .engine = engine});
    ASSERT_FALSE(report.has_value());
    EXPECT_EQ(report.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(report.error().message(), HasSubstr("quant_method modelopt"));
  }
}

TEST(PlanAs, WritesTextAndJson) {
  const ModelSpec spec = Spec(TinyConfig("Qwen3ForCausalLM"));
  const std::string_view config =
      R"({"quant_method":"fp8","modules_to_not_convert":["model.layers.0.mlp.down_proj","y"]})";
  const PlanAsReport report =
      Plan(spec, config, StoredFp8(spec, "down_proj"), ForeignEngine::kSglang);
  EXPECT_THAT(PlanAsText(report),
              HasSubstr("bf16         bf16     model.layers.0.mlp.down_proj  [path] "
                        "\"model.layers.0.mlp.down_proj\""));
  EXPECT_THAT(PlanAsText(report), HasSubstr("warning entry-unmatched: modules_to_not_convert"));
  EXPECT_THAT(PlanAsJson(report), HasSubstr(R"("engine":"sglang","dialect":"sglang_fp8")"));
  EXPECT_THAT(PlanAsJson(report), HasSubstr(R"("verdict":"quantized","method":"fp8")"));
  EXPECT_THAT(PlanAsJson(report), HasSubstr(R"("code":"entry-unmatched")"));
}

}  // namespace
}  // namespace octavo
