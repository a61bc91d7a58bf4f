// The serving recipe compiled with -mfma (kernels/CMakeLists.txt). Only reached through the table,
// after CPUID said that the processor has FMA.

#include "octavo/kernels/reference/row_math.h"
#include "octavo/kernels/reference/serving_rows-inl.h"

namespace octavo::internal {

struct HardwareFma {};

const RowMath& ServingRowMathHardwareFma() { return ServingRows<HardwareFma>::kTable; }

}  // namespace octavo::internal
