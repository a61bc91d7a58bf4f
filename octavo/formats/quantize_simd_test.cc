// Method: every vector path that this machine can run against the scalar one, tolerance 0, for all
// formats: odd shapes with random bits, all pairs of BF16 mantissas, hostile thread modes, cuts
// into bands, and BF16 against its exact widening.

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/format_simd_test_support.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

// Widths around what a vector, a group, a block and a chunk of blocks hold.
std::vector<int64_t> Widths(WeightFormat format) {
  if (format == WeightFormat::kMxfp8) {
    return {32, 160, 256, 288, 1056};
  }
  if (format == WeightFormat::kNvfp4) {
    return {16, 48, 256, 272, 1040};
  }
  return {1, 2, 31, 64, 127, 128, 129, 160, 257, 1100};
}

constexpr uint32_t kExponents[] = {0, 1, 10, 25, 92, 121, 254};

TEST(QuantizeSimd, EqualsTheScalarPathOnOddShapes) {
  ForEachQuantizedFormat([](WeightFormat format) {
    uint32_t seed = 1;
    for (const int64_t rows : {1, 3, 16, 128, 131}) {
      for (const int64_t cols : Widths(format)) {
        const Bf16Matrix matrix = RandomBf16(rows, cols, kExponents[seed % 7], seed);
        ++seed;
        const F32Matrix wide = Widened(matrix);
        const TestCodes expected = Encode(QuantizeScalar, format, matrix);
        EXPECT_EQ(Encode(QuantizeScalar, format, wide), expected) << rows << " x " << cols;
        ForEachTarget([&] {
          ASSERT_EQ(Encode(Quantize, format, matrix), expected)
              << rows << " x " << cols << " seed " << seed - 1;
          ASSERT_EQ(Encode(Quantize, format, wide), expected)
              << rows << " x " << cols << " seed " << seed - 1;
        });
      }
    }
  });
}

// F32 that no BF16 is.
TEST(QuantizeSimd, EqualsTheScalarPathOnFullPrecision) {
  ForEachQuantizedFormat([](WeightFormat format) {
    uint32_t seed = 1;
    for (const int64_t cols : Widths(format)) {
      for (const uint32_t exponent : kExponents) {
        F32Matrix matrix = Widened(RandomBf16(5, cols, exponent, seed));
        std::mt19937 rng(seed++);
        for (float& value : matrix.values) {
          value = std::bit_cast<float>(std::bit_cast<uint32_t>(value) |
                                       (static_cast<uint32_t>(rng()) & 0xFFFFU));
        }
        const TestCodes expected = Encode(QuantizeScalar, format, matrix);
        ForEachTarget([&] {
          ASSERT_EQ(Encode(Quantize, format, matrix), expected) << cols << " seed " << seed - 1;
        });
      }
    }
  });
}

// For each amax mantissa, every magnitude of the 24 binades below it: all quotients that can reach
// a nonzero code. This is where a quotient that is not correctly rounded shows.
TEST(QuantizeSimd, EveryPairOfMantissasGivesTheScalarCodes) {
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0,
                                    WeightFormat::kFp8Channel, WeightFormat::kFp8Tensor}) {
    for (const uint32_t exponent : {95U, 96U, 118U, 127U, 253U, 254U}) {
      for (uint32_t mantissa = 0; mantissa < 128; ++mantissa) {
        const uint32_t amax = (exponent << 7) | mantissa;
        Bf16Matrix matrix = {24, 128, std::vector<uint16_t>(size_t{24} * 128)};
        if (format == WeightFormat::kFp8Channel) {
          matrix.rows = 1;
          matrix.cols = 24 * 128;
        }
        for (size_t i = 0; i < matrix.values.size(); ++i) {
          matrix.values[i] = static_cast<uint16_t>((amax - i) | (i % 3 == 0 ? 0x8000U : 0U));
        }
        const TestCodes expected = Encode(QuantizeScalar, format, matrix);
        ForEachTarget([&] {
          ASSERT_EQ(Encode(Quantize, format, matrix), expected)
              << WeightFormatName(format) << " amax bits " << amax;
        });
      }
    }
  }
}

// Groups: each BF16 amax, of all binades, with the 32 or 16 values below it at a stride that walks
// through all mantissas.
TEST(QuantizeSimd, EveryGroupAmaxGivesTheScalarBytes) {
  for (const WeightFormat format : {WeightFormat::kMxfp8, WeightFormat::kNvfp4}) {
    const uint32_t group = format == WeightFormat::kMxfp8 ? 32 : 16;
    Bf16Matrix matrix = {0x7F80 / 64, 64 * int64_t{group}, {}};
    for (uint32_t amax = 0; amax < 0x7F80U; ++amax) {
      for (uint32_t i = 0; i < group; ++i) {
        const uint32_t below = i * i * 3 + i * (amax % 5);
        matrix.values.push_back(static_cast<uint16_t>((amax > below ? amax - below : 0U) |
                                                      (i % 3 == 0 ? 0x8000U : 0U)));
      }
    }
    const TestCodes expected = Encode(QuantizeScalar, format, matrix);
    ForEachTarget([&] { EXPECT_EQ(Encode(Quantize, format, matrix), expected); });
  }
}

// nvfp4: every group amax up to the tensor's, for tensor amaxes of many mantissas and binades.
TEST(QuantizeSimd, Nvfp4GroupScalesHoldForEveryTensorAmax) {
  std::mt19937 rng(3);
  for (const uint32_t exponent : {0U, 1U, 8U, 14U, 100U, 127U, 254U}) {
    for (uint32_t step = 0; step < 16; ++step) {
      const uint32_t amax = (exponent << 7) | (step * 8 + static_cast<uint32_t>(rng()) % 8);
      const uint32_t groups = std::min(amax + 1, 1536U) & ~15U;
      Bf16Matrix matrix = {1, int64_t{groups} * 16, {}};
      for (uint32_t g = 0; g < groups; ++g) {
        for (uint32_t i = 0; i < 16; ++i) {
          const uint32_t group_amax = amax - g;
          const uint32_t value =
              i == 0 ? group_amax : static_cast<uint32_t>(rng()) % (group_amax + 1);
          matrix.values.push_back(static_cast<uint16_t>(value | (rng() % 2) << 15));
        }
      }
      const TestCodes expected = Encode(QuantizeScalar, WeightFormat::kNvfp4, matrix,
                                        Bf16ToFloat(static_cast<uint16_t>(amax)));
      ForEachTarget([&] {
        ASSERT_EQ(Encode(Quantize, WeightFormat::kNvfp4, matrix,
                         Bf16ToFloat(static_cast<uint16_t>(amax))),
                  expected)
            << amax;
      });
    }
  }
}

// Subnormal BF16 under the floor scale, and the signs of zeros.
TEST(QuantizeSimd, SubnormalsUnderTheFloorKeepTheirSigns) {
  Bf16Matrix matrix = {2, 256, {}};
  for (uint32_t i = 0; i < 512; ++i) {
    matrix.values.push_back(static_cast<uint16_t>((i / 2) | (i % 2 != 0 ? 0x8000U : 0U)));
  }
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kFp8Ue8m0,
                                    WeightFormat::kFp8Channel, WeightFormat::kFp8Tensor}) {
    ForEachTarget([&] {
      const TestCodes out = Encode(Quantize, format, matrix);
      for (size_t i = 0; i < out.codes.size(); ++i) {
        ASSERT_EQ(out.codes[i], i % 2 != 0 ? 0x80 : 0x00) << i;
      }
    });
  }
}

TEST(QuantizeSimd, AnyCutAtMultiplesOf128RowsGivesTheSameBytes) {
  ForEachQuantizedFormat([](WeightFormat format) {
    const Bf16Matrix whole = RandomBf16(300, 160, 121, 77);
    const float amax = Amax(whole.View());
    const TestCodes expected = Encode(Quantize, format, whole);
    TestCodes bands(format, 300, 160);
    for (int64_t row = 0; row < 300; row += 128) {
      const int64_t rows = std::min<int64_t>(128, 300 - row);
      const auto code_begin = static_cast<size_t>(CodeBytes(format, row, 160));
      const auto scale_begin = static_cast<size_t>(ScaleBytes(format, row, 160));
      ASSERT_TRUE(Quantize({.format = format,
                            .values = whole.Rows(row, rows),
                            .amax = amax,
                            .codes = std::span(bands.codes)
                                         .subspan(code_begin, static_cast<size_t>(
                                                                  CodeBytes(format, rows, 160))),
                            .scales = bands.scales().subspan(
                                scale_begin, static_cast<size_t>(ScaleBytes(format, rows, 160)))})
                      .ok());
    }
    EXPECT_EQ(bands, expected);
  });
}

// Engine threads flush subnormals; a quantizer called from one must not notice.
TEST(QuantizeSimd, DoesNotDependOnTheSubnormalModeOfTheThread) {
  ForEachQuantizedFormat([](WeightFormat format) {
    const Bf16Matrix matrix = RandomBf16(129, 160, 20, 5);
    const TestCodes expected = Encode(QuantizeScalar, format, matrix);
    ForEachTarget([&] {
      const ScopedFlushSubnormals guard;
      EXPECT_EQ(Encode(Quantize, format, matrix), expected);
      EXPECT_EQ(Encode(QuantizeScalar, format, matrix), expected);
    });
  });
}

TestCodes RandomCodes(WeightFormat format, int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 rng(seed);
  TestCodes out(format, rows, cols);
  for (uint8_t& code : out.codes) {
    code = static_cast<uint8_t>(rng());
  }
  const bool bytes = format == WeightFormat::kMxfp8 || format == WeightFormat::kNvfp4;
  for (uint32_t& word : out.scale_words) {
    const float scale =
        std::ldexp(1.0F + static_cast<float>(rng() % 1000) / 1000.0F,
                   static_cast<int>(rng() % 240) - 130);  // Some subnormal products.
    word = bytes ? static_cast<uint32_t>(rng()) : std::bit_cast<uint32_t>(scale);
  }
  return out;
}

// Random codes, NaN among them, under random scales, to both dtypes, multiplying and dividing.
TEST(DequantizeSimd, EqualsTheScalarPath) {
  ForEachQuantizedFormat([](WeightFormat format) {
    uint32_t seed = 1;
    for (const int64_t rows : {1, 3, 129}) {
      for (const int64_t cols : Widths(format)) {
        TestCodes in = RandomCodes(format, rows, cols, seed++);
        for (const DType dtype : {DType::kBf16, DType::kF32}) {
          const auto bytes = static_cast<size_t>(rows * cols * DTypeBytes(dtype));
          std::vector<std::byte> expected(bytes);
          std::vector<std::byte> actual(bytes);
          DequantizeArgs args = {.format = format,
                                 .rows = rows,
                                 .cols = cols,
                                 .codes = in.codes,
                                 .scales = in.scales(),
                                 .tensor_scale = 0.37e-3F,
                                 .tensor_scale_divides = seed % 2 == 0,
                                 .values = {dtype, {rows, cols}, expected.data()}};
          ASSERT_TRUE(DequantizeScalar(args).ok());
          args.values.data = actual.data();
          ForEachTarget([&] {
            const ScopedFlushSubnormals guard;
            ASSERT_TRUE(Dequantize(args).ok());
            ASSERT_EQ(actual, expected) << rows << " x " << cols << " seed " << seed - 1;
          });
        }
      }
    }
  });
}

void ExpectEqual(const QuantizationError& actual, const QuantizationError& expected) {
  EXPECT_EQ(actual.sum_sq_error, expected.sum_sq_error);
  EXPECT_EQ(actual.sum_sq_value, expected.sum_sq_value);
  EXPECT_EQ(actual.max_abs_error, expected.max_abs_error);
  EXPECT_EQ(actual.num_values, expected.num_values);
  EXPECT_EQ(actual.num_saturated, expected.num_saturated);
  EXPECT_EQ(actual.num_scales, expected.num_scales);
  EXPECT_EQ(actual.num_zero_blocks, expected.num_zero_blocks);
  EXPECT_EQ(actual.num_subnormal_scales, expected.num_subnormal_scales);
}

// What Quantize made of one matrix, held against that matrix and against another: errors of every
// size, and saturated values.
TEST(MeasureSimd, EqualsTheScalarPathToTheLastBit) {
  ForEachQuantizedFormat([](WeightFormat format) {
    uint32_t seed = 1;
    for (const int64_t rows : {1, 3, 129}) {
      for (const int64_t cols : Widths(format)) {
        const Bf16Matrix matrix = RandomBf16(rows, cols, kExponents[seed % 7], seed);
        const Bf16Matrix other = RandomBf16(rows, cols, kExponents[seed % 7], seed + 1000);
        ++seed;
        TestCodes codes = Encode(Quantize, format, matrix);
        for (const Bf16Matrix& source : {matrix, other}) {
          const F32Matrix wide = Widened(source);
          MeasureArgs args = {.format = format,
                              .values = source.View(),
                              .codes = codes.codes,
                              .scales = codes.scales(),
                              .tensor_scale = TensorScale(format, Amax(matrix.View()))};
          const QuantizationError expected = MeasureQuantizationScalar(args);
          ForEachTarget([&] {
            SCOPED_TRACE(seed - 1);
            args.values = source.View();
            ExpectEqual(MeasureQuantization(args), expected);
            args.values = wide.View();
            ExpectEqual(MeasureQuantization(args), expected);
          });
        }
      }
    }
  });
}

TEST(QuantizeSimd, CountNonFiniteFindsTheOnlyBadValueAtEveryPosition) {
  ForEachTarget([] {
    for (const int64_t length : {1, 31, 64, 67, 129}) {
      Bf16Matrix matrix = {1, length, std::vector<uint16_t>(static_cast<size_t>(length), 0xFF7F)};
      EXPECT_EQ(CountNonFinite(matrix.View()).count, 0);
      EXPECT_EQ(CountNonFinite(matrix.View()).first_idx, -1);
      int64_t position = 0;
      for (uint16_t& value : matrix.values) {
        value = 0xFF80;
        for (const NonFiniteCount found :
             {CountNonFinite(matrix.View()), CountNonFinite(Widened(matrix).View())}) {
          EXPECT_EQ(found.count, 1);
          EXPECT_EQ(found.first_idx, position);
        }
        value = 0xFF7F;
        ++position;
      }
    }
    EXPECT_EQ(CountNonFinite(Bf16Matrix{0, 7, {}}.View()).count, 0);
  });
}

TEST(QuantizeSimd, AmaxFindsTheLargestAtEveryPosition) {
  ForEachTarget([] {
    for (const int64_t length : {1, 31, 64, 67, 129}) {
      Bf16Matrix matrix = {1, length, std::vector<uint16_t>(static_cast<size_t>(length), 0x3F80)};
      EXPECT_EQ(Amax(matrix.View()), 1.0F);
      for (uint16_t& value : matrix.values) {
        value = 0xC000;
        EXPECT_EQ(Amax(matrix.View()), 2.0F);
        EXPECT_EQ(Amax(Widened(matrix).View()), 2.0F);
        value = 0x8000;
      }
      EXPECT_EQ(Amax(matrix.View()), 0.0F);
    }
    EXPECT_EQ(Amax(Bf16Matrix{0, 7, {}}.View()), 0.0F);
  });
}

}  // namespace
}  // namespace octavo
