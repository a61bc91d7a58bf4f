// Method: reports with made-up figures; what must be said of them follows from the definitions.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "octavo/measure/bench.h"

namespace octavo {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::Not;

BenchRow Row(const std::string& format, Spread prefill_ratio, Spread decode_ratio) {
  BenchRow row;
  row.format = format;
  row.batch = 8;
  row.input_len = 512;
  row.output_len = 4;
  row.weight_bytes_per_step = 2.5e9;
  row.prefill_tok_per_s = {100.0, 90.0, 110.0};
  row.decode_tok_per_s = {10.0, 9.0, 11.0};
  row.prefill_ratio = prefill_ratio;
  row.decode_ratio = decode_ratio;
  return row;
}

BenchReport ReportOf(std::vector<BenchRow> rows) {
  BenchReport report;
  report.model_dir = "a<b";
  report.machine = {.read_gb_per_s = 40.0, .matrix_tflop_per_s = 0.5, .backend = "cpu/avx512"};
  report.rows = std::move(rows);
  return report;
}

constexpr Spread kOne = {1.0, 1.0, 1.0};

TEST(BenchReport, SaysWhereAFormatDoesNotPay) {
  const BenchReport report =
      ReportOf({Row("bf16", kOne, kOne), Row("fp8", {0.9, 0.88, 0.95}, {1.6, 1.5, 1.7}),
                Row("nvfp4", {1.2, 1.1, 1.3}, {1.01, 0.97, 1.05})});
  EXPECT_THAT(BenchVerdicts(report),
              ElementsAre("fp8 does not pay in prefill at batch 8, input 512: 0.90 (0.88 .. 0.95) "
                          "x bf16",
                          "nvfp4 makes no clear difference in decode at batch 8, input 512: 1.01 "
                          "(0.97 .. 1.05) x bf16"));
  EXPECT_THAT(BenchReportText(report), HasSubstr("\nfp8 does not pay in prefill"));
  const auto json = nlohmann::json::parse(BenchReportJson(report));
  EXPECT_EQ(json["verdicts"].size(), 2U);
  EXPECT_EQ(json["rows"][1]["decode_ratio"], 1.6);
  EXPECT_EQ(json["rows"][1]["decode_ratio_range"], nlohmann::json({1.5, 1.7}));
}

TEST(BenchReport, OfOneSubjectComparesNothing) {
  const BenchReport report = ReportOf({Row("fp8", kOne, kOne)});
  EXPECT_THAT(BenchVerdicts(report), IsEmpty());
  EXPECT_THAT(BenchReportText(report), Not(HasSubstr("ratio")));
  const auto json = nlohmann::json::parse(BenchReportJson(report));
  EXPECT_FALSE(json.contains("verdicts"));
  EXPECT_FALSE(json["rows"][0].contains("decode_ratio"));
  EXPECT_EQ(json["rows"][0]["weight_bytes_per_step"], 2.5e9);
  EXPECT_EQ(json["machine"]["read_gb_per_s"], 40.0);
}

TEST(BenchReport, SaysHowManyInputGroupsLeftTheirRange) {
  BenchReport report = ReportOf({Row("bf16", kOne, kOne), Row("nvfp4", kOne, kOne)});
  report.rows[1].nvfp4_inputs = {.num_groups = 123, .num_above = 4, .num_below = 5};
  const auto json = nlohmann::json::parse(BenchReportJson(report));
  EXPECT_FALSE(json["rows"][0].contains("nvfp4_inputs"));
  EXPECT_EQ(json["rows"][1]["nvfp4_inputs"],
            nlohmann::json({{"groups", 123}, {"above", 4}, {"below", 5}}));
}

TEST(BenchReport, PictureHasABarForEachRateAndEscapesNames) {
  const BenchReport report = ReportOf({Row("bf16", kOne, kOne), Row("fp8", kOne, kOne)});
  const std::string svg = BenchReportSvg(report);
  size_t bars = 0;
  for (size_t at = svg.find("fill=\"#2f6fde\""); at != std::string::npos;
       at = svg.find("fill=\"#2f6fde\"", at + 1)) {
    ++bars;
  }
  EXPECT_EQ(bars, 4U);
  EXPECT_THAT(svg, HasSubstr("a&lt;b"));
  EXPECT_THAT(svg, HasSubstr("fp8, batch 8"));
}

}  // namespace
}  // namespace octavo
