#include "octavo/sync/torch_shared_memory.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr size_t kCountBytes = sizeof(int32_t);

// "/torch_1_2_3": no other shared memory of the machine may be named.
bool IsTorchName(std::string_view name) {
  constexpr std::string_view kPrefix = "/torch_";
  constexpr size_t kBytesMax = 100;
  return name.starts_with(kPrefix) && name.size() > kPrefix.size() && name.size() <= kBytesMax &&
         name.find_first_not_of("0123456789_", kPrefix.size()) == std::string_view::npos;
}

// Closes at the end of the scope.
class FileDescriptor {
 public:
  explicit FileDescriptor(int fd) : fd_(fd) {}
  ~FileDescriptor() {
    if (fd_ >= 0) {
      close(fd_);
    }
  }
  FileDescriptor(const FileDescriptor&) = delete;
  FileDescriptor& operator=(const FileDescriptor&) = delete;
  int get() const { return fd_; }

 private:
  const int fd_;
};

}  // namespace

TorchSharedMemory::TorchSharedMemory(TorchSharedMemory&& other) noexcept
    : name_(std::move(other.name_)),
      data_(std::exchange(other.data_, nullptr)),
      num_mapped_(std::exchange(other.num_mapped_, 0)),
      count_(std::exchange(other.count_, nullptr)) {}

TorchSharedMemory& TorchSharedMemory::operator=(TorchSharedMemory&& other) noexcept {
  std::swap(name_, other.name_);
  std::swap(data_, other.data_);
  std::swap(num_mapped_, other.num_mapped_);
  std::swap(count_, other.count_);
  return *this;
}

TorchSharedMemory::~TorchSharedMemory() {
  if (count_ != nullptr) {
    if (std::atomic_ref<int32_t>(*count_).fetch_sub(1) == 1) {
      shm_unlink(name_.c_str());
    }
    munmap(count_, kCountBytes);
  }
  if (data_ != nullptr) {
    munmap(const_cast<std::byte*>(data_), num_mapped_);
  }
}

Result<TorchSharedMemory> TorchSharedMemory::Open(std::string_view name, int64_t num_bytes) {
  if (!IsTorchName(name) || num_bytes < 0) {
    return InvalidArgument(
        "shared memory: expected a name that PyTorch gives, such as /torch_12_345_6, and a size");
  }
  TorchSharedMemory memory;
  memory.name_ = std::string(name);
  const FileDescriptor fd(shm_open(memory.name_.c_str(), O_RDWR | O_CLOEXEC, 0));
  if (fd.get() < 0) {
    return NotFound(
        "shared memory {}: could not open it: {}; the sender must run on this machine, with the "
        "same /dev/shm, and keep the tensor until the call has answered",
        name, strerror(errno));
  }
  struct stat status = {};
  if (fstat(fd.get(), &status) != 0) {
    return Internal("shared memory {}: {}", name, strerror(errno));
  }
  if (status.st_size < kHeaderBytes || status.st_size - kHeaderBytes < num_bytes) {
    return Corrupt("shared memory {}: expected {} bytes behind a header of {}, got {} in all", name,
                   num_bytes, kHeaderBytes, status.st_size);
  }
  memory.num_mapped_ = static_cast<size_t>(kHeaderBytes + num_bytes);
  void* data = mmap(nullptr, memory.num_mapped_, PROT_READ, MAP_SHARED, fd.get(), 0);
  if (data == MAP_FAILED) {
    return Internal("shared memory {}: could not map it: {}", name, strerror(errno));
  }
  memory.data_ = static_cast<const std::byte*>(data);
  void* count = mmap(nullptr, kCountBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd.get(), 0);
  if (count == MAP_FAILED) {
    return Internal("shared memory {}: could not map its count: {}", name, strerror(errno));
  }
  // Below 1 it carries no hold that could be given back.
  if (std::atomic_ref<int32_t>(*static_cast<int32_t*>(count)).load() < 1) {
    munmap(count, kCountBytes);
    return Corrupt("shared memory {}: nobody holds it", name);
  }
  memory.count_ = static_cast<int32_t*>(count);
  return memory;
}

std::span<const std::byte> TorchSharedMemory::bytes() const {
  return {data_ + kHeaderBytes, num_mapped_ - static_cast<size_t>(kHeaderBytes)};
}

}  // namespace octavo
