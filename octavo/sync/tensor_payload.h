#pragma once
// What /update_weights_from_tensor carries: one pickle of named tensors. Two forms:
//
//   a list of (name, tensor), where a tensor may stand in a LocalSerializedTensor: a list of one
//   more pickle a tensor-parallel rank;
//   {"flattened_tensor": T, "metadata": [{name, shape, dtype, start_idx, end_idx, numel}, ...]}:
//   tensors back to back, without alignment. Indices count elements of T, which are bytes when T is
//   uint8. A piece of metadata is an object, a dict or a tuple in that order.
//
// Source: SGLang, python/sglang/srt/weight_sync/tensor_bucket.py and
// model_executor/model_runner.py.

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/pickle.h"
#include "octavo/sync/torch_pickle.h"

namespace octavo {

enum class TensorPayloadForm {
  kNamedTensors,
  kFlattenedBucket,
};

struct NamedTensor {
  std::string name;
  ConstTensorView view;  // At any alignment.
};

// Move-only. Destroyed, it gives back the senders' shared memory.
class TensorPayload {
 public:
  // Everything is checked before this returns: names, dtypes, shapes, and that every tensor lies in
  // its memory; whether the model has such tensors is for who takes them.
  // Errors: those of ReadPickle and TorchTensorReader, with the name of the tensor; kCorrupt for
  // another form, names that CheckTensorName refuses, indices that do not fit. Pickles in the
  // pickle count against the same bound of values.
  static Result<TensorPayload> Read(std::string pickle, TensorPayloadForm form,
                                    const TorchPickleOptions& options = {});

  const std::vector<NamedTensor>& tensors() const { return tensors_; }

 private:
  friend class TensorPayloadReader;
  TensorPayload() = default;

  std::unique_ptr<const std::string> pickle_;
  std::deque<PickleTree> trees_;
  size_t num_nodes_ = 0;  // Of all trees.
  TensorMemory memory_;
  std::vector<NamedTensor> tensors_;
};

}  // namespace octavo
