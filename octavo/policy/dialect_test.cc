// Method: what the published vectors leave out: keys, types, methods, readers without vectors, and
// expressions that an engine would choke on.

#include "octavo/policy/dialect.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

const ReaderContext& Mapped() {
  static const ReaderContext context = {.mapping = {{"qkv_proj", {"q_proj", "k_proj", "v_proj"}},
                                                    {"gate_up_proj", {"gate_proj", "up_proj"}}}};
  return context;
}

MatchResult Judge(Dialect dialect, std::string_view config, std::string_view module,
                  ModuleKind kind = ModuleKind::kLinear, const ReaderContext& context = Mapped()) {
  const auto reader = MakeReader(dialect, config, context);
  EXPECT_TRUE(reader.has_value()) << reader.error().message();
  return reader.has_value() ? (*reader)->Judge({.name = module, .kind = kind}) : MatchResult{};
}

TEST(Dialect, NamesReadBack) {
  for (const Dialect dialect : AllDialects()) {
    EXPECT_EQ(ParseDialect(DialectName(dialect)), dialect);
  }
  EXPECT_EQ(ParseDialect("sglang"), std::nullopt);
}

TEST(DialectReader, SaysWhatAModuleIsBuiltAs) {
  EXPECT_EQ(Judge(Dialect::kSglangFp8, R"({"quant_method":"mxfp8"})", "a.b").method, "mxfp8");
  EXPECT_EQ(Judge(Dialect::kSglangModelOpt,
                  R"({"quant_algo":"NVFP4","group_size":16,"ignore":["a.b"]})", "a.c")
                .method,
            "nvfp4");
  const std::string_view ct =
      R"({"config_groups":{"g":{"targets":["Linear"],"weights":{"num_bits":8,"type":"float"}}},)"
      R"("ignore":["a.b"]})";
  for (const Dialect dialect : {Dialect::kCompressedTensors, Dialect::kVllmCompressedTensors,
                                Dialect::kSglangCompressedTensors}) {
    EXPECT_EQ(Judge(dialect, ct, "a.c").method, "fp8");
    EXPECT_EQ(Judge(dialect, ct, "a.b").method, "bf16");
  }
}

TEST(DialectReader, ReadsTheNestedFormOfModelOpt) {
  const std::string_view config =
      R"({"quantization":{"quant_algo":"NVFP4","group_size":16,"exclude_modules":["a.b*"]}})";
  const MatchResult hit = Judge(Dialect::kSglangModelOpt, config, "a.bc");
  EXPECT_EQ(hit.verdict, Verdict::kSkipped);
  EXPECT_EQ(hit.rule, MatchRule::kWildcard);
  EXPECT_EQ(hit.entry, "a.b*");
}

TEST(DialectReader, RefusesAnFp4ConfigurationThatTheEngineRefuses) {
  for (const char* config :
       {R"({"quant_algo":"NVFP4","ignore":[]})", R"({"quant_algo":"NVFP4","group_size":null})",
        R"({"quant_algo":"NVFP4","group_size":16,"ignore":null})"}) {
    const auto reader = MakeReader(Dialect::kSglangModelOpt, config, {});
    ASSERT_FALSE(reader.has_value()) << config;
    EXPECT_EQ(reader.error().code(), StatusCode::kInvalidArgument);
  }
  EXPECT_TRUE(MakeReader(Dialect::kSglangModelOpt,
                         R"({"quant_algo":"NVFP4","ignore":[],)"
                         R"("config_groups":{"g":{"targets":[],"weights":{"group_size":16}}}})",
                         {})
                  .has_value());
}

TEST(DialectReader, ABrokenExpressionRaisesOnlyWhereItIsReached) {
  const std::string_view config = R"({"quant_algo":"FP8","ignore":["a.b","x(y"]})";
  EXPECT_EQ(Judge(Dialect::kSglangModelOpt, config, "a.b").verdict, Verdict::kSkipped);
  const MatchResult raised = Judge(Dialect::kSglangModelOpt, config, "a.c");
  EXPECT_EQ(raised.verdict, Verdict::kError);
  EXPECT_THAT(raised.error, HasSubstr("x(y"));
  EXPECT_EQ(Judge(Dialect::kHfFp8, R"({"modules_to_not_convert":["*x"]})", "a").verdict,
            Verdict::kError);
}

TEST(DialectReader, RefusesLookAroundByName) {
  const auto reader =
      MakeReader(Dialect::kVllmCompressedTensors, R"({"ignore":["re:(?!a).*"]})", {});
  ASSERT_FALSE(reader.has_value());
  EXPECT_EQ(reader.error().code(), StatusCode::kUnsupported);
  EXPECT_THAT(reader.error().message(), HasSubstr("look-ahead"));
}

TEST(DialectReader, MixedAlgorithmsOfShardsRaiseEvenWhenExcluded) {
  const std::string_view config =
      R"({"quant_algo":"MIXED_PRECISION","ignore":["a.*"],"quantized_layers":{)"
      R"("a.q_proj":{"quant_algo":"fp8"},"a.k_proj":{"quant_algo":"NVFP4"},)"
      R"("b.q_proj":{"quant_algo":"fp8"},"c":{"quant_algo":"W4A8"}}})";
  const Dialect mixed = Dialect::kSglangModelOptMixed;
  EXPECT_EQ(Judge(mixed, config, "a.qkv_proj").verdict, Verdict::kError);
  // Missing shards are not noticed.
  EXPECT_EQ(Judge(mixed, config, "b.qkv_proj").method, "fp8");
  EXPECT_EQ(Judge(mixed, config, "c").rule, MatchRule::kLayerMap);
  EXPECT_EQ(Judge(mixed, config, "c").verdict, Verdict::kSkipped);
}

TEST(DialectReader, AContainerOfW8a8GetsTheWrongMethodWhenListed) {
  const std::string_view config = R"({"ignore":["layers.1"]})";
  const Dialect w8a8 = Dialect::kSglangW8a8Int8;
  EXPECT_EQ(Judge(w8a8, config, "layers.1.mlp.experts", ModuleKind::kMoe).verdict, Verdict::kError);
  EXPECT_EQ(Judge(w8a8, config, "layers.2.mlp.experts", ModuleKind::kMoe).verdict,
            Verdict::kQuantized);
  EXPECT_EQ(Judge(w8a8, config, "LAYERS.1.o_proj").verdict, Verdict::kSkipped);
}

TEST(DialectReader, LinearFp8ConfigBypassesTheList) {
  const std::string_view config =
      R"({"linear_fp8_config":{},"ignore":["a"],"config_groups":{"g":{"targets":["Linear"]}}})";
  EXPECT_EQ(Judge(Dialect::kSglangCompressedTensors, config, "a").method, "fp8");
}

TEST(DialectReader, AModuleWithoutATargetIsAnErrorInSglangOnly) {
  const std::string_view config = R"({"config_groups":{"g":{"targets":["re:.*up_proj"]}}})";
  EXPECT_EQ(Judge(Dialect::kSglangCompressedTensors, config, "a.o_proj").verdict, Verdict::kError);
  EXPECT_EQ(Judge(Dialect::kVllmCompressedTensors, config, "a.o_proj").rule, MatchRule::kTarget);
  EXPECT_EQ(Judge(Dialect::kCompressedTensors, config, "a.o_proj").rule, MatchRule::kTarget);
  EXPECT_EQ(Judge(Dialect::kVllmCompressedTensors, config, "a.up_proj").verdict,
            Verdict::kQuantized);
}

TEST(DialectReader, ReadersOfTheMatcherWithoutAMapping) {
  const ModuleKind moe = ModuleKind::kMoe;
  const std::string_view petit = R"({"exclude_modules":["a.*", "b"]})";
  EXPECT_EQ(Judge(Dialect::kSglangPetitNvfp4, petit, "a.o").rule, MatchRule::kWildcard);
  EXPECT_EQ(Judge(Dialect::kSglangPetitNvfp4, petit, "x.a.o").verdict, Verdict::kQuantized);
  EXPECT_EQ(Judge(Dialect::kSglangPetitNvfp4, petit, "x.b.o").rule, MatchRule::kPath);
  EXPECT_EQ(Judge(Dialect::kSglangPetitNvfp4, petit, "c.experts", moe).rule, MatchRule::kClass);
  const std::string_view fbgemm = R"({"modules_to_not_convert":["b"]})";
  EXPECT_EQ(Judge(Dialect::kSglangFbgemmFp8, fbgemm, "x.b.o").verdict, Verdict::kSkipped);
  EXPECT_EQ(Judge(Dialect::kSglangFbgemmFp8, fbgemm, "b.experts", moe).verdict,
            Verdict::kQuantized);
  EXPECT_FALSE(MakeReader(Dialect::kSglangFbgemmFp8, "{}", {}).has_value());
  EXPECT_EQ(Judge(Dialect::kSglangBlockwiseInt8, R"({"ignored_layers":["b"]})", "b.o").verdict,
            Verdict::kSkipped);
  EXPECT_EQ(Judge(Dialect::kSglangAwq, R"({"modules_to_not_convert":["ay"]})", "layers").rule,
            MatchRule::kSubstring);
}

TEST(DialectReader, HfAddsTheHeadOnlyWithoutAList) {
  const ModuleKind head = ModuleKind::kLmHead;
  EXPECT_EQ(Judge(Dialect::kHfFp8, "{}", "lm_head", head).verdict, Verdict::kSkipped);
  EXPECT_EQ(Judge(Dialect::kHfFp8, R"({"modules_to_not_convert":["x"]})", "lm_head", head).verdict,
            Verdict::kQuantized);
  // A null list falls through to the other key.
  EXPECT_EQ(
      Judge(Dialect::kHfFp8, R"({"modules_to_not_convert":null,"ignored_layers":["lm_head"]})",
            "lm_head", head)
          .rule,
      MatchRule::kExpression);
}

TEST(DialectReader, VllmModelOptSplitsWildcardsBeforeItRenames) {
  ReaderContext context = Mapped();
  context.mapper.prefix = {{"old.a.", "new.a."}};
  const MatchResult hit =
      Judge(Dialect::kVllmModelOpt, R"({"quant_algo":"FP8","ignore":["old.a*"]})", "new.a.b",
            ModuleKind::kLinear, context);
  EXPECT_EQ(hit.verdict, Verdict::kSkipped);
  EXPECT_EQ(hit.entry, "old.a*");
  EXPECT_EQ(Judge(Dialect::kVllmModelOpt, R"({"quant_algo":"FP8"})", "vision_tower.a").rule,
            MatchRule::kClass);
}

TEST(DialectReader, RefusesOtherTypesByKey) {
  struct Case {
    Dialect dialect;
    const char* config;
    const char* key;
  };
  const Case cases[] = {
      {Dialect::kSglangFp8, R"({"ignored_layers":"a"})", "ignored_layers"},
      {Dialect::kVllmFp8, R"({"modules_to_not_convert":[1]})", "modules_to_not_convert"},
      {Dialect::kSglangQuark, R"({"exclude":{}})", "exclude"},
      {Dialect::kHfFp8, R"({"modules_to_not_convert":7})", "modules_to_not_convert"},
      {Dialect::kCompressedTensors, R"({"config_groups":[]})", "config_groups"},
      {Dialect::kCompressedTensors, R"({"config_groups":{"g":{"targets":"x"}}})", "targets"},
      {Dialect::kSglangModelOpt, R"({"quantization":3})", "quantization"},
      {Dialect::kSglangFp8, R"({"quant_method":3})", "quant_method"},
      {Dialect::kSglangModelOptMixed, R"({"quantized_layers":[]})", "quantized_layers"},
  };
  for (const Case& c : cases) {
    const auto reader = MakeReader(c.dialect, c.config, {});
    ASSERT_FALSE(reader.has_value()) << c.config;
    EXPECT_EQ(reader.error().code(), StatusCode::kInvalidArgument) << c.config;
    EXPECT_THAT(reader.error().message(), HasSubstr(c.key));
  }
  EXPECT_EQ(MakeReader(Dialect::kSglangFp8, "[", {}).error().code(), StatusCode::kCorrupt);
}

}  // namespace
}  // namespace octavo
