// Method: the scalar definition of every form of input, against values worked out by hand, against
// the weight quantizers of formats/ where the formula is the same, and against the table of exact
// products (all code x scale pairs, exhaustively). Each bad value spoils its row and no more.

#include "octavo/kernels/linear_input.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <set>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

constexpr std::array kAllForms = {
    InputForm::kBf16,      InputForm::kFp8Group,    InputForm::kFp8Token,
    InputForm::kFp8Static, InputForm::kMxfp8,       InputForm::kNvfp4Token,
    InputForm::kNvfp4Pow2, InputForm::kNvfp4Static, InputForm::kNvfp4Batch};

std::vector<float> Bf16Values(uint64_t seed, size_t n) {
  std::vector<float> values(n);
  for (size_t i = 0; i < n; ++i) {
    values[i] = Bf16ToFloat(FloatToBf16(TestValue(seed, i)));
  }
  return values;
}

struct Quantized {
  float factor = 0.0F;
  std::vector<float> values;
  std::vector<float> group_scales;
};

Quantized Quantize(InputForm form, const std::vector<float>& x, float scale = 1.0F) {
  Quantized made{.factor = 0.0F,
                 .values = std::vector<float>(x.size()),
                 .group_scales = std::vector<float>((x.size() + 127) / 128)};
  made.factor = QuantizeLinearInput(form, scale, x, made.values, made.group_scales);
  return made;
}

bool IsBf16(float value) {
  return std::bit_cast<uint32_t>(Bf16ToFloat(FloatToBf16(value))) == std::bit_cast<uint32_t>(value);
}

// --- By hand -------------------------------------------------------------------------------------

TEST(Fp8GroupInput, FollowsRuleA) {
  // amax 896: s = 2. 3 / 2 = 1.5 exact; 448 the largest; 0.3 / 2 = 0.15 in [2^-3, 2^-2), quantum
  // 2^-6: 9.6 -> 10 quanta = 0.15625; -2^-9 / 2 = half a quantum of 2^-9: ties to even, 0.
  const Quantized made = Quantize(InputForm::kFp8Group, {896.0F, 3.0F, 0.3F, -0x1p-9F, 0.0F});
  EXPECT_EQ(made.group_scales[0], 2.0F);
  EXPECT_EQ(made.factor, 1.0F);
  EXPECT_EQ(made.values, (std::vector<float>{448.0F, 1.5F, 0.15625F, 0.0F, 0.0F}));
}

TEST(Fp8GroupInput, DividesInsteadOfMultiplyingByAReciprocal) {
  // Values whose quotient differs from the product with 1 / s in its code must exist among BF16
  // inputs (rules A and B of the FP8-block recipe), and the quotient's is taken.
  int differing = 0;
  for (uint64_t group = 0; group < 2000; ++group) {
    const std::vector<float> x = Bf16Values(group, 128);
    const Quantized made = Quantize(InputForm::kFp8Group, x);
    const float scale = made.group_scales[0];
    for (size_t i = 0; i < 128; ++i) {
      ASSERT_EQ(made.values[i], E4m3ToFloat(FloatToE4m3(x[i] / scale)));
      differing += made.values[i] != E4m3ToFloat(FloatToE4m3(x[i] * (1.0F / scale))) ? 1 : 0;
    }
  }
  EXPECT_GT(differing, 0);
}

TEST(Fp8GroupInput, GivesAZeroGroupTheFloorAndABadGroupNan) {
  std::vector<float> x(300, 1.0F);
  std::fill_n(x.begin(), 128, 0.0F);
  x[130] = kInf;
  const Quantized made = Quantize(InputForm::kFp8Group, x);
  EXPECT_EQ(made.group_scales[0], 1e-10F / 448.0F);
  EXPECT_TRUE(std::isnan(made.group_scales[1]));
  EXPECT_EQ(made.group_scales[2], 1.0F / 448.0F);  // 44 values: the last group is short.
  EXPECT_EQ(made.values[5], 0.0F);
  EXPECT_EQ(made.values[131], 0.0F);
  EXPECT_EQ(made.values[299], 448.0F);
}

TEST(Fp8TokenInput, MultipliesByTheReciprocalOfTheRowsScale) {
  // amax 224: s = 0.5, 1 / s = 2.
  const Quantized made = Quantize(InputForm::kFp8Token, {-224.0F, 1.5F, 0x1p-10F, 9.0F});
  EXPECT_EQ(made.factor, 0.5F);
  EXPECT_EQ(made.values, (std::vector<float>{-448.0F, 3.0F, 0x1p-9F, 18.0F}));
  const Quantized zero = Quantize(InputForm::kFp8Token, {0.0F, -0.0F});
  EXPECT_EQ(zero.factor, 0.0F);
  EXPECT_EQ(zero.values, (std::vector<float>{0.0F, 0.0F}));
}

TEST(Fp8StaticInput, SaturatesBeyondItsScale) {
  const Quantized made = Quantize(InputForm::kFp8Static, {500.0F, -3.0F, 1e30F}, 0.5F);
  EXPECT_EQ(made.factor, 0.5F);
  EXPECT_EQ(made.values, (std::vector<float>{448.0F, -6.0F, 448.0F}));
}

TEST(Mxfp8Input, RoundsTheScaleUpToAPowerOfTwo) {
  // amax 449: 449 / 448 > 1, so 2^1. 449 / 2 = 224.5 -> 224 (quantum 16); 3 / 2 = 1.5 exact.
  std::vector<float> x(64, 0.0F);
  x[0] = 449.0F;
  x[1] = 3.0F;
  x[32] = 448.0F;  // Exactly 2^0.
  x[33] = 17.0F;   // Quantum 2: a tie, 16 is even (1.000) against 18 (1.001).
  const Quantized made = Quantize(InputForm::kMxfp8, x);
  EXPECT_EQ(made.values[0], 448.0F);
  EXPECT_EQ(made.values[1], 3.0F);
  EXPECT_EQ(made.values[32], 448.0F);
  EXPECT_EQ(made.values[33], 16.0F);
}

TEST(Nvfp4Input, RoundsTiesToEven) {
  // A row whose largest is 2688: S = 1, D = 1. A group with amax 6 has sb = fl(6 * fl(1/6)) = 1, so
  // m = 1 and the ties of E2M1 stand as they are.
  std::vector<float> x(32, 0.0F);
  x[0] = 2688.0F;
  const std::array<float, 9> ties = {6.0F, 0.25F, 0.75F, 1.25F, 1.75F, 2.5F, 3.5F, 5.0F, -0.25F};
  const std::array<float, 9> rounded = {6.0F, 0.0F, 1.0F, 1.0F, 2.0F, 2.0F, 4.0F, 4.0F, -0.0F};
  std::ranges::copy(ties, x.begin() + 16);
  const Quantized made = Quantize(InputForm::kNvfp4Token, x);
  EXPECT_EQ(made.factor, 1.0F);
  EXPECT_EQ(made.values[0], 2688.0F);
  for (size_t i = 0; i < ties.size(); ++i) {
    EXPECT_EQ(std::bit_cast<uint32_t>(made.values[16 + i]), std::bit_cast<uint32_t>(rounded[i]))
        << ties[i];
  }
  // With the constant scale 1 the same row is read in the same way.
  EXPECT_EQ(Quantize(InputForm::kNvfp4Pow2, x).values, made.values);
}

TEST(Nvfp4Input, StaticScaleMultiplies) {
  // input_scale 2^-4: G = 16. amax 6: sb = 6 * 16 / 6 = 16, the multiplier 1 / (16 * 2^-4) = 1.
  std::vector<float> x(16, 0.0F);
  x[0] = 6.0F;
  x[1] = 1.5F;
  const Quantized made = Quantize(InputForm::kNvfp4Static, x, 0x1p-4F);
  EXPECT_EQ(made.factor, 0x1p-4F);
  EXPECT_EQ(made.values[0], 96.0F);  // 6 * 16, times the factor again 6.
  EXPECT_EQ(made.values[1], 24.0F);
}

TEST(Nvfp4Input, GroupsFarBelowTheRowsLargestVanish) {
  // sb of the second group: 1 * 2688 / 2^20 / 6 = 0.0004, below half of E4M3's least, 2^-10.
  std::vector<float> x(32, 0.0F);
  x[0] = 0x1p20F;
  x[16] = 1.0F;
  x[17] = -1.0F;
  const Quantized made = Quantize(InputForm::kNvfp4Token, x);
  EXPECT_EQ(made.values[16], 0.0F);
  EXPECT_TRUE(std::signbit(made.values[17]));
  EXPECT_EQ(made.values[17], 0.0F);
}

// --- All forms -----------------------------------------------------------------------------------

TEST(LinearInput, ValuesAreExactInBf16) {
  for (const InputForm form : kAllForms) {
    for (uint64_t seed = 0; seed < 50; ++seed) {
      const Quantized made = Quantize(form, Bf16Values(seed, 160), 0.01F);
      EXPECT_TRUE(std::ranges::all_of(made.values, IsBf16)) << static_cast<int>(form);
    }
  }
}

TEST(LinearInput, OneBadValueSpoilsTheRow) {
  for (const InputForm form : kAllForms) {
    if (form == InputForm::kBf16) {
      continue;
    }
    for (const float bad : {kInf, -kInf, kNaN}) {
      std::vector<float> x = Bf16Values(3, 160);
      x[77] = bad;
      const Quantized made = Quantize(form, x, 0.01F);
      const bool is_marked = std::isnan(made.factor) || std::isnan(made.group_scales[0]) ||
                             std::isnan(made.values[77]);
      EXPECT_TRUE(is_marked) << static_cast<int>(form);
    }
  }
}

TEST(LinearInput, ZeroRowsGiveZerosWithFiniteFactors) {
  const std::vector<float> zeros(160, 0.0F);
  for (const bool flush : {false, true}) {
    for (const InputForm form : kAllForms) {
      const auto quantize = [&] {
        if (flush) {
          const ScopedFlushSubnormals guard;
          return Quantize(form, zeros, 0.0F);  // kNvfp4Batch of zeros has the amax 0 too.
        }
        return Quantize(form, zeros, 0.0F);
      };
      const float scale_of_static = 0.5F;
      const Quantized made =
          IsStaticInput(form) ? Quantize(form, zeros, scale_of_static) : quantize();
      EXPECT_EQ(made.values, zeros) << static_cast<int>(form);
      EXPECT_TRUE(std::isfinite(made.factor)) << static_cast<int>(form);
    }
  }
}

// --- Against the weight quantizers
// -----------------------------------------------------------------

// A row as a matrix of one row, through formats/: values of codes times group scales.
std::vector<float> ByFormat(WeightFormat format, const std::vector<float>& x, float* tensor_scale) {
  const auto cols = static_cast<int64_t>(x.size());
  float amax = 0.0F;
  for (const float value : x) {
    amax = std::max(amax, std::fabs(value));
  }
  std::vector<uint8_t> codes(static_cast<size_t>(CodeBytes(format, 1, cols)));
  std::vector<std::byte> scales(static_cast<size_t>(ScaleBytes(format, 1, cols)));
  EXPECT_TRUE(octavo::Quantize(
                  {.format = format,
                   .values = {DType::kF32, {1, cols}, reinterpret_cast<const std::byte*>(x.data())},
                   .amax = amax,
                   .codes = codes,
                   .scales = scales})
                  .ok());
  *tensor_scale = TensorScale(format, amax);
  std::vector<float> values(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    const bool is_mx = format == WeightFormat::kMxfp8;
    const auto scale = static_cast<uint8_t>(scales[i / (is_mx ? 32 : 16)]);
    values[i] =
        is_mx ? E4m3ToFloat(codes[i]) * E8m0ToFloat(scale)
              : E2m1ToFloat(static_cast<uint8_t>(codes[i / 2] >> (i % 2 * 4))) * E4m3ToFloat(scale);
  }
  return values;
}

TEST(LinearInput, Mxfp8IsTheWeightQuantizersOfOneRow) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> x = Bf16Values(seed, 256);
    float unused = 0.0F;
    EXPECT_EQ(Quantize(InputForm::kMxfp8, x).values, ByFormat(WeightFormat::kMxfp8, x, &unused));
  }
}

TEST(LinearInput, Nvfp4TokenIsTheWeightQuantizersOfOneRow) {
  for (uint64_t seed = 0; seed < 200; ++seed) {
    const std::vector<float> x = Bf16Values(seed, 256);
    float tensor_scale = 0.0F;
    const std::vector<float> expected = ByFormat(WeightFormat::kNvfp4, x, &tensor_scale);
    const Quantized made = Quantize(InputForm::kNvfp4Token, x);
    EXPECT_EQ(made.values, expected);
    EXPECT_EQ(made.factor, tensor_scale);
    // The batch form with the row's own amax is the same; with another it is not.
    float amax = 0.0F;
    for (const float value : x) {
      amax = std::max(amax, std::fabs(value));
    }
    EXPECT_EQ(Quantize(InputForm::kNvfp4Batch, x, amax).values, expected);
    EXPECT_NE(Quantize(InputForm::kNvfp4Batch, x, amax * 1.1F).values, expected);
  }
}

// --- What is exact in BF16
// ------------------------------------------------------------------------

TEST(ExactProducts, OfE2m1AndGroupScalesAreBf16Values) {
  std::set<float> values;
  for (int scale = 0; scale < 0x7F; ++scale) {
    for (int code = 0; code < 16; ++code) {
      const float value =
          E2m1ToFloat(static_cast<uint8_t>(code)) * E4m3ToFloat(static_cast<uint8_t>(scale));
      ASSERT_TRUE(IsBf16(value)) << "code " << code << " scale " << scale;
      values.insert(value);
    }
  }
  EXPECT_EQ(values.size(), 475U);  // -0 and +0 are one.
  EXPECT_EQ(*values.rbegin(), 2688.0F);
  EXPECT_EQ(*values.upper_bound(0.0F), 0x1p-10F);
}

TEST(ExactProducts, OfE4m3AndPowersOfTwoAreNormalBf16ValuesFromMinus117To119) {
  const auto is_exact = [](int exponent) {
    for (int code = 0; code < 0x7F; ++code) {
      const double exact = std::ldexp(double{E4m3ToFloat(static_cast<uint8_t>(code))}, exponent);
      const auto value = static_cast<float>(exact);
      const bool is_normal = value == 0.0F || (std::isnormal(value) && std::isfinite(value));
      if (double{value} != exact || !is_normal || !IsBf16(value)) {
        return false;
      }
    }
    return true;
  };
  for (int exponent = -130; exponent <= 130; ++exponent) {
    EXPECT_EQ(is_exact(exponent), exponent >= -117 && exponent <= 119) << exponent;
  }
}

}  // namespace
}  // namespace octavo
