// See docs/formats.md for each formula. Every operation below is one FP32 operation.

#include "octavo/convert/conformance_kit_rules.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"

namespace octavo {
namespace {

constexpr std::array<float, 8> kE2m1Values = {0.0F, 0.5F, 1.0F, 1.5F, 2.0F, 3.0F, 4.0F, 6.0F};
constexpr uint32_t kMantissaBits = 0x007FFFFFU;

constexpr std::array<float, 127> MakeE4m3Values() {
  std::array<float, 127> values = {};
  for (size_t code = 0; code < values.size(); ++code) {
    values[code] = E4m3ToFloat(static_cast<uint8_t>(code));
  }
  return values;
}
constexpr std::array<float, 127> kE4m3Values = MakeE4m3Values();

// The code of the value of `table` nearest to `magnitude`, which is below the last.
uint8_t NearestCode(std::span<const float> table, float magnitude, TieRule ties) {
  const auto above = std::ranges::upper_bound(table, magnitude);
  const auto low = static_cast<uint8_t>(above - table.begin() - 1);
  // Two neighbours have few bits: their middle is exact.
  const float middle = (table[low] + *above) * 0.5F;
  if (magnitude != middle) {
    return static_cast<uint8_t>(low + (magnitude > middle ? 1 : 0));
  }
  switch (ties) {
    case TieRule::kEven:
      return static_cast<uint8_t>(low + (low & 1U));
    case TieRule::kToZero:
      return low;
    case TieRule::kAway:
      break;
  }
  return static_cast<uint8_t>(low + 1);
}

uint8_t WithSign(float value, uint8_t code, uint8_t sign_bit, ZeroSignRule rule) {
  if (!std::signbit(value)) {
    return code;
  }
  const bool drop = code == 0 && (rule == ZeroSignRule::kDropped ||
                                  (rule == ZeroSignRule::kExactDropped && value == 0.0F));
  return drop ? code : static_cast<uint8_t>(code | sign_bit);
}

float FloorValue(Fp8Floor floor) {
  switch (floor) {
    case Fp8Floor::k1e10:
      return 1e-10F;
    case Fp8Floor::k1e12:
      return 1e-12F;
    case Fp8Floor::kBf16Of1e12:
      return RoundToBf16(1e-12F);
    case Fp8Floor::k1e4:
      return 1e-4F;
    default:
      return 0.0F;
  }
}

// The scale of a block of zeros under the rules that name one; 0 under the others.
float ZeroBlockScale(Fp8Floor floor) {
  switch (floor) {
    case Fp8Floor::kZeroIsOne:
      return 1.0F;
    case Fp8Floor::kZeroIsEps:
      return 0x1p-23F;
    case Fp8Floor::kZeroIsBf16Eps:
      return 0x1p-7F;
    case Fp8Floor::kZeroIsTiny:
      return 0x1p-126F;
    default:
      return 0.0F;
  }
}

}  // namespace

uint8_t EncodeE4m3(float value, const ElementRule& rule) {
  const float magnitude = std::fabs(value);
  if (std::isnan(value)) {
    return kE4m3NaN;
  }
  if (magnitude > 464.0F && rule.overflow == OverflowRule::kNan) {
    return WithSign(value, kE4m3NaN, 0x80, rule.zero_sign);
  }
  const uint8_t code =
      magnitude >= kE4m3Max ? 0x7E : NearestCode(kE4m3Values, magnitude, rule.ties);
  return WithSign(value, code, 0x80, rule.zero_sign);
}

uint8_t EncodeE2m1(float value, const ElementRule& rule) {
  if (std::isnan(value)) {
    return 7;
  }
  const float magnitude = std::fabs(value);
  const uint8_t code = magnitude >= 6.0F ? 7 : NearestCode(kE2m1Values, magnitude, rule.ties);
  return WithSign(value, code, 8, rule.zero_sign);
}

float RoundToBf16(float value) { return Bf16ToFloat(FloatToBf16(value)); }

float Fp8ScaleOf(float amax, Fp8Scale scale, Fp8Floor floor) {
  const float floored = std::max(amax, FloorValue(floor));
  if (floored == 0.0F && floor != Fp8Floor::kNone) {
    return ZeroBlockScale(floor);
  }
  switch (scale) {
    case Fp8Scale::kReciprocal:
      return floored * (1.0F / kE4m3Max);
    case Fp8Scale::kInverse:
      return 1.0F / (kE4m3Max / floored);
    case Fp8Scale::kDivide:
      break;
  }
  return floored / kE4m3Max;
}

float Ue8m0ScaleOf(float amax, Ue8m0Round round, Fp8Floor floor) {
  const float floored = std::max(amax, FloorValue(floor));
  if (floored == 0.0F) {
    return ZeroBlockScale(floor);
  }
  const auto bits = std::bit_cast<uint32_t>(floored / kE4m3Max);
  const uint32_t up = round == Ue8m0Round::kUp && (bits & kMantissaBits) != 0 ? 1 : 0;
  const uint32_t exponent = std::clamp((bits >> 23) + up, 1U, 254U);
  return std::bit_cast<float>(exponent << 23);
}

float Fp8Quotient(float value, float scale, float amax, Fp8Floor floor, Fp8Element element) {
  switch (element) {
    case Fp8Element::kReciprocal:
      return value * (1.0F / scale);
    case Fp8Element::kInverse: {
      const float factor = kE4m3Max / std::max(amax, FloorValue(floor));
      return value * (std::isinf(factor) ? 1.0F : factor);
    }
    case Fp8Element::kBf16: {
      const float quotient = value / RoundToBf16(scale);
      return std::isfinite(quotient) ? RoundToBf16(quotient) : quotient;
    }
    case Fp8Element::kDivide:
      break;
  }
  return value / scale;
}

uint8_t MxByte(float amax, MxScale rule, uint8_t zero_byte) {
  if (amax == 0.0F) {
    return zero_byte;
  }
  if (rule == MxScale::kRoundUp) {
    const auto bits = std::bit_cast<uint32_t>(amax * (1.0F / kE4m3Max));
    const uint32_t mantissa = bits & kMantissaBits;
    const uint32_t exponent = bits >> 23;
    const uint32_t up = exponent == 0 ? (mantissa > 0x400000U ? 1 : 0) : (mantissa != 0 ? 1 : 0);
    return static_cast<uint8_t>(std::min(exponent + up, 254U));
  }
  int exponent = 0;
  const float mantissa = 2.0F * std::frexp(amax, &exponent);  // In [1, 2).
  --exponent;
  if (rule == MxScale::kEven && mantissa >= 1.75F) {
    ++exponent;
  } else if (rule == MxScale::kCeil && mantissa > 1.0F) {
    ++exponent;
  }
  return static_cast<uint8_t>(std::clamp(exponent - 8 + 127, 0, 254));
}

NvGlobals NvGlobalsOf(float amax, NvGlobal global, NvZeroSet zero_set) {
  if (amax == 0.0F) {
    return {.large = 1.0F,
            .small = zero_set == NvZeroSet::kOne    ? 1.0F
                     : zero_set == NvZeroSet::kTiny ? 1.0F / FLT_MAX
                                                    : 0.0F};
  }
  const float large = std::min(2688.0F / amax, FLT_MAX);
  switch (global) {
    case NvGlobal::kDivide:
      return {.large = large, .small = amax / 2688.0F};
    case NvGlobal::kBf16:
      return {.large = RoundToBf16(large), .small = 1.0F / RoundToBf16(large)};
    case NvGlobal::kDoubleReciprocal: {
      const float twice = 1.0F / (amax / 2688.0F);
      return {.large = twice, .small = 1.0F / twice};
    }
    case NvGlobal::kReciprocalOfS:
      break;
  }
  return {.large = large, .small = 1.0F / large};
}

uint8_t NvGroupByte(float amax, const NvGlobals& globals, const NvGroupRule& rule) {
  if (amax == 0.0F) {
    return rule.zero_byte;
  }
  float scale = 0.0F;
  switch (rule.group) {
    case NvGroup::kSSixth:
      scale = amax * (globals.large * (1.0F / 6.0F));
      break;
    case NvGroup::kSixD:
      scale = amax / (6.0F * globals.small);
      break;
    case NvGroup::kSixthOverD:
      scale = (amax / 6.0F) / globals.small;
      break;
    case NvGroup::kBf16Sixth:
      scale = RoundToBf16(amax / 6.0F) * globals.large;
      break;
    case NvGroup::kSixthTimesS:
      scale = (amax / 6.0F) * globals.large;
      break;
  }
  const uint8_t byte = FloatToE4m3(std::min(scale, kE4m3Max));
  switch (rule.small) {
    case NvSmallGroup::kClamped:
      return std::max<uint8_t>(byte, 0x08);
    case NvSmallGroup::kBecomes38:
      return byte == 0 ? 0x38 : byte;
    case NvSmallGroup::kBecomes20:
      return byte == 0 ? 0x20 : byte;
    case NvSmallGroup::kRounded:
      break;
  }
  return byte;
}

float NvQuotient(float value, float group_scale, const NvGlobals& globals, NvElement element) {
  switch (element) {
    case NvElement::kDivide:
      return value / (group_scale * globals.small);
    case NvElement::kTwoReciprocals:
      return value * ((1.0F / globals.small) / group_scale);
    case NvElement::kDivisor:
      return value / (group_scale / globals.large);
    case NvElement::kReciprocal:
      break;
  }
  return value * std::min(1.0F / (group_scale * globals.small), FLT_MAX);
}

}  // namespace octavo
