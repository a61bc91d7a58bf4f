#include "octavo/convert/convert_step.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_check.h"
#include "octavo/convert/stored_values.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/quantize.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr int64_t kGroupsPerBlock = kFp8BlockDim / 32;

size_t OutputIdx(const ConvertStep& step, StoredPart part) {
  const auto found = std::ranges::find(step.outputs, part,
                                       [](const StepOutput& output) { return output.spec.part; });
  CHECK(found != step.outputs.end());
  return static_cast<size_t>(found - step.outputs.begin());
}

bool IsSingle(StoredPart part) { return part != StoredPart::kCodes && part != StoredPart::kScales; }

// Codes of the rows, as the source stores them.
std::span<const uint8_t> CodesOf(const WeightSource& source, const RowRange& rows) {
  const auto bytes_of = [&](int64_t count) {
    return static_cast<size_t>(CodeBytes(source.format, count, source.cols));
  };
  const auto* codes = reinterpret_cast<const uint8_t*>(source.codes.data);
  return {codes + bytes_of(rows.begin), bytes_of(rows.count)};
}

// Of the tensor scale that goes with codes of `amax`; 1 for formats without.
float TensorScaleFor(WeightFormat format, float amax) {
  return SharesScale(format) ? TensorScale(format, amax) : 1.0F;
}

// The E8M0 bytes of mxfp8 that stand in one tile of 128 by 128.
struct Tile {
  int64_t row_begin = 0;
  int64_t row_end = 0;
  int64_t group_begin = 0;  // Along a row.
  int64_t group_end = 0;
};

// Calls body(tile) for the tiles of the rows, row by row of tiles.
template <typename Body>
void ForEachTile(const WeightSource& source, const RowRange& rows, Body body) {
  const int64_t num_groups = source.cols / 32;
  const int64_t row_end = rows.begin + rows.count;
  for (int64_t row = rows.begin; row < row_end; row += kFp8BlockDim) {
    for (int64_t group = 0; group < num_groups; group += kGroupsPerBlock) {
      body(Tile{.row_begin = row,
                .row_end = std::min(row + kFp8BlockDim, row_end),
                .group_begin = group,
                .group_end = std::min(group + kGroupsPerBlock, num_groups)});
    }
  }
}

uint8_t GroupByte(const WeightSource& source, int64_t row, int64_t group) {
  return std::to_integer<uint8_t>(source.scales.data[row * (source.cols / 32) + group]);
}

uint8_t LargestByte(const WeightSource& source, const Tile& tile) {
  uint8_t largest = 0;
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    for (int64_t group = tile.group_begin; group < tile.group_end; ++group) {
      largest = std::max(largest, GroupByte(source, row, group));
    }
  }
  return largest;
}

// The code of code * 2^-shift, or -1 when there is none.
int ShiftedCode(uint8_t code, int shift) {
  if (IsE4m3NaN(code)) {
    return -1;
  }
  const float value = std::ldexp(E4m3ToFloat(code), -shift);
  const uint8_t shifted = FloatToE4m3(value);
  const bool zero_stays_zero = (value == 0.0F) == ((code & 0x7FU) == 0);
  return E4m3ToFloat(shifted) == value && zero_stays_zero ? shifted : -1;
}

// A tile of zeros has no largest scale: its groups have the byte 0. Then its codes stay, and its
// scale is that of the encoder.
float BlockScaleOf(uint8_t largest) {
  return largest == 0 ? Fp8BlockUe8m0Scale(0.0F) : E8m0ToFloat(largest);
}

// Calls body(code_idx, shift) for the codes of the tile; code_idx counts from the tensor's start.
template <typename Body>
bool ForEachCode(const WeightSource& source, const Tile& tile, uint8_t largest, Body body) {
  for (int64_t row = tile.row_begin; row < tile.row_end; ++row) {
    for (int64_t group = tile.group_begin; group < tile.group_end; ++group) {
      const int shift = largest - GroupByte(source, row, group);
      for (int64_t col = group * 32; col < (group + 1) * 32; ++col) {
        if (!body(row * source.cols + col, shift)) {
          return false;
        }
      }
    }
  }
  return true;
}

}  // namespace

Result<QuantizationError> StepWorker::Run(const ConvertStep& step, const StepContext& context,
                                          const RowRange& rows, PutBytes put) {
  switch (step.action) {
    case ConvertAction::kEncode:
      return Encode(step, context, rows, put);
    case ConvertAction::kGroupsToBlocks:
      if (!context.codes_survive) {
        return Encode(step, context, rows, put);
      }
      RETURN_IF_ERROR(GroupsToBlocks(step, rows, put));
      break;
    case ConvertAction::kBlocksToGroups:
      RETURN_IF_ERROR(BlocksToGroups(step, rows, put));
      break;
    case ConvertAction::kKeep:
      RETURN_IF_ERROR(Keep(step, rows, put));
      break;
    case ConvertAction::kDecode:
      RETURN_IF_ERROR(Decode(step, rows, put));
      break;
    case ConvertAction::kAdopt:
    case ConvertAction::kPassThrough:
      if (rows.begin == 0) {
        RETURN_IF_ERROR(CopyScales(step, put));
      }
      RETURN_IF_ERROR(CopyCodes(step, rows, put));
      break;
    case ConvertAction::kCopy:
      RETURN_IF_ERROR(put(0, rows.begin,
                          {step.source.codes.data + rows.begin, static_cast<size_t>(rows.count)}));
      break;
  }
  return QuantizationError();
}

float StepWorker::Amax(const ConvertStep& step, const RowRange& rows, bool direct) {
  return octavo::Amax(reader_.Read(step.source, rows, direct));
}

Result<QuantizationError> StepWorker::Encode(const ConvertStep& step, const StepContext& context,
                                             const RowRange& rows, PutBytes put) {
  const WeightFormat format = step.row->format;
  const int64_t cols = step.source.cols;
  if (rows.begin == 0) {
    for (size_t i = 0; i < step.outputs.size(); ++i) {
      if (const StoredPart part = step.outputs[i].spec.part; IsSingle(part)) {
        const float value = SingleValue(format, part, context.amax);
        RETURN_IF_ERROR(put(i, 0, std::as_bytes(std::span(&value, 1))));
      }
    }
  }
  codes_.resize(static_cast<size_t>(CodeBytes(format, rows.count, cols)));
  const auto scale_bytes = static_cast<size_t>(ScaleBytes(format, rows.count, cols));
  scales_.resize((scale_bytes + sizeof(float) - 1) / sizeof(float));
  const auto scales = std::as_writable_bytes(std::span(scales_)).first(scale_bytes);
  const ConstTensorView values = reader_.Read(step.source, rows, context.direct);
  QuantizeArgs args;
  args.format = format;
  args.values = values;
  args.amax = context.amax;
  args.codes = codes_;
  args.scales = scales;
  if (!Quantize(args).ok()) {
    return UnfitSourceError(*step.row, step.source, context.direct);
  }
  RETURN_IF_ERROR(put(OutputIdx(step, StoredPart::kCodes), CodeBytes(format, rows.begin, cols),
                      std::as_bytes(std::span(codes_))));
  if (!scales.empty()) {
    RETURN_IF_ERROR(
        put(OutputIdx(step, StoredPart::kScales), ScaleBytes(format, rows.begin, cols), scales));
  }
  return MeasureQuantization({.format = format,
                              .values = values,
                              .codes = codes_,
                              .scales = scales,
                              .tensor_scale = TensorScaleFor(format, context.amax)});
}

Status StepWorker::Keep(const ConvertStep& step, const RowRange& rows, PutBytes put) {
  const ConstTensorView bf16 = reader_.ReadBf16(step.source, rows);
  if (CountNonFinite(bf16).count != 0) {
    return UnfitSourceError(*step.row, step.source, /*direct=*/false);
  }
  const int64_t row_bytes = step.source.cols * DTypeBytes(step.source.codes.dtype);
  return put(0, rows.begin * row_bytes,
             {step.source.codes.data + rows.begin * row_bytes,
              static_cast<size_t>(rows.count * row_bytes)});
}

Status StepWorker::Decode(const ConvertStep& step, const RowRange& rows, PutBytes put) {
  const ConstTensorView bf16 = reader_.ReadBf16(step.source, rows);
  if (CountNonFinite(bf16).count != 0) {
    return UnfitSourceError(*step.row, step.source, /*direct=*/false);
  }
  return put(0, rows.begin * step.source.cols * DTypeBytes(DType::kBf16), bf16.Bytes());
}

Status StepWorker::CopyCodes(const ConvertStep& step, const RowRange& rows, PutBytes put) {
  const std::span<const uint8_t> codes = CodesOf(step.source, rows);
  RETURN_IF_ERROR(CheckStoredCodes(*step.row, codes));
  return put(OutputIdx(step, StoredPart::kCodes),
             CodeBytes(step.source.format, rows.begin, step.source.cols), std::as_bytes(codes));
}

Status StepWorker::CopyScales(const ConvertStep& step, PutBytes put) {
  for (size_t i = 0; i < step.outputs.size(); ++i) {
    const StepOutput& output = step.outputs[i];
    if (output.spec.part == StoredPart::kCodes) {
      continue;
    }
    if (output.from == nullptr) {
      if (!IsUsableScale(output.value)) {
        return InvalidArgument("{}: expected a finite positive scale, got {}", output.spec.name,
                               output.value);
      }
      RETURN_IF_ERROR(put(i, 0, std::as_bytes(std::span(&output.value, 1))));
      continue;
    }
    const ConstTensorView& view = output.from->view;
    RETURN_IF_ERROR(CheckStoredScales(*step.row, output.spec, view));
    const int64_t num_bytes = NumElements(output.spec.shape) * DTypeBytes(output.spec.dtype);
    scales_.resize(static_cast<size_t>(num_bytes + 3) / sizeof(float));
    const auto bytes =
        std::as_writable_bytes(std::span(scales_)).first(static_cast<size_t>(num_bytes));
    CopyStored(output.spec, view, bytes);
    RETURN_IF_ERROR(put(i, 0, bytes));
  }
  return OkStatus();
}

Status StepWorker::BlocksToGroups(const ConvertStep& step, const RowRange& rows, PutBytes put) {
  const WeightSource& source = step.source;
  RETURN_IF_ERROR(CopyCodes(step, rows, put));
  const int64_t num_groups = source.cols / 32;
  const int64_t num_blocks = NumFp8Blocks(source.cols);
  std::vector<float> blocks(static_cast<size_t>(num_blocks));
  std::vector<uint8_t> bytes;
  bytes.reserve(static_cast<size_t>(rows.count * num_groups));
  for (int64_t row = rows.begin; row < rows.begin + rows.count; ++row) {
    WidenScales(source.scales, row / kFp8BlockDim * num_blocks, blocks);
    for (int64_t group = 0; group < num_groups; ++group) {
      const float scale = blocks[static_cast<size_t>(group / kGroupsPerBlock)];
      bytes.push_back(static_cast<uint8_t>(std::bit_cast<uint32_t>(scale) >> 23));
    }
  }
  return put(OutputIdx(step, StoredPart::kScales), rows.begin * num_groups,
             std::as_bytes(std::span(bytes)));
}

bool StepWorker::CodesSurvive(const ConvertStep& step, const RowRange& rows) {
  const WeightSource& source = step.source;
  const auto* codes = reinterpret_cast<const uint8_t*>(source.codes.data);
  bool survive = true;
  ForEachTile(source, rows, [&](const Tile& tile) {
    const uint8_t largest = LargestByte(source, tile);
    survive = survive && largest != kE8m0NaN &&
              ForEachCode(source, tile, largest, [&](int64_t code_idx, int shift) {
                const uint8_t code = codes[code_idx];
                return largest == 0 ? (code & 0x7FU) == 0 : ShiftedCode(code, shift) >= 0;
              });
  });
  return survive;
}

Status StepWorker::GroupsToBlocks(const ConvertStep& step, const RowRange& rows, PutBytes put) {
  const WeightSource& source = step.source;
  const auto* codes = reinterpret_cast<const uint8_t*>(source.codes.data);
  const int64_t first_code = rows.begin * source.cols;
  codes_.resize(static_cast<size_t>(rows.count * source.cols));
  scales_.clear();
  ForEachTile(source, rows, [&](const Tile& tile) {
    const uint8_t largest = LargestByte(source, tile);
    scales_.push_back(BlockScaleOf(largest));
    ForEachCode(source, tile, largest, [&](int64_t code_idx, int shift) {
      codes_[static_cast<size_t>(code_idx - first_code)] =
          static_cast<uint8_t>(ShiftedCode(codes[code_idx], shift));
      return true;
    });
  });
  RETURN_IF_ERROR(
      put(OutputIdx(step, StoredPart::kCodes), first_code, std::as_bytes(std::span(codes_))));
  return put(OutputIdx(step, StoredPart::kScales),
             ScaleBytes(WeightFormat::kFp8Ue8m0, rows.begin, source.cols),
             std::as_bytes(std::span(scales_)));
}

}  // namespace octavo
