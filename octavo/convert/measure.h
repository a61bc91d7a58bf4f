#pragma once
// How far stored codes are from their source: for the reports of convert and audit.

#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/fp8_block.h"

namespace octavo {

// `source` [n, k] BF16, F16 or F32 (rounded to BF16 first, so that the error is that of the
// quantization alone); `codes` [n, k] F8_E4M3; `scales` F32 blocks. The sums are taken band by band
// in order, so they do not depend on the pool, which may be null.
Fp8BlockError MeasureStored(const ConstTensorView& source, const ConstTensorView& codes,
                            const ConstTensorView& scales, ThreadPool* pool);

}  // namespace octavo
