#include "octavo/base/float_env.h"

#include <xmmintrin.h>

#include <cstdint>

namespace octavo {
namespace {

constexpr uint32_t kFlushToZero = 0x8000;
constexpr uint32_t kDenormalsAreZero = 0x0040;

}  // namespace

ScopedFlushSubnormals::ScopedFlushSubnormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(saved_ | kFlushToZero | kDenormalsAreZero);
}
ScopedFlushSubnormals::~ScopedFlushSubnormals() { _mm_setcsr(saved_); }

ScopedIeeeSubnormals::ScopedIeeeSubnormals() : saved_(_mm_getcsr()) {
  _mm_setcsr(saved_ & ~(kFlushToZero | kDenormalsAreZero));
}
ScopedIeeeSubnormals::~ScopedIeeeSubnormals() { _mm_setcsr(saved_); }

}  // namespace octavo
