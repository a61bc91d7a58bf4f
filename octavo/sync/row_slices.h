#pragma once
// Tensors that come in rows: "NAME[begin:end]" is the rows begin to end (not included) of NAME. So
// a sender cuts what is larger than one request. Borders are multiples of 128 rows, where no format
// has a block that would be cut.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"

namespace octavo {

inline constexpr int64_t kSliceRows = 128;

struct RowSlice {
  int64_t begin = 0;
  int64_t end = 0;

  int64_t NumRows() const { return end - begin; }
};

struct SlicedName {
  std::string_view name;          // Without the slice.
  std::optional<RowSlice> slice;  // Absent: the whole tensor.
};

// Errors: kInvalidArgument for a name that ends in ']' without "[begin:end]", 0 <= begin < end.
Result<SlicedName> ParseSlicedName(std::string_view name);
// "NAME[begin:end]".
std::string NameOfSlice(std::string_view name, const RowSlice& slice);

// Whether `tensor` can be these rows of a tensor of shape `whole`: at least a matrix, borders at
// multiples of `granule` rows or the end. `name` is that of the slice.
// Errors: kInvalidArgument with name, expected and actual.
struct SliceCheck {
  std::string_view name;
  RowSlice slice;
  int64_t granule = kSliceRows;
};
Status CheckRowSlice(const SliceCheck& check, const Shape& whole, const Shape& tensor);

// Which rows of a tensor have come, and what they were, by the hash of each block of 128: however a
// tensor was cut, the same rows have the same hashes. Value type.
class RowLedger {
 public:
  // What a tensor is to what came before it.
  enum class Finding {
    kNew,       // None of its rows was there.
    kRepeated,  // All of them were, the same.
  };

  // Of rows from `first_row` on, of a tensor of `num_rows` rows; a vector is one row.
  // Errors: kInvalidArgument naming `name`: rows that came with another value, or of which only
  // some came before.
  Result<Finding> Check(std::string_view name, int64_t first_row,
                        std::span<const Hash128> hashes) const;
  void Add(int64_t first_row, int64_t num_rows, std::span<const Hash128> hashes);
  // What came last is as if it had not come.
  void Remove(int64_t first_row, size_t num_blocks);

  bool empty() const { return num_known_ == 0; }
  bool IsComplete() const { return num_known_ > 0 && num_known_ == blocks_.size(); }
  // The rows that are missing between others that came.
  std::vector<RowSlice> Gaps() const;
  // Whether no row that both know differs.
  bool AgreesWith(const RowLedger& other) const;

 private:
  std::vector<std::optional<Hash128>> blocks_;
  size_t num_known_ = 0;
  int64_t num_rows_ = 0;
};

// XXH3-128 of each block of 128 rows; of a vector or a scalar as a whole.
std::vector<Hash128> HashRowBlocks(const ConstTensorView& tensor);

}  // namespace octavo
