#pragma once
// Counts the allocations of a whole test program: this file's definitions stand in front of libc's
// malloc (of which operator new is made), aligned_alloc and mmap (of which Buffer is). Sanitizers
// bring their own: there operator new alone is counted. Include it in one file of a program.

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OCTAVO_COUNTS_BUFFERS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OCTAVO_COUNTS_BUFFERS 0
#endif
#endif
#ifndef OCTAVO_COUNTS_BUFFERS
#define OCTAVO_COUNTS_BUFFERS 1
#endif

namespace octavo {

// Whether Buffers and malloc count too.
inline constexpr bool kCountsBuffers = OCTAVO_COUNTS_BUFFERS == 1;

inline std::atomic<int64_t> num_allocations{0};

// Allocations of all threads while `run` runs.
template <typename Run>
int64_t CountAllocations(Run run) {
  const int64_t before = num_allocations.load();
  run();
  return num_allocations.load() - before;
}

}  // namespace octavo

#if OCTAVO_COUNTS_BUFFERS
extern "C" {
void* __libc_malloc(size_t size);                      // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(size_t alignment, size_t size);  // NOLINT(bugprone-reserved-identifier)

void* malloc(size_t size) {
  octavo::num_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  octavo::num_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  octavo::num_allocations.fetch_add(1, std::memory_order_relaxed);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): what mmap is
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
}  // extern "C"
#else
namespace octavo {

inline void* CountedAllocate(std::size_t size, std::size_t alignment) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = nullptr;
  const std::size_t bytes = size == 0 ? 1 : size;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(bytes);
    // NOLINTNEXTLINE(misc-include-cleaner): of POSIX, in <cstdlib>
  } else if (posix_memalign(&memory, alignment, bytes) != 0) {
    memory = nullptr;
  }
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}

}  // namespace octavo

// The replaceable forms from which the others are derived ([new.delete.single],
// [new.delete.array]). Inlined, they would look mismatched to GCC.
[[gnu::noinline]] void* operator new(std::size_t size) { return octavo::CountedAllocate(size, 0); }
[[gnu::noinline]] void* operator new(std::size_t size, std::align_val_t alignment) {
  return octavo::CountedAllocate(size, static_cast<std::size_t>(alignment));
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
#endif
