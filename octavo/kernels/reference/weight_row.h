#pragma once
// Rows of weights as the reference multiplies them, from canonical bytes.

#include <cstdint>

#include "octavo/kernels/matrix.h"

namespace octavo::reference {

// D of LinearArgs: row [cols] gets the exact values of row n that enter the sums of the serving
// recipe: codes, times the scale of their group for mxfp8 and nvfp4.
void DecodeWeightRow(const PackedMatrix& weight, int64_t n, float* row);

// The whole value (Dequantize of formats/quantize.h), for the fp32 recipe.
void DequantizeWeightRow(const PackedMatrix& weight, int64_t n, float* row);

}  // namespace octavo::reference
