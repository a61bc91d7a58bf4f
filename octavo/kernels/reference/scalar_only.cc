// MakeCpuBackend of a build without vector kernels (CMake option OCTAVO_REFERENCE_ONLY): compiled
// instead of cpu/.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/machine_peaks.h"

namespace octavo {

Isa BestIsa() { return Isa::kScalar; }

Result<std::unique_ptr<Backend>> MakeCpuBackend(Isa isa, int num_threads) {
  if (isa == Isa::kScalar) {
    return MakeReferenceBackend(Recipe::kServing, num_threads);
  }
  return Unsupported("isa {}: this build has no vector kernels (OCTAVO_REFERENCE_ONLY)",
                     IsaName(isa));
}

Result<double> MeasureMatrixPeak(Isa isa, ThreadPool* /*pool*/, double /*seconds*/) {
  return Unsupported("matrix peak of isa {}: this build has no vector kernels", IsaName(isa));
}

}  // namespace octavo
