#pragma once
// FP8 with one FP32 scale for each row (output channel), or one for a whole tensor.
//
//   scale      = max(amax, floor) / 448           IEEE FP32 division
//   code[n, k] = E4M3(x[n, k] / scale)            nearest even, saturating
//   value      = code * scale
//
// amax is over the row, or over all tensors of a fused set that share the scale. The floor is 1e-12
// for a tensor; for a row it is 1e-12 rounded to BF16, about 1.0018653e-12, because the converters
// whose bytes these are clamp in the dtype of the weight. Source: docs/formats.md.

namespace octavo {

inline constexpr float kFp8TensorAmaxMin = 1e-12F;
inline constexpr float kFp8ChannelAmaxMin = 0x1.1ap-40F;  // BF16 2b8d.

// The scale of a row whose largest magnitude is `amax` (finite): positive and normal.
inline constexpr float Fp8ChannelScale(float amax) {
  return (amax > kFp8ChannelAmaxMin ? amax : kFp8ChannelAmaxMin) / 448.0F;
}

// The same of a tensor, or of a fused set.
inline constexpr float Fp8TensorScale(float amax) {
  return (amax > kFp8TensorAmaxMin ? amax : kFp8TensorAmaxMin) / 448.0F;
}

}  // namespace octavo
