#pragma once
// Staging: the second set of weights that an update or a cold load builds up, with its ledger.

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/transform.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// One thread. `table` and `backend` outlive it.
class Staging {
 public:
  // `pool` may be null (one thread).
  Staging(const PrecisionTable* table, const Backend* backend, ThreadPool* pool);

  // Stages one tensor: the weight itself (quantized by the one transform), or one of its stored
  // parts; a weight is packed when its last part is there. Errors as WeightUpdater::Put.
  Status Put(std::string_view name, const ConstTensorView& tensor);

  // Ok when every weight of the table is staged. Errors: kInvalidArgument naming what is missing.
  Status CheckComplete() const;
  // The staged weights; requires CheckComplete().ok(). Leaves the staging empty.
  std::unique_ptr<ModelWeights> Take();

  int64_t num_staged() const { return num_staged_; }
  int64_t bytes_in() const { return bytes_in_; }
  int64_t bytes_staged() const { return bytes_staged_; }

 private:
  // How far one weight is.
  struct Entry {
    bool staged = false;
    std::optional<Hash128> source_hash;             // Of the weight put as BF16, F16 or F32.
    std::vector<std::optional<Hash128>> part_hash;  // Of each stored part put.
    std::vector<OwnedTensor> parts;                 // Waiting for the others.
  };
  // Where a stored tensor belongs. Part 0 carries the weight's own name.
  struct Target {
    size_t row_idx = 0;
    size_t part_idx = 0;
  };

  Status PutSource(size_t row_idx, const ConstTensorView& tensor);
  Status PutPart(const Target& target, const ConstTensorView& tensor);
  Status Pack(size_t row_idx, const std::vector<OwnedTensor>& stored);

  const PrecisionTable* table_;
  const Backend* backend_;
  ThreadPool* pool_;
  std::unordered_map<std::string, Target> targets_;  // By stored name.
  std::vector<Entry> ledger_;                        // One entry a row of the table.
  std::unique_ptr<ModelWeights> weights_;
  int64_t num_staged_ = 0;
  int64_t bytes_in_ = 0;
  int64_t bytes_staged_ = 0;
};

}  // namespace octavo
