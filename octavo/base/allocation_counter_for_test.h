#pragma once
// Counts the allocations of a whole test program: this file's definitions stand in front of libc's
// malloc (of which operator new is made), aligned_alloc and mmap (of which Buffer is). Sanitizers
// bring their own allocators, which tell of every allocation, but not of mmap. Include it in one
// file of a program.

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OCTAVO_COUNTS_MAPPINGS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OCTAVO_COUNTS_MAPPINGS 0
#endif
#endif
#ifndef OCTAVO_COUNTS_MAPPINGS
#define OCTAVO_COUNTS_MAPPINGS 1
#endif

namespace octavo {

// Whether mmap counts, of which large Buffers are.
inline constexpr bool kCountsMappings = OCTAVO_COUNTS_MAPPINGS == 1;

inline std::atomic<int64_t> num_allocations{0};

// Allocations of all threads while `run` runs.
template <typename Run>
int64_t CountAllocations(Run run) {
  const int64_t before = num_allocations.load();
  run();
  return num_allocations.load() - before;
}

}  // namespace octavo

#if OCTAVO_COUNTS_MAPPINGS
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
// Of every sanitizer's runtime (compiler-rt, sanitizer/allocator_interface.h, which GCC leaves
// out). NOLINTNEXTLINE(bugprone-reserved-identifier)
extern "C" int __sanitizer_install_malloc_and_free_hooks(
    void (*on_malloc)(const volatile void* memory, size_t size),
    void (*on_free)(const volatile void* memory));

namespace octavo {

// Also of operator new, whatever its form.
inline const int kHooks = __sanitizer_install_malloc_and_free_hooks(
    [](const volatile void*, size_t) { num_allocations.fetch_add(1, std::memory_order_relaxed); },
    [](const volatile void*) {});

}  // namespace octavo
#endif
