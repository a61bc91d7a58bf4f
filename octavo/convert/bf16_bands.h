#pragma once
// A source tensor read as BF16, a band of rows at a time: what conversion works in.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/formats/fp8_block.h"

namespace octavo {

// Rows of a band, the unit of work. A multiple of the block, so that cuts never show in the bytes.
inline constexpr int64_t kBandRows = kFp8BlockDim;

// The source is BF16, F16 or F32; the latter two are rounded to nearest even. It is never written,
// and must outlive this. A tensor of other rank than 2 is its first extent by the product of the
// others. One thread each.
class Bf16Bands {
 public:
  explicit Bf16Bands(const ConstTensorView& source);

  int64_t num_bands() const { return (rows_ + kBandRows - 1) / kBandRows; }
  int64_t cols() const { return cols_; }
  int64_t BandBegin(int64_t band_idx) const { return band_idx * kBandRows; }
  int64_t BandRows(int64_t band_idx) const;

  // BF16 bits of the band, [BandRows, cols]: the source itself where it can be read in place, else
  // scratch that the next call overwrites.
  std::span<const uint16_t> Read(int64_t band_idx);

 private:
  const ConstTensorView& source_;
  int64_t rows_;
  int64_t cols_;
  std::vector<uint16_t> bf16_;  // Scratch of one band each.
  std::vector<uint16_t> f16_;   // An aligned copy: safetensors may begin a tensor anywhere.
  std::vector<float> f32_;
};

}  // namespace octavo
