#include "octavo/sync/torch_pickle.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/sync/legacy_storage.h"
#include "octavo/sync/pickle.h"
#include "octavo/sync/torch_names.h"
#include "octavo/sync/torch_shared_memory.h"

namespace octavo {
namespace {

constexpr std::string_view kReductions = "torch.multiprocessing.reductions";

struct GlobalName {
  std::string_view module;  // Empty: any.
  std::string_view name;
};

// What tensors and the containers around them are made of. The two classes without a module are
// records of plain fields; SGLang has moved them, and others carry copies.
constexpr GlobalName kAllowed[] = {
    {kReductions, "rebuild_tensor"},
    {kReductions, "rebuild_typed_storage"},
    {kReductions, "rebuild_storage_filename"},
    {kReductions, "rebuild_storage_empty"},
    {"torch._utils", "_rebuild_tensor_v2"},
    {"torch._utils", "_rebuild_tensor_v3"},
    {"torch._utils", "_rebuild_parameter"},
    {"torch.storage", "_load_from_bytes"},
    {"torch.storage", "UntypedStorage"},
    {"torch.storage", "TypedStorage"},
    {"torch", "Tensor"},
    {"torch", "Size"},
    {"torch.nn.parameter", "Parameter"},
    {"collections", "OrderedDict"},
    {"_codecs", "encode"},
    {"", "FlattenedTensorMetadata"},
    {"", "LocalSerializedTensor"},
};

bool IsAllowed(std::string_view module, std::string_view name) {
  const bool is_listed = std::ranges::any_of(kAllowed, [&](const GlobalName& allowed) {
    return allowed.name == name && (allowed.module.empty() || allowed.module == module);
  });
  return is_listed || (module == "torch" &&
                       (DTypeOfTorch(name).has_value() || DTypeOfTorchStorage(name).has_value()));
}

// Dimensions of one element may have any stride.
bool IsContiguous(const Shape& shape, const std::vector<int64_t>& strides) {
  int64_t expected = 1;
  for (size_t i = shape.size(); i-- > 0;) {
    if (shape[i] != 1 && strides[i] != expected) {
      return false;
    }
    expected *= shape[i];
  }
  return true;
}

}  // namespace

Status CheckTorchGlobal(std::string_view module, std::string_view name) {
  if (IsAllowed(module, name)) {
    return OkStatus();
  }
  const std::string full = fmt::format("{}.{}", Printable(module), Printable(name));
  if (name.find("rebuild_cuda_tensor") != std::string_view::npos) {
    return Unsupported("{}: CUDA tensors need a build with CUDA", full);
  }
  if (name == "rebuild_storage_fd") {
    return Unsupported(
        "{}: a file descriptor cannot be had from here; let the sender call "
        "torch.multiprocessing.set_sharing_strategy(\"file_system\")",
        full);
  }
  return Unsupported("global {} is not one that a weight update may name", full);
}

bool IsCallOf(const PickleTree& tree, const PickleNode& node, std::string_view name) {
  return node.kind == PickleKind::kCall && tree.item(node, 0).text == name;
}

// Where a tensor lies in its storage, in elements.
struct TorchTensorReader::Layout {
  int64_t offset = 0;
  Shape shape;
  std::vector<int64_t> strides;
};

Result<Shape> TorchTensorReader::ReadShape(const PickleNode& node) const {
  const PickleNode* items = &node;
  if (IsCallOf(tree_, node, "Size")) {
    const PickleNode& arguments = tree_.item(node, 1);
    if (arguments.items.size() != 1) {
      return Corrupt("torch.Size: expected one argument, got {}", arguments.items.size());
    }
    items = &tree_.item(arguments, 0);
  }
  constexpr size_t kRankMax = 8;
  if ((items->kind != PickleKind::kTuple && items->kind != PickleKind::kList) ||
      items->items.size() > kRankMax) {
    return Corrupt("shape: expected at most {} extents, got a {} of {}", kRankMax,
                   PickleKindName(items->kind), items->items.size());
  }
  Shape shape;
  for (size_t i = 0; i < items->items.size(); ++i) {
    const PickleNode& extent = tree_.item(*items, i);
    if (extent.kind != PickleKind::kInt || extent.integer < 0) {
      return Corrupt("shape: expected extents of 0 or more, got a {}", PickleKindName(extent.kind));
    }
    shape.push_back(extent.integer);
  }
  return shape;
}

Result<DType> TorchTensorReader::ReadDType(const PickleNode& node) const {
  if (node.kind != PickleKind::kGlobal && node.kind != PickleKind::kString) {
    return Corrupt("dtype: expected a torch.dtype, got a {}", PickleKindName(node.kind));
  }
  const std::optional<DType> dtype = DTypeOfTorch(node.text);
  if (!dtype.has_value()) {
    return Unsupported("dtype: no weight has {}", Printable(node.text));
  }
  return *dtype;
}

// (class, manager, handle, bytes): the manager is a socket that only keeps the memory alive.
Result<TorchTensorReader::Storage> TorchTensorReader::OpenShared(
    std::span<const uint32_t> arguments) {
  if (arguments.size() != 4 || tree_.node(arguments[2]).kind != PickleKind::kBytes ||
      tree_.node(arguments[3]).kind != PickleKind::kInt) {
    return Corrupt("rebuild_storage_filename: expected a class, a manager, a name and a size");
  }
  if (!options_.use_shared_memory) {
    return Unsupported("rebuild_storage_filename: shared memory is not read here");
  }
  ASSIGN_OR_RETURN(
      TorchSharedMemory memory,
      TorchSharedMemory::Open(tree_.node(arguments[2]).text, tree_.node(arguments[3]).integer));
  memory_->shared.push_back(std::move(memory));
  return Storage{.bytes = memory_->shared.back().bytes()};
}

Result<TorchTensorReader::Storage> TorchTensorReader::ReadStorage(const PickleNode& node) {
  if (const auto known = storages_.find(&node); known != storages_.end()) {
    return known->second;
  }
  if (node.kind != PickleKind::kCall) {
    return Corrupt("expected a storage, got a {}", PickleKindName(node.kind));
  }
  const PickleNode& arguments = tree_.item(node, 1);
  Storage storage;
  if (IsCallOf(tree_, node, "rebuild_storage_filename")) {
    ASSIGN_OR_RETURN(storage, OpenShared(arguments.items));
  } else if (IsCallOf(tree_, node, "_load_from_bytes") && arguments.items.size() == 1 &&
             tree_.item(arguments, 0).kind == PickleKind::kBytes) {
    ASSIGN_OR_RETURN(const LegacyStorage stored, ReadLegacyStorage(tree_.item(arguments, 0).text));
    storage = {.bytes = stored.bytes, .dtype = stored.dtype};
  } else if (!IsCallOf(tree_, node, "rebuild_storage_empty")) {
    return Corrupt("expected a storage, got a call of {}", Printable(tree_.item(node, 0).text));
  }
  storages_.emplace(&node, storage);
  return storage;
}

// (storage, dtype).
Result<TorchTensorReader::Storage> TorchTensorReader::ReadTypedStorage(const PickleNode& node) {
  if (!IsCallOf(tree_, node, "rebuild_typed_storage")) {
    return ReadStorage(node);
  }
  const PickleNode& arguments = tree_.item(node, 1);
  if (arguments.items.size() != 2) {
    return Corrupt("rebuild_typed_storage: expected a storage and a dtype");
  }
  ASSIGN_OR_RETURN(Storage storage, ReadStorage(tree_.item(arguments, 0)));
  ASSIGN_OR_RETURN(storage.dtype, ReadDType(tree_.item(arguments, 1)));
  return storage;
}

// (offset, size, stride, ...).
Result<TorchTensorReader::Layout> TorchTensorReader::ReadLayout(
    std::span<const uint32_t> arguments) const {
  if (arguments.size() < 3 || tree_.node(arguments[0]).kind != PickleKind::kInt ||
      tree_.node(arguments[0]).integer < 0) {
    return Corrupt("tensor: expected an offset, a size and strides");
  }
  Layout layout{.offset = tree_.node(arguments[0]).integer, .shape = {}, .strides = {}};
  ASSIGN_OR_RETURN(layout.shape, ReadShape(tree_.node(arguments[1])));
  ASSIGN_OR_RETURN(layout.strides, ReadShape(tree_.node(arguments[2])));
  if (layout.shape.size() != layout.strides.size()) {
    return Corrupt("tensor: {} extents with {} strides", layout.shape.size(),
                   layout.strides.size());
  }
  return layout;
}

// Every element must lie in the storage, and no more of them than it has: a stride of 0 would make
// a small message large.
Result<ConstTensorView> TorchTensorReader::View(const Storage& storage, const Layout& layout) {
  const int64_t elem_bytes = DTypeBytes(storage.dtype);
  const auto num_stored = static_cast<int64_t>(storage.bytes.size()) / elem_bytes;
  const std::optional<int64_t> num_bytes = CheckedTensorBytes(storage.dtype, layout.shape);
  if (!num_bytes.has_value() || *num_bytes / elem_bytes > num_stored) {
    return Corrupt("tensor: {} does not fit in a storage of {} {}", ShapeString(layout.shape),
                   num_stored, DTypeName(storage.dtype));
  }
  if (*num_bytes == 0) {
    return ConstTensorView{storage.dtype, layout.shape, storage.bytes.data()};
  }
  int64_t last = layout.offset;
  for (size_t i = 0; i < layout.shape.size(); ++i) {
    int64_t reach = 0;
    if (__builtin_mul_overflow(layout.shape[i] - 1, layout.strides[i], &reach) ||
        __builtin_add_overflow(last, reach, &last)) {
      last = num_stored;
      break;
    }
  }
  if (last >= num_stored) {
    return Corrupt("tensor: {} from element {} on leaves its storage of {}",
                   ShapeString(layout.shape), layout.offset, num_stored);
  }
  if (!IsContiguous(layout.shape, layout.strides)) {
    return CopyStrided(storage, layout);
  }
  return ConstTensorView{storage.dtype, layout.shape,
                         storage.bytes.data() + layout.offset * elem_bytes};
}

Result<ConstTensorView> TorchTensorReader::CopyStrided(const Storage& storage,
                                                       const Layout& layout) {
  const int64_t elem_bytes = DTypeBytes(storage.dtype);
  const int64_t count = NumElements(layout.shape);
  memory_->copied_bytes += count * elem_bytes;
  if (memory_->copied_bytes > options_.copied_bytes_max) {
    return Exhausted("tensors that are not contiguous: more than {} bytes; send .contiguous() ones",
                     options_.copied_bytes_max);
  }
  ASSIGN_OR_RETURN(Buffer copy, Buffer::AllocateHost(count * elem_bytes));
  std::vector<int64_t> position(layout.shape.size(), 0);
  int64_t source = layout.offset;
  for (int64_t i = 0; i < count; ++i) {
    std::memcpy(copy.data() + i * elem_bytes, storage.bytes.data() + source * elem_bytes,
                static_cast<size_t>(elem_bytes));
    for (size_t dim = layout.shape.size(); dim-- > 0;) {
      source += layout.strides[dim];
      if (++position[dim] < layout.shape[dim]) {
        break;
      }
      source -= layout.shape[dim] * layout.strides[dim];
      position[dim] = 0;
    }
  }
  memory_->copies.push_back(std::move(copy));
  return ConstTensorView{storage.dtype, layout.shape, memory_->copies.back().data()};
}

// The tensor in a _rebuild_parameter(tensor, requires_grad, hooks); anything else as it is.
const PickleNode* TorchTensorReader::Unwrapped(const PickleNode* node) const {
  if (!IsCallOf(tree_, *node, "_rebuild_parameter")) {
    return node;
  }
  const PickleNode& arguments = tree_.item(*node, 1);
  return arguments.items.empty() ? node : &tree_.item(arguments, 0);
}

Result<ConstTensorView> TorchTensorReader::ReadTensor(const PickleNode& outer) {
  const PickleNode& node = *Unwrapped(&outer);
  if (node.kind != PickleKind::kCall) {
    return Corrupt("expected a tensor, got a {}", PickleKindName(node.kind));
  }
  const std::span<const uint32_t> arguments = tree_.item(node, 1).items;
  if (IsCallOf(tree_, node, "rebuild_tensor")) {  // (class, storage, (offset, size, stride, ...))
    if (arguments.size() != 3 || tree_.node(arguments[2]).kind != PickleKind::kTuple) {
      return Corrupt("rebuild_tensor: expected a class, a storage and a layout");
    }
    ASSIGN_OR_RETURN(const Layout layout, ReadLayout(tree_.node(arguments[2]).items));
    ASSIGN_OR_RETURN(const Storage storage, ReadTypedStorage(tree_.node(arguments[1])));
    return View(storage, layout);
  }
  const bool has_dtype = IsCallOf(tree_, node, "_rebuild_tensor_v3");
  if (!has_dtype && !IsCallOf(tree_, node, "_rebuild_tensor_v2")) {
    return Corrupt("expected a tensor, got a call of {}", Printable(tree_.item(node, 0).text));
  }
  // (storage, offset, size, stride, requires_grad, hooks[, dtype][, metadata])
  if (arguments.size() < (has_dtype ? 7 : 6)) {
    return Corrupt("tensor: {} arguments are too few", arguments.size());
  }
  ASSIGN_OR_RETURN(const Layout layout, ReadLayout(arguments.subspan(1)));
  ASSIGN_OR_RETURN(Storage storage, ReadTypedStorage(tree_.node(arguments[0])));
  if (has_dtype) {
    ASSIGN_OR_RETURN(storage.dtype, ReadDType(tree_.node(arguments[6])));
  }
  return View(storage, layout);
}

}  // namespace octavo
