#include "octavo/kernels/cpu/dot.h"

#include "octavo/base/status.h"

namespace octavo::cpu {

Status CheckDot() {
  if (!__builtin_cpu_supports("avx512bf16") || !__builtin_cpu_supports("avx512vbmi") ||
      !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512bw")) {
    return Unsupported("cpu/avx512: this processor has no AVX512_BF16 or not VBMI beside it");
  }
  if (!DotIsTwoFmas()) {
    return Unsupported("cpu/avx512: VDPBF16PS of this processor is not two multiply-adds");
  }
  return OkStatus();
}

}  // namespace octavo::cpu
