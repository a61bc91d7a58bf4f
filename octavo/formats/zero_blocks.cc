#include "octavo/formats/zero_blocks.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/formats/block_grid.h"
#include "octavo/formats/format.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"

namespace octavo {
namespace {

// Whether bytes hold a code other than +-0; `magnitudes` masks the signs of one byte away.
bool AnyNonZero(const uint8_t* codes, int64_t count, uint8_t magnitudes) {
  const uint64_t mask = uint64_t{magnitudes} * 0x0101010101010101U;
  constexpr auto kWord = static_cast<int64_t>(sizeof(mask));
  int64_t i = 0;
  for (; i + kWord <= count; i += kWord) {
    uint64_t word = 0;
    std::memcpy(&word, codes + i, sizeof(word));
    if ((word & mask) != 0) {
      return true;
    }
  }
  for (; i < count; ++i) {
    if ((codes[i] & magnitudes) != 0) {
      return true;
    }
  }
  return false;
}

// Groups of kBytes, one after another, whose codes are all +-0.
template <size_t kBytes>
int64_t CountZeroGroups(std::span<const uint8_t> codes, uint8_t magnitudes) {
  const uint64_t mask = uint64_t{magnitudes} * 0x0101010101010101U;
  int64_t count = 0;
  for (size_t i = 0; i < codes.size(); i += kBytes) {
    uint64_t words[kBytes / sizeof(uint64_t)];
    std::memcpy(words, &codes[i], kBytes);
    uint64_t any = 0;
    for (const uint64_t word : words) {
      any |= word;
    }
    count += (any & mask) == 0 ? 1 : 0;
  }
  return count;
}

int64_t CountUpTo(std::span<const std::byte> scales, uint8_t limit) {
  int64_t count = 0;
  for (const std::byte scale : scales) {
    count += static_cast<uint8_t>(scale) <= limit ? 1 : 0;
  }
  return count;
}

}  // namespace

void CountBlocks(const MeasureArgs& args, QuantizationError* error) {
  constexpr uint8_t kE4m3Magnitude = 0x7F;
  const int64_t cols = args.values.shape[1];
  const BlockGrid grid = BlockGridOf(args.format, args.values.shape[0], cols);
  error->num_scales += grid.NumBlocks();
  if (args.format == WeightFormat::kNvfp4) {
    error->num_zero_blocks += CountZeroGroups<kNvfp4GroupElems / 2>(args.codes, 0x77);
    error->num_subnormal_scales += CountUpTo(args.scales, 0x07);
    return;
  }
  if (args.format == WeightFormat::kMxfp8) {
    error->num_zero_blocks += CountZeroGroups<kMxGroupElems>(args.codes, kE4m3Magnitude);
    error->num_subnormal_scales += CountUpTo(args.scales, 0x00);
    return;
  }
  grid.ForEach([&](const Block& block) {
    bool any = false;
    for (int64_t n = block.row_begin; n < block.row_end && !any; ++n) {
      any = AnyNonZero(args.codes.data() + n * cols + block.col_begin,
                       block.col_end - block.col_begin, kE4m3Magnitude);
    }
    error->num_zero_blocks += any ? 0 : 1;
  });
}

}  // namespace octavo
