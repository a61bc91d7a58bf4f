// Method: the published vectors, every line of our dialects, counted so that none is left out; then
// the same lines with one expectation changed, which must fail.

#include "octavo/policy/conformance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

using ::testing::HasSubstr;

std::string ReadData(const std::string& name) {
  const Result<std::string> text = ReadTextFile("tests/data/policy/" + name);
  return text ? *text : std::string();
}

std::string Failures(const DialectTally& tally) {
  std::string text;
  for (const std::string& failure : tally.failures) {
    text += failure + "\n";
  }
  return text;
}

TEST(Conformance, EveryLineOfBothSglangDialectsPasses) {
  const Result<MatchingReport> report = RunMatchingVectors(ReadData("matching.jsonl"));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  struct Expected {
    const char* dialect;
    int num_lines;
  };
  for (const Expected& expected : {Expected{"sglang_match", 133}, Expected{"sglang_fp8", 84}}) {
    const DialectTally* tally = report->Find(expected.dialect);
    ASSERT_NE(tally, nullptr);
    EXPECT_TRUE(tally->is_supported);
    EXPECT_EQ(tally->num_lines, expected.num_lines);
    EXPECT_EQ(tally->num_passed, expected.num_lines) << Failures(*tally);
    EXPECT_EQ(tally->num_failed, 0);
  }
  EXPECT_TRUE(report->ok());
}

TEST(Conformance, CountsOtherDialectsWithoutPassingThem) {
  const Result<MatchingReport> report = RunMatchingVectors(ReadData("matching.jsonl"));
  ASSERT_TRUE(report.has_value());
  int num_unsupported = 0;
  for (const DialectTally& tally : report->dialects) {
    if (!tally.is_supported) {
      ++num_unsupported;
      EXPECT_EQ(tally.num_passed, 0) << tally.dialect;
      EXPECT_GT(tally.num_lines, 0) << tally.dialect;
    }
  }
  EXPECT_EQ(num_unsupported, 15);
  EXPECT_EQ(report->Find("sglang_modelopt")->num_lines, 68);
  EXPECT_THAT(MatchingReportText(*report),
              HasSubstr("sglang_modelopt                  68 unsupported"));
}

TEST(Conformance, WholeModelsAreJudgedModuleByModule) {
  const Result<MatchingReport> report = RunMatchingVectors(ReadData("matching_models.jsonl"));
  ASSERT_TRUE(report.has_value()) << report.error().message();
  const DialectTally* tally = report->Find("sglang_fp8");
  ASSERT_NE(tally, nullptr);
  EXPECT_EQ(tally->num_lines, 3);
  EXPECT_EQ(tally->num_passed, 3) << Failures(*tally);
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
  EXPECT_EQ(report->dialects[0].failures[0], "x1: a.b.c: expected quantized, got skipped");
}

TEST(Conformance, AWrongReasonFails) {
  const Result<MatchingReport> report =
      RunMatchingVectors(Replaced(R"("entry":"a.b")", R"("entry":"a")"));
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(report->dialects[0].num_failed, 1);
  EXPECT_THAT(report->dialects[0].failures[0], HasSubstr("expected why"));
}

TEST(Conformance, AFileThatRunsNothingIsNotOk) {
  const Result<MatchingReport> empty = RunMatchingVectors("\n\n");
  ASSERT_TRUE(empty.has_value());
  EXPECT_FALSE(empty->ok());
  const Result<MatchingReport> other = RunMatchingVectors(Replaced("sglang_match", "hf_fp8"));
  ASSERT_TRUE(other.has_value());
  EXPECT_FALSE(other->ok());
  EXPECT_EQ(other->dialects[0].num_lines, 1);
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

TEST(Conformance, ReportsAsJson) {
  const Result<MatchingReport> report = RunMatchingVectors(kLine);
  ASSERT_TRUE(report.has_value());
  EXPECT_EQ(MatchingReportJson(*report),
            R"({"dialects":[{"dialect":"sglang_match","supported":true,"lines":1,"passed":1,)"
            R"("failed":0,"failures":[]}],"ok":true})");
}

}  // namespace
}  // namespace octavo
