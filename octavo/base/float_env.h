#pragma once
// Subnormal handling of the calling thread.
//
// The matrix instructions that the CPU kernels imitate (AMX TDPBF16PS) treat subnormal inputs as
// zero and flush subnormal results, whatever the thread's mode. Every other path reproduces that
// by running under this guard. Quantizers must run without it: formats keep subnormals.

#include <cstdint>

namespace octavo {

// Sets flush-to-zero and denormals-are-zero for this thread; restores the old mode when destroyed.
class ScopedFlushSubnormals {
 public:
  ScopedFlushSubnormals();
  ~ScopedFlushSubnormals();
  ScopedFlushSubnormals(const ScopedFlushSubnormals&) = delete;
  ScopedFlushSubnormals& operator=(const ScopedFlushSubnormals&) = delete;

 private:
  uint32_t saved_;
};

// Clears both for this thread (IEEE subnormals); restores the old mode when destroyed.
class ScopedIeeeSubnormals {
 public:
  ScopedIeeeSubnormals();
  ~ScopedIeeeSubnormals();
  ScopedIeeeSubnormals(const ScopedIeeeSubnormals&) = delete;
  ScopedIeeeSubnormals& operator=(const ScopedIeeeSubnormals&) = delete;

 private:
  uint32_t saved_;
};

}  // namespace octavo
