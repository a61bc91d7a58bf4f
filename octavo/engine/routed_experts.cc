#include "octavo/engine/routed_experts.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

// Element of the first code of a position.
size_t Offset(std::span<const int32_t> pages, int64_t position, int64_t row_size) {
  const int64_t page = pages[static_cast<size_t>(position / kPageTokens)];
  return static_cast<size_t>((page * kPageTokens + position % kPageTokens) * row_size);
}

}  // namespace

Status RoutedExpertPages::Allocate(int64_t num_pages, int64_t row_size) {
  ASSIGN_OR_RETURN(memory_, Buffer::AllocateHost(num_pages * kPageTokens * row_size *
                                                 int64_t{sizeof(uint16_t)}));
  row_size_ = row_size;
  return OkStatus();
}

void RoutedExpertPages::Record(std::span<const Segment> segments,
                               std::span<const int32_t> experts) {
  const auto width = static_cast<size_t>(row_size_);
  const std::span<uint16_t> codes = memory_.As<uint16_t>();
  for (const Segment& segment : segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const auto row = experts.subspan(static_cast<size_t>(segment.first_row + i) * width, width);
      const auto to =
          codes.subspan(Offset(segment.page_table, segment.first_position + i, row_size_), width);
      std::ranges::transform(row, to.begin(), [](int32_t expert) {
        DCHECK(expert >= 0);
        DCHECK(expert <= int32_t{std::numeric_limits<uint16_t>::max()});
        return static_cast<uint16_t>(expert);
      });
    }
  }
}

void RoutedExpertPages::CopyPage(int32_t from, int32_t to) {
  const auto page_size = static_cast<size_t>(kPageTokens * row_size_);
  const std::span<uint16_t> codes = memory_.As<uint16_t>();
  std::ranges::copy(codes.subspan(static_cast<size_t>(from) * page_size, page_size),
                    codes.subspan(static_cast<size_t>(to) * page_size, page_size).begin());
}

void RoutedExpertPages::Read(std::span<const int32_t> pages, int64_t begin, int64_t end,
                             std::span<int32_t> rows) const {
  const auto width = static_cast<size_t>(row_size_);
  const std::span<const uint16_t> codes = memory_.As<uint16_t>();
  DCHECK(static_cast<int64_t>(rows.size()) == (end - begin) * row_size_);
  for (int64_t position = begin; position < end; ++position) {
    std::ranges::copy(codes.subspan(Offset(pages, position, row_size_), width),
                      rows.subspan(static_cast<size_t>(position - begin) * width).begin());
  }
}

}  // namespace octavo
