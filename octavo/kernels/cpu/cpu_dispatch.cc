// Which path of this processor runs, and the backend that runs it.

#include "octavo/kernels/backend.h"

namespace octavo {

Isa BestIsa() { return Isa::kScalar; }

Result<std::unique_ptr<Backend>> MakeCpuBackend(Isa isa, int num_threads) {
  if (isa == Isa::kScalar) {
    return MakeReferenceBackend(Recipe::kServing, num_threads);
  }
  return Unsupported("isa {}: this build has no vector kernels", IsaName(isa));
}

}  // namespace octavo
