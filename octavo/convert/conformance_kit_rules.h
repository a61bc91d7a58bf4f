#pragma once
// The rules of quantizers in use, each as a small function: ours is one among them. Only for
// recognising whose output a file is; nothing here writes a checkpoint (formats/quantize.h does).

#include <cstdint>
#include <span>
#include <string_view>

namespace octavo {

// One way of doing something: its name in reports, and what it means.
struct RuleText {
  std::string_view name;
  std::string_view means;
};

enum class TieRule { kEven, kToZero, kAway };
enum class ZeroSignRule { kKept, kDropped, kExactDropped };
enum class OverflowRule { kSaturate, kNan };

// How a quotient becomes a code.
struct ElementRule {
  TieRule ties = TieRule::kEven;
  ZeroSignRule zero_sign = ZeroSignRule::kKept;
  OverflowRule overflow = OverflowRule::kSaturate;
};

uint8_t EncodeE4m3(float value, const ElementRule& rule);
uint8_t EncodeE2m1(float value, const ElementRule& rule);

float RoundToBf16(float value);

// --- FP8 ----------------------------------------------------------------------------------------

enum class Fp8Scale { kDivide, kReciprocal, kInverse };
enum class Fp8Floor {
  k1e10,
  k1e12,
  kBf16Of1e12,
  k1e4,
  kNone,
  kZeroIsOne,
  kZeroIsEps,
  kZeroIsBf16Eps,
  kZeroIsTiny,
};
enum class Fp8Element { kDivide, kReciprocal, kInverse, kBf16 };
enum class Ue8m0Round { kUp, kDown };

float Fp8ScaleOf(float amax, Fp8Scale scale, Fp8Floor floor);
float Ue8m0ScaleOf(float amax, Ue8m0Round round, Fp8Floor floor);
// `amax` and `floor` are read for kInverse alone.
float Fp8Quotient(float value, float scale, float amax, Fp8Floor floor, Fp8Element element);

// --- MXFP8 --------------------------------------------------------------------------------------

enum class MxScale { kRoundUp, kFloor, kEven, kCeil };
// The byte of a group; `zero_byte` for an amax of 0.
uint8_t MxByte(float amax, MxScale rule, uint8_t zero_byte);

// --- NVFP4 --------------------------------------------------------------------------------------

enum class NvGlobal { kReciprocalOfS, kDivide, kBf16, kDoubleReciprocal };
enum class NvZeroSet { kOne, kTiny, kZero };
// S = 2688 / amax, which makes codes large, and D, which multiplies.
struct NvGlobals {
  float large = 1.0F;
  float small = 1.0F;
};
NvGlobals NvGlobalsOf(float amax, NvGlobal global, NvZeroSet zero_set);

enum class NvGroup { kSSixth, kSixD, kSixthOverD, kBf16Sixth, kSixthTimesS };
enum class NvSmallGroup { kRounded, kClamped, kBecomes38, kBecomes20 };
struct NvGroupRule {
  NvGroup group = NvGroup::kSSixth;
  uint8_t zero_byte = 0;
  NvSmallGroup small = NvSmallGroup::kRounded;
};
// The E4M3 byte of a group.
uint8_t NvGroupByte(float amax, const NvGlobals& globals, const NvGroupRule& rule);

enum class NvElement { kReciprocal, kDivide, kTwoReciprocals, kDivisor };
// What E2M1 codes are rounded from; `group_scale` is the decoded byte.
float NvQuotient(float value, float group_scale, const NvGlobals& globals, NvElement element);

}  // namespace octavo
