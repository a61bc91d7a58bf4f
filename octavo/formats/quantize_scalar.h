#pragma once
// The scalar truth behind quantize.h, one loop for all formats: what the vector paths must equal.
// Arguments are checked by quantize.cc, which also holds IEEE subnormals.

#include "octavo/formats/quantize.h"

namespace octavo::scalar {

// Requires finite values, and for formats with SharesScale none above args.amax.
void Quantize(const QuantizeArgs& args);
void Dequantize(const DequantizeArgs& args);
QuantizationError Measure(const MeasureArgs& args);

}  // namespace octavo::scalar
