// Method: every vector path that this machine can run against the scalar one, tolerance 0: odd
// shapes with random bits, every BF16 value under every amax mantissa, and hostile thread modes.

#include <gtest/gtest.h>
#include <hwy/highway.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <span>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/bf16_span.h"
#include "octavo/formats/fp8_block.h"

namespace octavo {
namespace {

constexpr int64_t kExtents[] = {1, 2, 31, 127, 128, 129, 160, 257};

// Runs `body` once on each target, the scalar fallback included, and restores the choice.
template <typename Body>
void ForEachTarget(Body body) {
  for (int64_t rest = hwy::SupportedTargets() | HWY_SCALAR; rest != 0; rest &= rest - 1) {
    const int64_t target = rest & -rest;
    hwy::GetChosenTarget().Update(target);
    SCOPED_TRACE(hwy::TargetName(target));
    body();
  }
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

struct Encoded {
  Encoded(int64_t rows, int64_t cols)
      : codes(static_cast<size_t>(rows * cols)),
        scales(static_cast<size_t>(NumFp8Blocks(rows) * NumFp8Blocks(cols))) {}
  bool operator==(const Encoded&) const = default;

  std::vector<uint8_t> codes;
  std::vector<float> scales;
};

struct Source {
  int64_t rows;
  int64_t cols;
  std::vector<uint16_t> values;

  Encoded Encode(Status (*encode)(const Fp8BlockEncodeArgs&)) const {
    Encoded out(rows, cols);
    EXPECT_TRUE(encode({.rows = rows,
                        .cols = cols,
                        .values = values,
                        .codes = out.codes,
                        .scales = out.scales})
                    .ok());
    return out;
  }
};

// Any finite BF16 bits; `max_exponent` bounds the magnitude (biased exponent field).
Source RandomSource(int64_t rows, int64_t cols, uint32_t max_exponent, uint32_t seed) {
  std::mt19937 rng(seed);
  Source source = {rows, cols, std::vector<uint16_t>(static_cast<size_t>(rows * cols))};
  for (uint16_t& value : source.values) {
    const uint32_t exponent =
        max_exponent - static_cast<uint32_t>(rng()) % std::min(max_exponent + 1, 24U);
    value = static_cast<uint16_t>((rng() & 0x807FU) | (exponent << 7));
  }
  return source;
}

TEST(Fp8BlockSimd, EqualsTheScalarPathOnOddShapes) {
  ForEachTarget([] {
    uint32_t seed = 1;
    for (const int64_t rows : kExtents) {
      for (const int64_t cols : kExtents) {
        for (const uint32_t max_exponent : {0U, 10U, 92U, 121U, 254U}) {
          const Source source = RandomSource(rows, cols, max_exponent, seed++);
          ASSERT_EQ(source.Encode(EncodeFp8Block), source.Encode(EncodeFp8BlockScalar))
              << rows << " x " << cols << " exponent " << max_exponent << " seed " << seed - 1;
        }
      }
    }
  });
}

// For each amax mantissa, one block with every magnitude of the 24 binades below it: all quotients
// that can reach a nonzero code. This is where a quotient that is not correctly rounded shows.
TEST(Fp8BlockSimd, QuotientsAreCorrectlyRoundedForEveryAmax) {
  ForEachTarget([] {
    for (const uint32_t exponent : {95U, 96U, 118U, 127U, 253U, 254U}) {
      for (uint32_t mantissa = 0; mantissa < 128; ++mantissa) {
        const uint32_t amax = (exponent << 7) | mantissa;
        Source source = {128, 128, std::vector<uint16_t>(size_t{128} * 128)};
        for (size_t i = 0; i < source.values.size(); ++i) {
          const auto below = static_cast<uint32_t>(i) % (24 * 128);
          source.values[i] = static_cast<uint16_t>((amax - below) | (i % 3 == 0 ? 0x8000U : 0U));
        }
        ASSERT_EQ(source.Encode(EncodeFp8Block), source.Encode(EncodeFp8BlockScalar)) << amax;
      }
    }
  });
}

// Subnormal BF16 under the floor scale, and the signs of zeros.
TEST(Fp8BlockSimd, KeepsSignsOfZerosAndSubnormals) {
  ForEachTarget([] {
    Source source = {1, 512, std::vector<uint16_t>(512)};
    for (size_t i = 0; i < source.values.size(); ++i) {
      source.values[i] = static_cast<uint16_t>((i / 2) | (i % 2 != 0 ? 0x8000U : 0U));
    }
    const Encoded encoded = source.Encode(EncodeFp8Block);
    EXPECT_EQ(encoded, source.Encode(EncodeFp8BlockScalar));
    for (size_t i = 0; i < encoded.codes.size(); ++i) {
      EXPECT_EQ(encoded.codes[i], i % 2 != 0 ? 0x80 : 0x00) << i;
    }
  });
}

TEST(Fp8BlockSimd, AnyCutAtMultiplesOf128RowsGivesTheSameBytes) {
  const Source whole = RandomSource(300, 200, 121, 77);
  const Encoded expected = whole.Encode(EncodeFp8Block);
  Encoded bands(300, 200);
  for (int64_t row = 0; row < 300; row += 128) {
    const int64_t rows = std::min<int64_t>(128, 300 - row);
    const auto begin = static_cast<size_t>(row * 200);
    const auto count = static_cast<size_t>(rows * 200);
    ASSERT_TRUE(
        EncodeFp8Block(
            {.rows = rows,
             .cols = 200,
             .values = std::span(whole.values).subspan(begin, count),
             .codes = std::span(bands.codes).subspan(begin, count),
             .scales = std::span(bands.scales).subspan(static_cast<size_t>(row / 128 * 2), 2)})
            .ok());
  }
  EXPECT_EQ(bands, expected);
}

// Engine threads flush subnormals; a quantizer called from one must not notice.
TEST(Fp8BlockSimd, DoesNotDependOnTheSubnormalModeOfTheThread) {
  const Source source = RandomSource(129, 130, 20, 5);
  const Encoded expected = source.Encode(EncodeFp8BlockScalar);
  ForEachTarget([&] {
    const ScopedFlushSubnormals guard;
    EXPECT_EQ(source.Encode(EncodeFp8Block), expected);
    EXPECT_EQ(source.Encode(EncodeFp8BlockScalar), expected);
  });
}

TEST(Fp8BlockSimd, DecodeEqualsTheScalarPath) {
  ForEachTarget([] {
    std::mt19937 rng(9);
    for (const int64_t rows : {1, 3, 129}) {
      for (const int64_t cols : kExtents) {
        Encoded in(rows, cols);
        for (uint8_t& code : in.codes) {
          code = static_cast<uint8_t>(rng());
        }
        for (float& scale : in.scales) {
          scale = std::ldexp(1.0F + static_cast<float>(rng() % 1000) / 1000.0F,
                             static_cast<int>(rng() % 240) - 130);  // Some products subnormal.
        }
        std::vector<uint16_t> simd(in.codes.size());
        std::vector<uint16_t> scalar(in.codes.size());
        Fp8BlockDecodeArgs args = {
            .rows = rows, .cols = cols, .codes = in.codes, .scales = in.scales, .values = simd};
        const ScopedFlushSubnormals guard;
        ASSERT_TRUE(DecodeFp8Block(args).ok());
        args.values = scalar;
        ASSERT_TRUE(DecodeFp8BlockScalar(args).ok());
        ASSERT_EQ(simd, scalar) << rows << " x " << cols;
      }
    }
  });
}

// Every F16; the definition by fields is F16ToFloat, itself checked in bf16_span_test.cc.
TEST(Bf16SpanSimd, RoundsEveryF16AsTheScalarPath) {
  std::vector<uint16_t> in(65536 + 7);
  for (size_t i = 0; i < in.size(); ++i) {
    in[i] = static_cast<uint16_t>(i);
  }
  ForEachTarget([&] {
    const ScopedFlushSubnormals guard;
    std::vector<uint16_t> out(in.size());
    RoundF16ToBf16(in, out);
    const ScopedIeeeSubnormals ieee;
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(out[i], FloatToBf16(F16ToFloat(in[i]))) << i;
    }
  });
}

// The upper half takes every value and the lower half every kind of tie.
TEST(Bf16SpanSimd, RoundsF32AsTheScalarPath) {
  std::vector<float> in;
  for (uint32_t upper = 0; upper < 65536; ++upper) {
    for (const uint32_t lower : {0U, 1U, 0x7FFFU, 0x8000U, 0x8001U, 0xFFFFU}) {
      in.push_back(std::bit_cast<float>((upper << 16) | lower));
    }
  }
  in.push_back(1.0F);  // A length that leaves a tail.
  ForEachTarget([&] {
    const ScopedFlushSubnormals guard;
    std::vector<uint16_t> out(in.size());
    RoundF32ToBf16(in, out);
    for (size_t i = 0; i < in.size(); ++i) {
      ASSERT_EQ(out[i], FloatToBf16(in[i])) << i;
    }
  });
}

TEST(Bf16SpanSimd, FindsTheOnlyBadValueAtEveryPosition) {
  ForEachTarget([] {
    for (const size_t length : {1U, 31U, 64U, 67U, 129U}) {
      std::vector<uint16_t> values(length, 0xFF7F);
      EXPECT_EQ(CountNonFinite(values).count, 0);
      EXPECT_EQ(CountNonFinite(values).first_idx, -1);
      for (size_t i = 0; i < length; ++i) {
        values[i] = 0xFF80;
        EXPECT_EQ(CountNonFinite(values).count, 1);
        EXPECT_EQ(CountNonFinite(values).first_idx, static_cast<int64_t>(i));
        values[i] = 0xFF7F;
      }
    }
    EXPECT_EQ(CountNonFinite({}).count, 0);
  });
}

}  // namespace
}  // namespace octavo
