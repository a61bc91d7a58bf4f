#pragma once
// Tensors of PyTorch in a pickle: which globals they are made of, and the bytes behind them.
//
// Three ways of carrying bytes are read: memory shared by name (torch.multiprocessing with the
// sharing strategy "file_system"), storages inside the pickle (pickle.dumps of a tensor), and empty
// ones. A file descriptor cannot be passed over HTTP, and CUDA handles need CUDA: both are refused
// by name.
// Source: torch/multiprocessing/reductions.py, torch/_utils.py, torch/serialization.py (the format
// before zip files), PyTorch 2.x; pickles made by torch 2.15.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/pickle.h"
#include "octavo/sync/torch_shared_memory.h"

namespace octavo {

// PickleOptions::check_global for weights. Errors: kUnsupported naming the global.
Status CheckTorchGlobal(std::string_view module, std::string_view name);

// Whether the node is a call of this global, in any module: what a class that several packages
// carry a copy of is recognised by.
bool IsCallOf(const PickleTree& tree, const PickleNode& node, std::string_view name);

// What views of tensors point into, beside the pickle itself.
struct TensorMemory {
  std::vector<TorchSharedMemory> shared;
  std::vector<Buffer> copies;  // Of tensors that were not contiguous.
  int64_t copied_bytes = 0;
};

struct TorchPickleOptions {
  bool use_shared_memory = true;  // False: every tensor there is refused.
  // Of tensors whose elements do not lie one after the other, in all: 4 GiB.
  int64_t copied_bytes_max = int64_t{4} << 30;
};

// Reads tensors of one tree. One thread. The tree, and what it points into, outlive the reader and
// its views; so does `memory`, which grows.
class TorchTensorReader {
 public:
  TorchTensorReader(const PickleTree* tree, const TorchPickleOptions& options, TensorMemory* memory)
      : tree_(*tree), options_(options), memory_(memory) {}

  // Row-major, at any alignment.
  // Errors: kCorrupt for what is no tensor, or does not lie in its storage; kUnsupported for a
  // dtype that is not ours; kExhausted; those of TorchSharedMemory::Open.
  Result<ConstTensorView> ReadTensor(const PickleNode& node);
  // A torch.Size, tuple or list of extents, none negative.
  Result<Shape> ReadShape(const PickleNode& node) const;
  Result<DType> ReadDType(const PickleNode& node) const;

 private:
  struct Storage {
    std::span<const std::byte> bytes;
    DType dtype = DType::kU8;
  };
  struct Layout;

  Result<Storage> ReadStorage(const PickleNode& node);
  Result<Storage> ReadTypedStorage(const PickleNode& node);
  Result<Storage> OpenShared(std::span<const uint32_t> arguments);
  Result<Layout> ReadLayout(std::span<const uint32_t> arguments) const;
  Result<ConstTensorView> View(const Storage& storage, const Layout& layout);
  Result<ConstTensorView> CopyStrided(const Storage& storage, const Layout& layout);
  const PickleNode* Unwrapped(const PickleNode* node) const;

  const PickleTree& tree_;
  const TorchPickleOptions options_;
  TensorMemory* const memory_;
  std::unordered_map<const PickleNode*, Storage> storages_;  // Opened; a pickle may name one twice.
};

}  // namespace octavo
