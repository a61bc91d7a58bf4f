#pragma once
// Memory that PyTorch shares between processes by name (sharing strategy "file_system").
//
//   bytes 0..3   how many hold it, an atomic int32
//   bytes 4..63  other bookkeeping
//   bytes 64..   the storage
//
// A storage that is sent carries one hold for its receiver; whoever brings the count to 0 removes
// the name. Source: pytorch aten/src/ATen/MapAllocator.cpp (RefcountedMapAllocator, 2.x), and files
// of torch 2.15 looked at byte by byte.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// Move-only. The storage is mapped read-only: only the count can be written. Should the sender make
// the memory smaller while it is mapped, reading it raises SIGBUS, as with any mapping.
class TorchSharedMemory {
 public:
  static constexpr int64_t kHeaderBytes = 64;

  // `name` as in the pickle: "/torch_PID_NUMBER_NUMBER". Takes over the receiver's hold, which the
  // destructor gives back.
  // Errors: kInvalidArgument (another name); kNotFound (no such memory on this machine); kCorrupt
  // (smaller than `num_bytes`, or not held by anybody); kInternal.
  static Result<TorchSharedMemory> Open(std::string_view name, int64_t num_bytes);

  TorchSharedMemory(TorchSharedMemory&& other) noexcept;
  TorchSharedMemory& operator=(TorchSharedMemory&& other) noexcept;
  ~TorchSharedMemory();

  // The storage.
  std::span<const std::byte> bytes() const;

 private:
  TorchSharedMemory() = default;

  std::string name_;
  const std::byte* data_ = nullptr;  // Of the whole mapping; null when moved from.
  size_t num_mapped_ = 0;
  int32_t* count_ = nullptr;  // A mapping of its own, of one page.
};

}  // namespace octavo
