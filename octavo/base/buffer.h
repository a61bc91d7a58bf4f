#pragma once
// Buffer: the one owner of a block of memory. Everything else is a view of it.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "octavo/base/status.h"

namespace octavo {

// Gives memory back to whoever it came from; type-erased, so that one Buffer serves every device.
struct BufferDeleter {
  void (*free_fn)(std::byte* data, size_t num_bytes) = nullptr;
  size_t num_bytes = 0;
  void operator()(std::byte* data) const {
    if (free_fn != nullptr) {
      free_fn(data, num_bytes);
    }
  }
};

// Move-only owner; empty when default made. Not thread-safe, const is.
class Buffer {
 public:
  // Alignment of every host allocation: a cache line and a 512-bit vector.
  static constexpr size_t kAlignment = 64;

  Buffer() = default;
  Buffer(Buffer&& other) noexcept
      : data_(std::move(other.data_)), num_bytes_(std::exchange(other.num_bytes_, 0)) {}
  Buffer& operator=(Buffer&& other) noexcept {
    data_ = std::move(other.data_);
    num_bytes_ = std::exchange(other.num_bytes_, 0);
    return *this;
  }
  ~Buffer() = default;

  // Host memory of `num_bytes`, zeroed, asked for in huge pages from 2 MiB on.
  // Errors: kExhausted when the system has none.
  static Result<Buffer> AllocateHost(int64_t num_bytes);

  std::byte* data() { return data_.get(); }
  const std::byte* data() const { return data_.get(); }
  int64_t num_bytes() const { return num_bytes_; }
  bool empty() const { return num_bytes_ == 0; }
  std::span<std::byte> bytes() { return {data(), static_cast<size_t>(num_bytes_)}; }
  std::span<const std::byte> bytes() const { return {data(), static_cast<size_t>(num_bytes_)}; }

  // The memory as elements of T; num_bytes is a multiple of sizeof(T).
  template <typename T>
  std::span<T> As() {
    return {reinterpret_cast<T*>(data()), static_cast<size_t>(num_bytes_) / sizeof(T)};
  }
  template <typename T>
  std::span<const T> As() const {
    return {reinterpret_cast<const T*>(data()), static_cast<size_t>(num_bytes_) / sizeof(T)};
  }

  // A deep copy.
  Result<Buffer> Clone() const;

 private:
  std::unique_ptr<std::byte, BufferDeleter> data_;
  int64_t num_bytes_ = 0;
};

}  // namespace octavo
