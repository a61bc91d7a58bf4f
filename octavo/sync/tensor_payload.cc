#include "octavo/sync/tensor_payload.h"

#include <fmt/format.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/sync/pickle.h"
#include "octavo/sync/torch_pickle.h"

namespace octavo {
namespace {

// The fields of FlattenedTensorMetadata, in order.
constexpr std::array<std::string_view, 6> kFields = {"name",      "shape",   "dtype",
                                                     "start_idx", "end_idx", "numel"};
using Fields = std::array<const PickleNode*, kFields.size()>;

// The value of a key, or null; the last one wins, as in Python.
const PickleNode* FindKey(const PickleTree& tree, const PickleNode& dict, std::string_view key) {
  const PickleNode* found = nullptr;
  for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
    const PickleNode& candidate = tree.item(dict, i);
    if (candidate.kind == PickleKind::kString && candidate.text == key) {
      found = &tree.item(dict, i + 1);
    }
  }
  return found;
}

bool IsSequence(const PickleNode& node) {
  return node.kind == PickleKind::kList || node.kind == PickleKind::kTuple;
}

Result<Fields> ReadFields(const PickleTree& tree, const PickleNode& node) {
  Fields fields = {};
  if (node.kind == PickleKind::kTuple && node.items.size() == kFields.size()) {
    for (size_t i = 0; i < kFields.size(); ++i) {
      fields[i] = &tree.item(node, i);
    }
    return fields;
  }
  const bool is_object = IsCallOf(tree, node, "FlattenedTensorMetadata") && node.items.size() == 3;
  const PickleNode& dict = is_object ? tree.item(node, 2) : node;
  if (dict.kind != PickleKind::kDict) {
    return Corrupt("expected FlattenedTensorMetadata, a dict or a tuple of {}, got a {}",
                   kFields.size(), PickleKindName(node.kind));
  }
  for (size_t i = 0; i < kFields.size(); ++i) {
    fields[i] = FindKey(tree, dict, kFields[i]);
    if (fields[i] == nullptr) {
      return Corrupt("{}: expected it, got none", kFields[i]);
    }
  }
  return fields;
}

Result<std::string> ReadName(const PickleNode& node) {
  if (node.kind != PickleKind::kString) {
    return Corrupt("name: expected a str, got a {}", PickleKindName(node.kind));
  }
  RETURN_IF_ERROR(CheckTensorName(node.text));
  return std::string(node.text);
}

}  // namespace

class TensorPayloadReader {
 public:
  TensorPayloadReader(TensorPayload* payload, const TorchPickleOptions& options)
      : payload_(*payload), options_(options) {}

  Status Read(TensorPayloadForm form) {
    ASSIGN_OR_RETURN(const PickleTree* tree, KeepTree(*payload_.pickle_));
    return form == TensorPayloadForm::kFlattenedBucket ? ReadBucket(*tree) : ReadList(*tree);
  }

 private:
  Result<const PickleTree*> KeepTree(std::string_view bytes);
  Status ReadList(const PickleTree& tree);
  Result<ConstTensorView> ReadValue(TorchTensorReader* reader, const PickleTree& tree,
                                    const PickleNode& node);
  Status ReadBucket(const PickleTree& tree);
  Result<NamedTensor> CutOut(const TorchTensorReader& reader, const ConstTensorView& flat,
                             const Fields& fields);

  TensorPayload& payload_;
  const TorchPickleOptions& options_;
};

// Trees own texts that views may point into.
Result<const PickleTree*> TensorPayloadReader::KeepTree(std::string_view bytes) {
  PickleOptions options = {.check_global = CheckTorchGlobal};
  options.num_nodes_max -= payload_.num_nodes_;
  ASSIGN_OR_RETURN(PickleTree tree, ReadPickle(bytes, options));
  payload_.num_nodes_ += tree.num_nodes();
  if (tree.num_bytes() != bytes.size()) {
    return Corrupt("pickle: {} bytes behind its STOP", bytes.size() - tree.num_bytes());
  }
  payload_.trees_.push_back(std::move(tree));
  return &payload_.trees_.back();
}

Result<ConstTensorView> TensorPayloadReader::ReadValue(TorchTensorReader* reader,
                                                       const PickleTree& tree,
                                                       const PickleNode& node) {
  if (!IsCallOf(tree, node, "LocalSerializedTensor")) {
    return reader->ReadTensor(node);
  }
  const PickleNode* values =
      node.items.size() == 3 ? FindKey(tree, tree.item(node, 2), "values") : nullptr;
  if (values == nullptr || !IsSequence(*values) || values->items.empty() ||
      tree.item(*values, 0).kind != PickleKind::kBytes) {
    return Corrupt("LocalSerializedTensor: expected values, one pickle a rank");
  }
  // There is one rank here; a list for more holds the whole tensor for each.
  ASSIGN_OR_RETURN(const PickleTree* inner, KeepTree(tree.item(*values, 0).text));
  return TorchTensorReader(inner, options_, &payload_.memory_).ReadTensor(inner->root());
}

Status TensorPayloadReader::ReadList(const PickleTree& tree) {
  const PickleNode& root = tree.root();
  if (!IsSequence(root)) {
    return Corrupt("expected a list of (name, tensor), got a {}{}", PickleKindName(root.kind),
                   root.kind == PickleKind::kDict
                       ? "; a flattened bucket needs load_format \"flattened_bucket\""
                       : "");
  }
  TorchTensorReader reader(&tree, options_, &payload_.memory_);
  for (size_t i = 0; i < root.items.size(); ++i) {
    const PickleNode& pair = tree.item(root, i);
    if (!IsSequence(pair) || pair.items.size() != 2) {
      return Corrupt("item {}: expected a (name, tensor), got a {}", i, PickleKindName(pair.kind));
    }
    const Result<std::string> name = ReadName(tree.item(pair, 0));
    if (!name.has_value()) {
      return name.error().WithContext(fmt::format("item {}", i));
    }
    const Result<ConstTensorView> view = ReadValue(&reader, tree, tree.item(pair, 1));
    if (!view.has_value()) {
      return view.error().WithContext(*name);
    }
    payload_.tensors_.push_back({.name = *name, .view = *view});
  }
  return OkStatus();
}

Status TensorPayloadReader::ReadBucket(const PickleTree& tree) {
  const PickleNode& root = tree.root();
  if (root.kind != PickleKind::kDict) {
    return Corrupt("expected a dict of flattened_tensor and metadata, got a {}",
                   PickleKindName(root.kind));
  }
  const PickleNode* tensor = FindKey(tree, root, "flattened_tensor");
  const PickleNode* metadata = FindKey(tree, root, "metadata");
  if (tensor == nullptr || metadata == nullptr || !IsSequence(*metadata)) {
    return Corrupt("expected flattened_tensor, and metadata, a list");
  }
  TorchTensorReader reader(&tree, options_, &payload_.memory_);
  const Result<ConstTensorView> flat = reader.ReadTensor(*tensor);
  if (!flat.has_value()) {
    return flat.error().WithContext("flattened_tensor");
  }
  for (size_t i = 0; i < metadata->items.size(); ++i) {
    const Result<Fields> fields = ReadFields(tree, tree.item(*metadata, i));
    if (!fields.has_value()) {
      return fields.error().WithContext(fmt::format("metadata {}", i));
    }
    Result<NamedTensor> named = CutOut(reader, *flat, *fields);
    if (!named.has_value()) {
      return named.error().WithContext(fmt::format("metadata {}", i));
    }
    payload_.tensors_.push_back(std::move(*named));
  }
  return OkStatus();
}

Result<NamedTensor> TensorPayloadReader::CutOut(const TorchTensorReader& reader,
                                                const ConstTensorView& flat, const Fields& fields) {
  NamedTensor named;
  ASSIGN_OR_RETURN(named.name, ReadName(*fields[0]));
  const Result<Shape> shape = reader.ReadShape(*fields[1]);
  const Result<DType> dtype = reader.ReadDType(*fields[2]);
  if (!shape.has_value() || !dtype.has_value()) {
    return (shape.has_value() ? dtype.error() : shape.error()).WithContext(named.name);
  }
  named.view = {.dtype = *dtype, .shape = *shape, .data = flat.data};
  const int64_t count = NumElements(flat.shape);
  const bool are_ints = fields[3]->kind == PickleKind::kInt && fields[4]->kind == PickleKind::kInt;
  const int64_t start = fields[3]->integer;
  const int64_t end = fields[4]->integer;
  if (!are_ints || start < 0 || start > end || end > count) {
    return Corrupt("{}: expected start_idx and end_idx in a flattened_tensor of {}, got {} and {}",
                   named.name, count, start, end);
  }
  const int64_t elem_bytes = DTypeBytes(flat.dtype);
  const std::optional<int64_t> num_bytes = CheckedTensorBytes(*dtype, *shape);
  if (!num_bytes.has_value() || *num_bytes != (end - start) * elem_bytes) {
    return Corrupt("{}: {} {} is not what lies in its {} bytes", named.name, DTypeName(*dtype),
                   ShapeString(*shape), (end - start) * elem_bytes);
  }
  if (fields[5]->kind != PickleKind::kInt || fields[5]->integer != end - start) {
    return Corrupt("{}: numel: expected {}, got {}", named.name, end - start, fields[5]->integer);
  }
  named.view.data = flat.data + start * elem_bytes;
  return named;
}

Result<TensorPayload> TensorPayload::Read(std::string pickle, TensorPayloadForm form,
                                          const TorchPickleOptions& options) {
  TensorPayload payload;
  payload.pickle_ = std::make_unique<const std::string>(std::move(pickle));
  RETURN_IF_ERROR(TensorPayloadReader(&payload, options).Read(form));
  return payload;
}

}  // namespace octavo
