#include "octavo/base/buffer.h"

#include <sys/mman.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "octavo/base/check.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr size_t kHugePageBytes = size_t{2} << 20;

void FreeHeap(std::byte* data, size_t /*num_bytes*/) { std::free(data); }
void FreeMapping(std::byte* data, size_t num_bytes) { munmap(data, num_bytes); }

size_t RoundUp(size_t value, size_t step) { return (value + step - 1) / step * step; }

}  // namespace

Result<Buffer> Buffer::AllocateHost(int64_t num_bytes) {
  CHECK(num_bytes >= 0);
  Buffer buffer;
  buffer.num_bytes_ = num_bytes;
  if (num_bytes == 0) {
    return buffer;
  }
  const auto size = static_cast<size_t>(num_bytes);
  if (size >= kHugePageBytes) {
    const size_t mapped = RoundUp(size, kHugePageBytes);
    void* memory =
        mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) {
      return Exhausted("host memory: could not map {} bytes: {}", num_bytes, strerror(errno));
    }
    madvise(memory, mapped, MADV_HUGEPAGE);  // Advice: a kernel without huge pages may ignore it.
    buffer.data_ = {static_cast<std::byte*>(memory), BufferDeleter{FreeMapping, mapped}};
    return buffer;
  }
  void* memory = std::aligned_alloc(kAlignment, RoundUp(size, kAlignment));
  if (memory == nullptr) {
    return Exhausted("host memory: could not allocate {} bytes", num_bytes);
  }
  std::memset(memory, 0, RoundUp(size, kAlignment));
  buffer.data_ = {static_cast<std::byte*>(memory), BufferDeleter{FreeHeap, size}};
  return buffer;
}

Result<Buffer> Buffer::Clone() const {
  ASSIGN_OR_RETURN(Buffer copy, AllocateHost(num_bytes_));
  if (num_bytes_ > 0) {
    std::memcpy(copy.data(), data(), static_cast<size_t>(num_bytes_));
  }
  return copy;
}

}  // namespace octavo
