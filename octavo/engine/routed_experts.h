#pragma once
// RoutedExpertPages: which experts each cached token was sent to, page by page beside its KV, so
// that a token served from the prefix cache has them too.

#include <cstdint>
#include <span>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/kernels/ops.h"

namespace octavo {

// One thread. Default made it keeps nothing.
class RoutedExpertPages {
 public:
  // `row_size`: layers * top_k, experts of a token. Errors: kExhausted.
  Status Allocate(int64_t num_pages, int64_t row_size);
  // Until the next Allocate nothing may be recorded or read.
  void ReleaseMemory() { memory_ = Buffer(); }
  bool enabled() const { return row_size_ > 0; }
  int64_t row_size() const { return row_size_; }

  // Stores the rows of a forward pass, [tokens, row_size], at their positions.
  void Record(std::span<const Segment> segments, std::span<const int32_t> experts);
  void CopyPage(int32_t from, int32_t to);
  // Writes the rows of positions [begin, end) of a sequence with these pages to `rows`,
  // [end - begin, row_size].
  void Read(std::span<const int32_t> pages, int64_t begin, int64_t end,
            std::span<int32_t> rows) const;

 private:
  int64_t row_size_ = 0;
  Buffer memory_;  // uint16 [num_pages, kPageTokens, row_size].
};

}  // namespace octavo
