#pragma once
// The part of MeasureQuantization that looks at codes and scales alone.

#include "octavo/formats/quantize.h"

namespace octavo {

// Adds blocks, blocks whose codes are all +-0, and subnormal scales to `error`.
void CountBlocks(const MeasureArgs& args, QuantizationError* error);

}  // namespace octavo
