#pragma once
// What this machine can do at most, measured in the same run as what it did: the denominators of
// the shares that benchmarks print.

#include <cstddef>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"

namespace octavo {

// Reads every cache line of `memory` with all threads of the pool, each its share of every span,
// and returns bytes per second: the better of a pass in one stream and a pass in four. Give it the
// packed weights of a model, or anything well above the caches; on a shared machine a call is
// noisy: take the median or the best of several. Never fails; 0 for empty memory.
double MeasureReadBandwidth(std::span<const std::span<const std::byte>> memory, ThreadPool* pool);

// Sustained FLOP/s (two per multiply-add) of the instruction that the path of `isa` multiplies
// with, operands in registers: TDPBF16PS for amx, FP32 FMA for avx512 and avx2, on all threads for
// about `seconds`.
// Errors: kUnsupported for scalar, and where MakeCpuBackend refuses `isa`.
Result<double> MeasureMatrixPeak(Isa isa, ThreadPool* pool, double seconds);

}  // namespace octavo
