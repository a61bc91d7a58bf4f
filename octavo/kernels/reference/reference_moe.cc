// Routing and combining of the reference backend.

#include "octavo/base/status.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"

namespace octavo::reference {

Status ReferenceBackend::Route(const RouteArgs& args) {
  CheckArgs(args, activation_dtype());
  return Unsupported("Route on {}", name());
}

Status ReferenceBackend::Combine(const CombineArgs& args) {
  CheckArgs(args, activation_dtype());
  return Unsupported("Combine on {}", name());
}

}  // namespace octavo::reference
