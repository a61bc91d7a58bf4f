// Method: tables with one row a format; each option once, and each that no row could take.

#include "octavo/sync/arithmetic.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/matrix.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using testing::HasSubstr;

PrecisionTable TableOf(const std::vector<WeightFormat>& formats) {
  PrecisionTable table;
  for (const WeightFormat format : formats) {
    PrecisionRow row;
    row.format = format;
    table.rows.push_back(row);
  }
  return table;
}

std::vector<InputForm> Inputs(const PrecisionTable& table, const ArithmeticOptions& options = {}) {
  const auto inputs = InputFormsOf(table, options);
  EXPECT_TRUE(inputs.has_value()) << inputs.error().message();
  return *inputs;
}

std::string Recipe(const PrecisionTable& table, const ArithmeticOptions& options = {},
                   DType kv_dtype = DType::kBf16) {
  return RecipeId("serving-1", table, Inputs(table, options), kv_dtype);
}

ArithmeticOptions With(Nvfp4InputScale scale) { return {.nvfp4_input_scale = scale}; }

TEST(InputForms, FollowTheFormatOfEachRow) {
  PrecisionTable table = TableOf({WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kFp8Ue8m0,
                                  WeightFormat::kFp8Channel, WeightFormat::kFp8Tensor,
                                  WeightFormat::kMxfp8, WeightFormat::kNvfp4});
  EXPECT_EQ(Inputs(table),
            (std::vector{InputForm::kBf16, InputForm::kFp8Group, InputForm::kFp8Group,
                         InputForm::kFp8Token, InputForm::kFp8Token, InputForm::kMxfp8,
                         InputForm::kNvfp4Token}));
  table.declares_input_scales = true;
  EXPECT_EQ(Inputs(table)[4], InputForm::kFp8Static);
  EXPECT_EQ(Inputs(table)[6], InputForm::kNvfp4Token);  // Only when it is asked for.
}

TEST(InputForms, FollowTheModeOfNvfp4) {
  const PrecisionTable table = TableOf({WeightFormat::kNvfp4});
  EXPECT_EQ(Inputs(table, With(Nvfp4InputScale::kPow2))[0], InputForm::kNvfp4Pow2);
  EXPECT_EQ(Inputs(table, With(Nvfp4InputScale::kStatic))[0], InputForm::kNvfp4Static);
  EXPECT_EQ(Inputs(table, With(Nvfp4InputScale::kBatch))[0], InputForm::kNvfp4Batch);
}

TEST(InputForms, OfWeightOnlyAreBf16ForTheirWidth) {
  const PrecisionTable table = TableOf({WeightFormat::kMxfp8, WeightFormat::kNvfp4});
  EXPECT_EQ(Inputs(table, {.weight_only = WeightOnly::kW8A16}),
            (std::vector{InputForm::kBf16, InputForm::kNvfp4Token}));
  EXPECT_EQ(Inputs(table, {.weight_only = WeightOnly::kW4A16}),
            (std::vector{InputForm::kMxfp8, InputForm::kBf16}));
}

TEST(InputForms, RefuseOptionsThatNoRowCouldTake) {
  const auto error = [](const PrecisionTable& table, const ArithmeticOptions& options) {
    const auto inputs = InputFormsOf(table, options);
    EXPECT_FALSE(inputs.has_value());
    return inputs.error().message();
  };
  const PrecisionTable fp8 = TableOf({WeightFormat::kBf16, WeightFormat::kFp8});
  const PrecisionTable nvfp4 = TableOf({WeightFormat::kNvfp4});
  EXPECT_THAT(error(fp8, With(Nvfp4InputScale::kToken)), HasSubstr("--nvfp4-input-scale token"));
  EXPECT_THAT(error(fp8, {.weight_only = WeightOnly::kW4A16}), HasSubstr("--format w4a16"));
  EXPECT_THAT(error(nvfp4, {.weight_only = WeightOnly::kW8A16}), HasSubstr("8-bit"));
  EXPECT_THAT(error(nvfp4, {.nvfp4_input_scale = Nvfp4InputScale::kPow2,
                            .weight_only = WeightOnly::kW4A16}),
              HasSubstr("--nvfp4-input-scale pow2"));
}

TEST(RecipeId, NamesEveryArithmeticOnce) {
  EXPECT_EQ(Recipe(TableOf({WeightFormat::kBf16})), "serving-1/bf16");
  EXPECT_EQ(Recipe(TableOf({WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kFp8})),
            "serving-1/fp8");
  const PrecisionTable nvfp4 = TableOf({WeightFormat::kNvfp4});
  EXPECT_EQ(Recipe(nvfp4), "serving-1/nvfp4-token");
  EXPECT_EQ(Recipe(nvfp4, With(Nvfp4InputScale::kBatch)), "serving-1/nvfp4-batch");
  EXPECT_EQ(Recipe(nvfp4, {.weight_only = WeightOnly::kW4A16}), "serving-1/nvfp4-w4a16");
  PrecisionTable mixed = TableOf({WeightFormat::kNvfp4, WeightFormat::kFp8Tensor});
  EXPECT_EQ(Recipe(mixed), "serving-1/fp8-tensor+nvfp4-token");
  mixed.declares_input_scales = true;
  EXPECT_EQ(Recipe(mixed, {}, DType::kF8E4m3),
            "serving-1/fp8-tensor-static+nvfp4-token+kv-fp8_e4m3");
}

TEST(IsEmulated, IsTrueOfQuantizedInputsThatCpusHaveNoInstructionsFor) {
  EXPECT_FALSE(IsEmulated(Inputs(TableOf({WeightFormat::kBf16, WeightFormat::kFp8}))));
  EXPECT_TRUE(IsEmulated(Inputs(TableOf({WeightFormat::kBf16, WeightFormat::kMxfp8}))));
  EXPECT_TRUE(IsEmulated(Inputs(TableOf({WeightFormat::kNvfp4}))));
  EXPECT_FALSE(
      IsEmulated(Inputs(TableOf({WeightFormat::kNvfp4}), {.weight_only = WeightOnly::kW4A16})));
}

TEST(Names, OfModesAndWeightOnlyFormatsAreThoseOfTheFlags) {
  for (const char* name : {"token", "pow2", "static", "batch"}) {
    EXPECT_EQ(Nvfp4InputScaleName(ParseNvfp4InputScale(name).value()), name);
  }
  EXPECT_FALSE(ParseNvfp4InputScale("tokens").has_value());
  EXPECT_EQ(ParseWeightOnly("w8a16"), WeightOnly::kW8A16);
  EXPECT_EQ(ParseWeightOnly("w4a16"), WeightOnly::kW4A16);
  EXPECT_FALSE(ParseWeightOnly("fp8").has_value());
}

}  // namespace
}  // namespace octavo
