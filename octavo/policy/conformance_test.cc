// Method: the published vectors, every line, counted so that none is left out; then the same lines
// with one expectation changed, which must fail.

#include "octavo/policy/conformance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <iterator>
#include <string>
#include <string_view>

#include "octavo/base/gzip.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

std::string ReadData(const std::string& name) {
  const Result<std::string> text = ReadTextOrGzip("tests/data/policy/" + name);
  return text ? *text : std::string();
}

std::string Mismatches(const MatchingReport& report) {
  std::string text;
  for (const MatchingLine& line : report.lines) {
    if (!line.mismatch.empty()) {
      text += line.id + " " + line.dialect + " " + line.module + ": " + line.mismatch + "\n";
    }
  }
  return text;
}

TEST(Conformance, EveryPublishedLineOfEveryDialectPasses) {
  const Result<MatchingReport> report = RunMatchingVectors(ReadData("matching.jsonl.gz"));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  struct Expected {
    const char* dialect;
    int num_lines;
  };
  const Expected all[] = {
      {"sglang_match", 133},
      {"sglang_fp8", 84},
      {"sglang_modelopt", 68},
      {"sglang_compressed_tensors", 45},
      {"vllm_compressed_tensors", 40},
      {"compressed_tensors", 22},
      {"sglang_quark", 34},
      {"vllm_fp8", 34},
      {"hf_fp8", 26},
      {"filter_verl", 10},
      {"filter_areal", 10},
      {"filter_miles_mxfp8", 10},
      {"filter_miles_nvfp4", 10},
      {"refit_miles_nvfp4", 6},
      {"vllm_modelopt", 28},
      {"sglang_modelopt_mixed", 4},
      {"sglang_nvfp4_online", 4},
  };
  for (const Expected& expected : all) {
    const DialectTally* tally = report->Find(expected.dialect);
    ASSERT_NE(tally, nullptr) << expected.dialect;
    EXPECT_TRUE(tally->is_supported);
    EXPECT_EQ(tally->num_lines, expected.num_lines);
    EXPECT_EQ(tally->num_passed, expected.num_lines) << expected.dialect;
    EXPECT_EQ(tally->num_failed, 0) << expected.dialect;
  }
  EXPECT_EQ(report->dialects.size(), std::size(all));
  EXPECT_EQ(report->lines.size(), 568U);
  EXPECT_TRUE(report->ok()) << Mismatches(*report);
}

TEST(Conformance, WholeModelsAreJudgedModuleByModule) {
  const Result<MatchingReport> report = RunMatchingVectors(ReadData("matching_models.jsonl.gz"));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->lines.size(), 5U);
  EXPECT_TRUE(report->ok()) << Mismatches(*report);
  EXPECT_EQ(report->lines[0].verdict, "17 skipped, 128 quantized, 0 errors");
}

constexpr std::string_view kLine =
    R"({"id":"x1","dialect":"sglang_match","kind":"linear","ignored":["a.b"],)"
    R"("packed_modules_mapping":{},"module":"a.b.c","expect":"skipped",)"
    R"("why":{"rule":"path","entry":"a.b"}})";

std::string Replaced(std::string_view from, std::string_view to) {
  std::string text(kLine);
  return text.replace(text.find(from), from.size(), to);
}

TEST(Conformance, AWrongVerdictFails) {
  const Result<MatchingReport> report =
      RunMatchingVectors(Replaced(R"("expect":"skipped")", R"("expect":"quantized")"));
  ASSERT_TRUE(report.has_value());
  EXPECT_FALSE(report->ok());
  EXPECT_EQ(report->dialects[0].num_failed, 1);
  EXPECT_EQ(report->lines[0].mismatch, "expected quantized, got skipped");
  EXPECT_THAT(MatchingReportText(*report),
              HasSubstr("x1 sglang_match a.b.c: skipped by path \"a.b\"  MISMATCH: expected"));
}

TEST(Conformance, AWrongReasonFails) {
  const Result<MatchingReport> report =
      RunMatchingVectors(Replaced(R"("entry":"a.b")", R"("entry":"a")"));
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->dialects[0].num_failed, 1);
  EXPECT_THAT(report->lines[0].mismatch, HasSubstr("expected why"));
}

TEST(Conformance, AFileThatRunsNothingIsNotOk) {
  const Result<MatchingReport> empty = RunMatchingVectors("\n\n");
  ASSERT_TRUE(empty.has_value());
  EXPECT_FALSE(empty->ok());
  const Result<MatchingReport> other =
      RunMatchingVectors(Replaced("sglang_match", "sglang_of_2031"));
  ASSERT_TRUE(other.has_value());
  EXPECT_FALSE(other->ok());
  EXPECT_EQ(other->dialects[0].num_lines, 1);
  EXPECT_EQ(other->lines[0].verdict, "unsupported");
}

TEST(Conformance, RefusesLinesOfAnotherForm) {
  for (const std::string& line :
       {std::string("{"), std::string("[]"), std::string("{}"), Replaced(R"("linear")", R"("odd")"),
        Replaced(R"(["a.b"])", R"([1])"), Replaced(R"("packed_modules_mapping":{})", R"("x":1)"),
        Replaced(R"("module":"a.b.c")", R"("module":7)")}) {
    const Result<MatchingReport> report = RunMatchingVectors("\n" + line);
    ASSERT_FALSE(report.has_value()) << line;
    EXPECT_EQ(report.error().code(), StatusCode::kCorrupt);
    EXPECT_THAT(report.error().message(), HasSubstr("line 2"));
  }
}

TEST(Conformance, AWrongMethodFails) {
  const std::string config = R"("method":"nvfp4","config":{"quant_method":"mxfp8"},"ignored":[])";
  const std::string line = R"({"id":"x2","dialect":"sglang_fp8","kind":"linear",)" + config +
                           R"(,"packed_modules_mapping":{},"module":"a","expect":"quantized"})";
  const Result<MatchingReport> report = RunMatchingVectors(line);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->lines[0].mismatch, "expected method nvfp4, got mxfp8");
}

TEST(Conformance, ReportsAsJson) {
  const Result<MatchingReport> report = RunMatchingVectors(kLine);
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(MatchingReportJson(*report),
            R"({"lines":[{"line":1,"id":"x1","dialect":"sglang_match","module":"a.b.c",)"
            R"("verdict":"skipped","rule":"path","entry":"a.b","mismatch":null}],)"
            R"("dialects":[{"dialect":"sglang_match","supported":true,"lines":1,"passed":1,)"
            R"("failed":0}],"ok":true})");
}

}  // namespace
}  // namespace octavo
