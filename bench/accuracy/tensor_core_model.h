#pragma once
// How NVIDIA's tensor cores add the products of FP8 and FP4 codes, as a published model has it:
// Xie et al., "MMA-Sim: Bit-Accurate Reference Model of Tensor Cores and Matrix Cores"
// (arXiv 2511.10909), whose authors compared it bit by bit with the hardware. Written from the
// paper's description; NVIDIA documents none of it.
//
// One instruction adds its terms and the accumulator as integers: all are shifted to the largest
// exponent among them, cut toward zero behind `fraction_bits` of it, and summed exactly; the sum is
// then cut toward zero to what the accumulator holds.
//
//                         terms of one instruction             fraction_bits  accumulator
//   Hopper, FP8           32 products                          13             13 fraction bits
//   Blackwell, FP8        32 products                          25             FP32
//   Blackwell, MXFP8      32 products with the two scales      25             FP32
//   Blackwell, NVFP4      4 sums of 16 products (exact), each  35             FP32
//                         with its two scales
//
// A term's exponent is the sum of those of its factors, E4M3's subnormals at -6: its significand
// may reach 4, and for NVFP4 that of 16 products stands beside the exponents of the scales alone.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <span>

namespace octavo {

struct TensorCore {
  const char* name;
  int fraction_bits;     // Of the sum inside an instruction, below its largest exponent.
  int accumulator_bits;  // Fraction bits of what an instruction writes: 23 for FP32.
};
inline constexpr TensorCore kHopperFp8 = {"hopper", 13, 13};
inline constexpr TensorCore kBlackwell8 = {"blackwell", 25, 23};
inline constexpr TensorCore kBlackwellFp4 = {"blackwell", 35, 23};

inline constexpr int kZeroExponent = -133;

// Of an E4M3 value.
inline int E4m3Exponent(float value) {
  constexpr int kMinExponent = -6;
  return value == 0.0F ? kZeroExponent : std::max(std::ilogb(value), kMinExponent);
}

struct Term {
  double value = 0.0;  // Exact.
  int exponent = kZeroExponent;
};

// value cut toward zero behind `bits` binary places below 2^exponent.
inline double CutBelow(double value, int exponent, int bits) {
  return std::ldexp(std::trunc(std::ldexp(value, bits - exponent)), exponent - bits);
}

// One instruction: the accumulator after `terms` were added to it.
inline double AddTerms(const TensorCore& core, double accumulator, std::span<const Term> terms) {
  int largest = accumulator == 0.0 ? kZeroExponent : std::ilogb(accumulator);
  for (const Term& term : terms) {
    largest = std::max(largest, term.exponent);
  }
  double sum = CutBelow(accumulator, largest, core.fraction_bits);
  for (const Term& term : terms) {
    sum += CutBelow(term.value, largest, core.fraction_bits);
  }
  return sum == 0.0 ? 0.0 : CutBelow(sum, std::ilogb(sum), core.accumulator_bits);
}

}  // namespace octavo
