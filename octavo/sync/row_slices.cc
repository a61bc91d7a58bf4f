#include "octavo/sync/row_slices.h"

#include <fmt/core.h>

#include <algorithm>
#include <charconv>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"

namespace octavo {
namespace {

std::optional<int64_t> ParseRow(std::string_view digits) {
  int64_t row = 0;
  const char* end = digits.data() + digits.size();
  const auto [stop, error] = std::from_chars(digits.data(), end, row);
  const bool whole = error == std::errc() && stop == end && row >= 0;
  return whole ? std::optional(row) : std::nullopt;
}

}  // namespace

Result<SlicedName> ParseSlicedName(std::string_view name) {
  if (!name.ends_with(']')) {
    return SlicedName{.name = name, .slice = {}};
  }
  const size_t open = name.rfind('[');
  const size_t colon = name.rfind(':');
  if (open != std::string_view::npos && open > 0 && colon != std::string_view::npos &&
      colon > open) {
    const auto begin = ParseRow(name.substr(open + 1, colon - open - 1));
    const auto end = ParseRow(name.substr(colon + 1, name.size() - colon - 2));
    if (begin.has_value() && end.has_value() && *begin < *end) {
      return SlicedName{.name = name.substr(0, open), .slice = RowSlice{*begin, *end}};
    }
  }
  return InvalidArgument("{}: expected rows as NAME[begin:end] with 0 <= begin < end", name);
}

std::string NameOfSlice(std::string_view name, const RowSlice& slice) {
  return fmt::format("{}[{}:{}]", name, slice.begin, slice.end);
}

Status CheckRowSlice(const SliceCheck& check, const Shape& whole, const Shape& tensor) {
  if (whole.size() < 2) {
    return InvalidArgument("{}: expected the whole tensor, for {} is not cut into rows", check.name,
                           ShapeString(whole));
  }
  const RowSlice& slice = check.slice;
  const bool ends_well = slice.end == whole[0] || slice.end % check.granule == 0;
  if (slice.end > whole[0] || slice.begin % check.granule != 0 || !ends_well) {
    return InvalidArgument("{}: expected rows of {}, cut at multiples of {}", check.name,
                           ShapeString(whole), check.granule);
  }
  Shape expected = whole;
  expected[0] = slice.NumRows();
  if (tensor != expected) {
    return InvalidArgument("{}: expected {}, got {}", check.name, ShapeString(expected),
                           ShapeString(tensor));
  }
  return OkStatus();
}

Result<RowLedger::Finding> RowLedger::Check(std::string_view name, int64_t first_row,
                                            std::span<const Hash128> hashes) const {
  const auto first_block = static_cast<size_t>(first_row / kSliceRows);
  size_t num_there = 0;
  for (size_t i = 0; i < hashes.size() && first_block + i < blocks_.size(); ++i) {
    const std::optional<Hash128>& known = blocks_[first_block + i];
    if (known.has_value() && *known != hashes[i]) {
      return InvalidArgument("{}: already staged with another value", name);
    }
    num_there += known.has_value() ? 1 : 0;
  }
  if (num_there != 0 && num_there != hashes.size()) {
    return InvalidArgument(
        "{}: overlaps what is staged: {} of its {} blocks of {} rows came before, in other cuts",
        name, num_there, hashes.size(), kSliceRows);
  }
  return num_there == 0 ? Finding::kNew : Finding::kRepeated;
}

void RowLedger::Add(int64_t first_row, int64_t num_rows, std::span<const Hash128> hashes) {
  if (blocks_.empty()) {
    num_rows_ = num_rows;
    blocks_.resize(static_cast<size_t>((num_rows + kSliceRows - 1) / kSliceRows));
  }
  const auto first_block = static_cast<size_t>(first_row / kSliceRows);
  CHECK(first_block + hashes.size() <= blocks_.size());
  for (size_t i = 0; i < hashes.size(); ++i) {
    num_known_ += blocks_[first_block + i].has_value() ? 0 : 1;
    blocks_[first_block + i] = hashes[i];
  }
}

void RowLedger::Remove(int64_t first_row, size_t num_blocks) {
  const auto first_block = static_cast<size_t>(first_row / kSliceRows);
  for (size_t i = first_block; i < first_block + num_blocks; ++i) {
    num_known_ -= blocks_[i].has_value() ? 1 : 0;
    blocks_[i].reset();
  }
}

std::vector<RowSlice> RowLedger::Gaps() const {
  std::vector<RowSlice> gaps;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].has_value()) {
      continue;
    }
    const int64_t begin = static_cast<int64_t>(i) * kSliceRows;
    const int64_t end = std::min(begin + kSliceRows, num_rows_);
    if (!gaps.empty() && gaps.back().end == begin) {
      gaps.back().end = end;
    } else {
      gaps.push_back({begin, end});
    }
  }
  return gaps;
}

bool RowLedger::AgreesWith(const RowLedger& other) const {
  const size_t num_common = std::min(blocks_.size(), other.blocks_.size());
  for (size_t i = 0; i < num_common; ++i) {
    const bool both = blocks_[i].has_value() && other.blocks_[i].has_value();
    if (both && *blocks_[i] != *other.blocks_[i]) {
      return false;
    }
  }
  return true;
}

std::vector<Hash128> HashRowBlocks(const ConstTensorView& tensor) {
  const std::span<const std::byte> bytes = tensor.Bytes();
  if (tensor.shape.size() < 2 || bytes.empty()) {
    return {HashBytes(bytes)};
  }
  const size_t block_bytes =
      bytes.size() / static_cast<size_t>(tensor.shape[0]) * static_cast<size_t>(kSliceRows);
  std::vector<Hash128> hashes;
  for (size_t begin = 0; begin < bytes.size(); begin += block_bytes) {
    hashes.push_back(HashBytes(bytes.subspan(begin, std::min(block_bytes, bytes.size() - begin))));
  }
  return hashes;
}

}  // namespace octavo
