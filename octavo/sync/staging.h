#pragma once
// Staging: the second set of weights that an update or a cold load builds up, with its ledger.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/transform.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/row_slices.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// What the live weights have that an update keeps when it does not bring it.
struct LiveBase {
  std::vector<bool> is_held;        // Of each row: only MTP rows can be missing.
  std::vector<float> input_scales;  // ModelWeights::stored_input_scales, of each row.
  int64_t packed_bytes = 0;         // Of all matrices and derived weights, as they are held.
};
LiveBase LiveBaseOf(const ModelWeights& live);
// Of a server that has had no weights yet: nothing is held, and the bytes are those of the stored
// form of what must come.
LiveBase EmptyBase(const WeightPlan& plan);

struct StagingOptions {
  const WeightPlan* plan = nullptr;  // Outlives the staging; so do backend and pool.
  const Backend* backend = nullptr;
  ThreadPool* pool = nullptr;  // May be null: one thread.
  // Of an update; absent for a cold load.
  std::optional<LiveBase> base = {};
  // Of each row, whether it stays what it is in the live weights when the update does not bring it;
  // members of a set that shares a scale stay together or come together. Empty: all must come.
  std::vector<bool> may_stay = {};
  // Copies of weights that wait for the others of their set, for a set is encoded when its largest
  // magnitude is known, or for the rest of their rows. 4 GiB; sources that send the members of a
  // set and the rows of a weight together need next to none.
  int64_t waiting_bytes_max = int64_t{4} << 30;
};

// One thread.
class Staging {
 public:
  explicit Staging(StagingOptions options);
  // In place: overwrites `weights`, one after the other, and needs no second copy. All must be put
  // all the same.
  Staging(StagingOptions options, std::unique_ptr<ModelWeights> weights);

  // Stages one tensor: a weight in BF16, F16 or F32 (quantized by the one transform), one of its
  // stored parts, or an input scale, which may come beside either; or some of its rows, named
  // "NAME[begin:end]", cut at multiples of 128 (of stacked experts: at any expert). A weight is
  // packed when its last part and row is there, and a set that shares a scale when its last member
  // is. Stacked experts are taken apart; a tied model's head must equal the embedding. Idempotent
  // for equal bytes. An error leaves what was staged before as it was.
  // Errors: kInvalidArgument naming the tensor (unknown, shape, dtype, NaN or infinity, another
  // value than before, rows that overlap, a set in two forms); kExhausted.
  Status Put(std::string_view name, const ConstTensorView& tensor);

  // Closes the ledger: every weight is staged or may stay as it is (MTP rows may be left out
  // exactly when the base does not hold them), static inputs have their scales, derived weights are
  // made. Input scales that nobody put are those of the base; in a cold load from BF16, what the
  // transform writes. What stays is copied from `live`; in place it lies there already. Errors:
  // kInvalidArgument naming what is missing; those of DeriveWeights. More may be put then.
  Status Seal(const ModelWeights* live = nullptr);
  // The sealed weights, in place and taken away. Take leaves the staging empty.
  const ModelWeights& sealed() const;
  std::unique_ptr<ModelWeights> Take();
  // Gives back, as they were, what Take took away.
  void Return(std::unique_ptr<ModelWeights> weights);
  // In place: the weights that were given if none has been overwritten, else null.
  std::unique_ptr<ModelWeights> TakeUntouched();

  // Of each row of the table, whether it was put, whole.
  std::vector<bool> Brought() const;
  // Names of the weights that stayed what they were; after Seal.
  const std::vector<std::string>& carried_over() const { return carried_over_; }
  int64_t num_staged() const { return num_staged_; }
  int64_t bytes_in() const { return bytes_in_; }
  int64_t bytes_staged() const { return bytes_staged_; }
  int64_t waiting_bytes() const { return waiting_bytes_; }

 private:
  // How far one weight is.
  struct Entry {
    bool is_packed = false;
    RowLedger source;  // Of the weight put as BF16, F16 or F32.
    // Of each stored part put, and its copy while it waits for the others.
    std::vector<RowLedger> part_rows;
    std::vector<OwnedTensor> parts;
    std::optional<float> input_scale;  // As stored; put by itself.
    // Of a weight whose rows come apart: its stored form, or BF16 where one scale depends on all.
    std::vector<OwnedTensor> assembly;
    // Of a member of a scale set that waits: BF16, and its largest magnitude.
    Buffer waiting;
    float amax = 0.0F;

    bool IsUntouched() const { return source.empty() && part_rows.empty(); }
  };
  using Slice = std::optional<RowSlice>;  // Absent: all rows.

  Status PutSource(size_t row_idx, const Slice& slice, const ConstTensorView& tensor);
  Status PutWhole(size_t row_idx, const ConstTensorView& tensor);
  Status PutStacked(const StackedSource& stacked, const Slice& slice,
                    const ConstTensorView& tensor);
  Status PutTiedHead(const Slice& slice, const ConstTensorView& tensor);
  Status CheckTiedHead() const;
  PrecisionRow AssembledRow(size_t row_idx) const;
  Status PutRows(size_t row_idx, const RowSlice& slice, const ConstTensorView& tensor);
  Status StartAssembly(size_t row_idx, const PrecisionRow& assembled);
  Status FinishRows(size_t row_idx);
  Status PutMember(size_t row_idx, const ConstTensorView& tensor);
  Status Wait(size_t row_idx, const ConstTensorView& tensor, float amax);
  Status EncodeSet(size_t last_row_idx, const ConstTensorView& last, float amax);
  Status CheckPartForms(const PutTarget& target, std::string_view name) const;
  Status PutPart(const PutTarget& target, const Slice& slice, const ConstTensorView& tensor);
  Status KeepPart(const PutTarget& target, const Slice& slice, const ConstTensorView& tensor);
  Status PutInputScale(const PutTarget& target, const ConstTensorView& tensor);
  Status Adopt(size_t row_idx);
  Result<PackedMatrix> Encode(size_t row_idx, const ConstTensorView& source,
                              std::optional<float> shared_amax) const;
  void Keep(size_t row_idx, PackedMatrix packed);
  Status CheckComplete() const;
  bool MayBeAbsent(size_t row_idx) const;
  bool Stays(size_t row_idx) const;
  Status CarryOver(const ModelWeights* live);
  // As stored; nullopt when there is none, neither put nor carried over.
  std::optional<float> GivenInputScale(size_t row_idx) const;
  Status SetInputScales();

  const StagingOptions options_;
  const WeightPlan& plan_;
  std::vector<Entry> ledger_;  // One entry a row of the table.
  std::unique_ptr<ModelWeights> weights_;
  RowLedger head_;  // Of a tied model's head, when it was put.
  std::vector<std::string> carried_over_;
  bool is_sealed_ = false;
  int64_t num_staged_ = 0;
  int64_t bytes_in_ = 0;
  int64_t bytes_staged_ = 0;
  int64_t waiting_bytes_ = 0;
};

}  // namespace octavo
