#pragma once
// The vector half of quantize.h. Arguments are checked by quantize.cc, which also holds IEEE
// subnormals. Targets without vectors of their own run the scalar reference.

#include <cstdint>

#include "octavo/base/tensor.h"
#include "octavo/formats/quantize.h"

namespace octavo::simd {

// FP32 bits of the largest magnitude of BF16 or F32 values; NaN and infinity are >= 0x7F800000.
uint32_t MaxMagnitudeBits(const ConstTensorView& values);

// Encode, and return the largest magnitude as above. When that is not finite, or for formats with
// SharesScale above args.amax, the outputs are unspecified.
uint32_t QuantizeFp8(const QuantizeArgs& args);  // All formats but mxfp8 and nvfp4.
uint32_t QuantizeMxfp8(const QuantizeArgs& args);
uint32_t QuantizeNvfp4(const QuantizeArgs& args);

void Dequantize(const DequantizeArgs& args);
QuantizationError Measure(const MeasureArgs& args);

}  // namespace octavo::simd
