#pragma once
// What sampling and logprobs need to know about a row of logits, in one or two passes over it and
// without writing anything of its size: maxima and sums of exponentials, block by block. A block's
// figures say whether anything in it is worth a look.

#include <cstddef>
#include <cstdint>
#include <span>

namespace octavo {

// Values of a block; the last one of a row may be shorter.
inline constexpr int64_t kScanBlock = 256;
inline constexpr int64_t NumScanBlocks(int64_t vocab_size) {
  return (vocab_size + kScanBlock - 1) / kScanBlock;
}

struct RowMax {
  bool finite = true;  // No value is NaN or infinite.
  float max = 0.0F;    // As SoftmaxStatsArgs (kernels/ops.h) has it, when there is no NaN.
};
// block_max[b] = the largest value of block b. Shapes: row [vocab], not empty; block_max
// [NumScanBlocks]. Thread-safe; allocates nothing.
RowMax ScanMax(std::span<const float> row, std::span<float> block_max);

// block_sum[b] = sum of ExpF32(row[i] - max) over block b: a lane sum (kernels/ops.h). Returns the
// lane sum over the whole row, which is the `sum` of SoftmaxStatsArgs bit for bit.
// Same bits on every processor; call it with subnormals flushed. Shapes, safety: as ScanMax.
float ScanSum(std::span<const float> row, float max, std::span<double> block_sum);
// The same without any special instructions: for tests.
float ScanSumPortable(std::span<const float> row, float max, std::span<double> block_sum);

// row[i] = row[i] / divisor. Thread-safe; allocates nothing.
void DivideRow(std::span<float> row, float divisor);

}  // namespace octavo
