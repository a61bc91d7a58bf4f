#pragma once
// FP8 with one FP32 scale for each row (output channel), or one for a whole tensor.
//
//   scale      = max(amax, 1e-12) / 448           IEEE FP32 division
//   code[n, k] = E4M3(x[n, k] / scale)            nearest even, saturating
//   value      = code * scale
//
// amax is over the row, or over all tensors of a fused set that share the scale. Source:
// docs/formats.md. Frameworks that clamp in BF16 use 1.0018653e-12 as the floor instead; the two
// differ for rows below it alone.

namespace octavo {

inline constexpr float kFp8ChannelAmaxMin = 1e-12F;

// The scale of a row or a tensor whose largest magnitude is `amax` (finite): positive and normal.
inline constexpr float Fp8ChannelScale(float amax) {
  return (amax > kFp8ChannelAmaxMin ? amax : kFp8ChannelAmaxMin) / 448.0F;
}

}  // namespace octavo
