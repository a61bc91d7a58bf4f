// Method: real bytes. A matrix is quantized whole and then sliced, and sliced and then quantized,
// over every format, both axes, aligned cuts and misaligned ones: equal exactly where the cut is
// said to be legal. Plans are checked on the shapes of published models, worked out by hand.

#include "octavo/policy/tensor_parallel.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/block_grid.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/spec_for_test.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;

// --- Bytes --------------------------------------------------------------------------------------

// BF16 [rows, cols] whose magnitude drifts by position, so that neighbouring blocks, and slices of
// one block, have scales of their own.
struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<uint16_t> values;

  ConstTensorView view() const {
    return {.dtype = DType::kBf16,
            .shape = {rows, cols},
            .data = reinterpret_cast<const std::byte*>(values.data())};
  }
};

Matrix MakeMatrix(int64_t rows, int64_t cols) {
  Matrix matrix{rows, cols, {}};
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const std::array<uint32_t, 4> words = Philox(7, static_cast<uint64_t>(r * cols + c));
      const float unit = static_cast<float>(words[0]) * 0x1p-32F - 0.5F;
      const float size = 1.0F + 0.01F * static_cast<float>(r) + 0.02F * static_cast<float>(c);
      matrix.values.push_back(FloatToBf16(unit * size));
    }
  }
  return matrix;
}

// [offset, offset + size) along an axis.
struct Cut {
  CutAxis axis = CutAxis::kRows;
  int64_t offset = 0;
  int64_t size = 0;
};

Matrix Slice(const Matrix& matrix, const Cut& cut) {
  const bool is_rows = cut.axis == CutAxis::kRows;
  Matrix slice{is_rows ? cut.size : matrix.rows, is_rows ? matrix.cols : cut.size, {}};
  for (int64_t r = 0; r < slice.rows; ++r) {
    for (int64_t c = 0; c < slice.cols; ++c) {
      const int64_t row = r + (is_rows ? cut.offset : 0);
      const int64_t col = c + (is_rows ? 0 : cut.offset);
      slice.values.push_back(matrix.values[static_cast<size_t>(row * matrix.cols + col)]);
    }
  }
  return slice;
}

// What is stored of a matrix.
struct Stored {
  std::vector<uint8_t> codes;
  std::vector<std::byte> scales;
  float tensor_scale = 1.0F;
  bool operator==(const Stored&) const = default;
};

Stored Encode(WeightFormat format, const Matrix& matrix, float amax) {
  Stored stored;
  stored.codes.resize(static_cast<size_t>(CodeBytes(format, matrix.rows, matrix.cols)));
  stored.scales.resize(static_cast<size_t>(ScaleBytes(format, matrix.rows, matrix.cols)));
  stored.tensor_scale = TensorScale(format, amax);
  const Status status = Quantize({.format = format,
                                  .values = matrix.view(),
                                  .amax = amax,
                                  .codes = stored.codes,
                                  .scales = stored.scales});
  EXPECT_TRUE(status.ok()) << status.message();
  return stored;
}

// Rows [row, row + rows) and bytes [col, col + cols) of a row-major matrix of `width` bytes a row.
template <typename Byte>
std::vector<Byte> Rectangle(const std::vector<Byte>& bytes, int64_t width, const Block& part) {
  std::vector<Byte> out;
  for (int64_t r = part.row_begin; r < part.row_end; ++r) {
    const auto begin = bytes.begin() + r * width;
    out.insert(out.end(), begin + part.col_begin, begin + part.col_end);
  }
  return out;
}

// The slice of what is stored: its codes, and the scales of the blocks that it touches.
Stored SliceStored(WeightFormat format, const Matrix& matrix, const Stored& whole, const Cut& cut) {
  const BlockGrid grid = BlockGridOf(format, matrix.rows, matrix.cols);
  const bool is_rows = cut.axis == CutAxis::kRows;
  const int64_t row_begin = is_rows ? cut.offset : 0;
  const int64_t col_begin = is_rows ? 0 : cut.offset;
  const int64_t num_rows = is_rows ? cut.size : matrix.rows;
  const int64_t num_cols = is_rows ? matrix.cols : cut.size;
  const int64_t per_byte = format == WeightFormat::kNvfp4 ? 2 : 1;
  Stored slice{.codes = Rectangle(whole.codes, matrix.cols / per_byte,
                                  {.row_begin = row_begin,
                                   .row_end = row_begin + num_rows,
                                   .col_begin = col_begin / per_byte,
                                   .col_end = (col_begin + num_cols) / per_byte,
                                   .idx = 0}),
               .scales = {},
               .tensor_scale = whole.tensor_scale};
  if (whole.scales.empty()) {
    return slice;
  }
  const BlockRange rows = BlocksTouched(row_begin, num_rows, grid.block_rows);
  const BlockRange cols = BlocksTouched(col_begin, num_cols, grid.block_cols);
  const auto scale_bytes = static_cast<int64_t>(whole.scales.size()) / grid.NumBlocks();
  slice.scales = Rectangle(whole.scales, grid.NumBlockCols() * scale_bytes,
                           {.row_begin = rows.first,
                            .row_end = rows.first + rows.count,
                            .col_begin = cols.first * scale_bytes,
                            .col_end = (cols.first + cols.count) * scale_bytes,
                            .idx = 0});
  return slice;
}

constexpr int64_t kRows = 512;
constexpr int64_t kCols = 512;

bool OrdersAgree(WeightFormat format, const Cut& cut, bool share_amax) {
  const Matrix matrix = MakeMatrix(kRows, kCols);
  const float amax = Amax(matrix.view());
  const Stored expected = SliceStored(format, matrix, Encode(format, matrix, amax), cut);
  const Matrix slice = Slice(matrix, cut);
  return Encode(format, slice, share_amax ? amax : Amax(slice.view())) == expected;
}

constexpr WeightFormat kQuantized[] = {WeightFormat::kFp8,        WeightFormat::kFp8Ue8m0,
                                       WeightFormat::kFp8Channel, WeightFormat::kFp8Tensor,
                                       WeightFormat::kMxfp8,      WeightFormat::kNvfp4};

TEST(Cut, AtABlockGivesTheSameBytesInEitherOrder) {
  for (const WeightFormat format : kQuantized) {
    for (const CutAxis axis : {CutAxis::kRows, CutAxis::kCols}) {
      const int64_t block = BlockAlong(format, axis);
      // A row's scale spans its columns: a slice alone cannot know it (the next test).
      if (format == WeightFormat::kFp8Channel && axis == CutAxis::kCols) {
        continue;
      }
      for (const int64_t offset : {int64_t{0}, block, 2 * block, int64_t{256}}) {
        for (const int64_t size : {block, int64_t{128}, int64_t{256}}) {
          if (size % ColsMultipleOf(format) != 0 && axis == CutAxis::kCols) {
            continue;
          }
          EXPECT_TRUE(OrdersAgree(format, {axis, offset, size}, /*share_amax=*/true))
              << WeightFormatName(format) << " axis " << static_cast<int>(axis) << " offset "
              << offset << " size " << size;
        }
      }
    }
  }
}

TEST(Cut, ThroughABlockGivesOtherBytes) {
  struct Case {
    WeightFormat format;
    Cut cut;
  };
  const Case cases[] = {
      {WeightFormat::kFp8, {CutAxis::kRows, 64, 128}},
      {WeightFormat::kFp8, {CutAxis::kRows, 0, 192}},  // Ends inside a block.
      {WeightFormat::kFp8, {CutAxis::kRows, 96, 96}},  // 288 = 3 * 96 at TP 3.
      {WeightFormat::kFp8, {CutAxis::kCols, 64, 128}},
      {WeightFormat::kFp8, {CutAxis::kCols, 128, 64}},
      {WeightFormat::kFp8Ue8m0, {CutAxis::kRows, 64, 256}},
      {WeightFormat::kMxfp8, {CutAxis::kCols, 16, 64}},
      {WeightFormat::kMxfp8, {CutAxis::kCols, 48, 32}},
      {WeightFormat::kNvfp4, {CutAxis::kCols, 8, 32}},
      {WeightFormat::kNvfp4, {CutAxis::kCols, 24, 16}},
  };
  for (const Case& one : cases) {
    EXPECT_NE(one.cut.offset % BlockAlong(one.format, one.cut.axis) +
                  one.cut.size % BlockAlong(one.format, one.cut.axis),
              0);
    EXPECT_FALSE(OrdersAgree(one.format, one.cut, /*share_amax=*/true))
        << WeightFormatName(one.format) << " offset " << one.cut.offset;
  }
}

// MX and NVFP4 blocks run along the columns alone: a cut of rows is free.
TEST(Cut, OfRowsIsFreeWhereBlocksRunAlongColumns) {
  for (const WeightFormat format :
       {WeightFormat::kMxfp8, WeightFormat::kNvfp4, WeightFormat::kFp8Channel}) {
    EXPECT_EQ(BlockAlong(format, CutAxis::kRows), 1);
    EXPECT_TRUE(OrdersAgree(format, {CutAxis::kRows, 37, 11}, /*share_amax=*/true));
  }
}

TEST(NeedsSharedAmax, HoldsExactlyWhereASliceAloneIsCodedOtherwise) {
  for (const WeightFormat format : kQuantized) {
    for (const CutAxis axis : {CutAxis::kRows, CutAxis::kCols}) {
      // The first half, whose largest magnitude is not the whole's: values grow by position.
      const bool agrees = OrdersAgree(format, {axis, 0, 256}, /*share_amax=*/false);
      EXPECT_EQ(agrees, !NeedsSharedAmax(format, axis))
          << WeightFormatName(format) << " axis " << static_cast<int>(axis);
    }
    EXPECT_FALSE(NeedsSharedAmax(format, CutAxis::kNone));
  }
}

// A slice touches as many blocks as ceil and floor say together, not either alone.
TEST(BlocksTouched, CountsPartialBlocksAtBothEnds) {
  EXPECT_EQ(BlocksTouched(0, 128, 128).count, 1);
  EXPECT_EQ(BlocksTouched(64, 64, 128).count, 1);   // Shared expert of width 64.
  EXPECT_EQ(BlocksTouched(64, 128, 128).count, 2);  // One block's size over two blocks.
  EXPECT_EQ(BlocksTouched(127, 2, 128).count, 2);
  EXPECT_EQ(BlocksTouched(128, 448, 128).count, 4);
  EXPECT_EQ(BlocksTouched(576, 576, 128).first, 4);
  EXPECT_EQ(BlocksTouched(576, 576, 128).count, 5);  // 4.5 .. 9
  EXPECT_EQ(BlocksTouched(300, 0, 128).count, 0);
}

TEST(CutWholeBlocks, GivesTheEarlierRanksOneMore) {
  EXPECT_THAT(CutWholeBlocks(768, 128, 4).value(), ElementsAre(256, 256, 128, 128));
  EXPECT_THAT(CutWholeBlocks(768, 128, 2).value(), ElementsAre(384, 384));
  // 300 is 2 blocks and 44: the last rank has the partial one.
  EXPECT_THAT(CutWholeBlocks(300, 128, 2).value(), ElementsAre(256, 44));
  EXPECT_THAT(CutWholeBlocks(300, 128, 3).value(), ElementsAre(128, 128, 44));
  EXPECT_THAT(CutWholeBlocks(300, 128, 4).error().message(), HasSubstr("3 blocks of 128"));
}

TEST(CutWholeBlocks, CoversEverySizeOnceAndOnBoundaries) {
  for (int64_t size = 1; size < 900; size += 7) {
    for (const int64_t block : {int64_t{1}, int64_t{16}, int64_t{32}, int64_t{128}}) {
      for (int64_t tp = 1; tp <= 8; ++tp) {
        const Result<std::vector<int64_t>> extents = CutWholeBlocks(size, block, tp);
        ASSERT_EQ(extents.has_value(), (size + block - 1) / block >= tp);
        if (!extents.has_value()) {
          continue;
        }
        EXPECT_EQ(std::accumulate(extents->begin(), extents->end(), int64_t{0}), size);
        for (int64_t rank = 0; rank < tp; ++rank) {
          const int64_t extent = (*extents)[static_cast<size_t>(rank)];
          EXPECT_GT(extent, 0);
          EXPECT_TRUE(rank + 1 == tp || extent % block == 0);
        }
      }
    }
  }
}

// --- Plans --------------------------------------------------------------------------------------

struct Shapes {
  int64_t hidden = 0;
  int64_t heads = 0;
  int64_t kv_heads = 0;
  int64_t head_dim = 128;
  int64_t inner = 0;  // Of the dense MLP, or of one expert.
  int64_t experts = 0;
};

// One layer of a Qwen3 or Qwen3-MoE of these shapes: what is cut does not depend on more.
ModelSpec SpecOfShapes(const Shapes& shapes) {
  HfConfig config = TinyQwen3Moe();
  config.hidden_size = shapes.hidden;
  config.num_layers = 1;
  config.num_heads = shapes.heads;
  config.num_kv_heads = shapes.kv_heads;
  config.head_dim = shapes.head_dim;
  config.intermediate_size = shapes.inner;
  config.moe.mlp_only_layers = {};
  config.moe.decoder_sparse_step = 1;
  config.moe.num_experts = 2;
  config.moe.num_experts_per_tok = 1;
  config.moe.moe_intermediate_size = shapes.inner;
  if (shapes.experts == 0) {
    config.architecture = "Qwen3ForCausalLM";
    config.model_type = "qwen3";
    config.moe = {};
  }
  Result<ModelSpec> spec = MakeModelSpec(config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return *spec;
}

PrecisionTable TableOf(const ModelSpec& spec, WeightFormat format) {
  Result<PrecisionTable> table =
      CompilePolicy(spec, {.format = format, .scope = QuantizeScope::kAll});
  EXPECT_TRUE(table.has_value()) << table.error().message();
  return *table;
}

const TensorCut& CutOf(const ModelSpec& spec, const TensorParallelPlan& plan, Role role) {
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    if (spec.weights[i].role == role) {
      return plan.cuts[i];
    }
  }
  ADD_FAILURE() << "no " << RoleName(role);
  return plan.cuts.front();
}

// The smallest power of two at which the inner width is no longer cut evenly.
int64_t BreaksAt(const Shapes& shapes, WeightFormat format) {
  const ModelSpec spec = SpecOfShapes(shapes);
  const PrecisionTable table = TableOf(spec, format);
  const Role role = shapes.experts > 0 ? Role::kExpertDown : Role::kMlpDown;
  for (int64_t tp = 1; tp <= 256; tp *= 2) {
    const TensorParallelPlan plan = PlanTensorParallel(spec, table, tp).value();
    if (CutOf(spec, plan, role).verdict != CutVerdict::kEven) {
      return tp;
    }
  }
  return 0;
}

TEST(TensorParallel, BreaksWherePublishedShapesDo) {
  using enum WeightFormat;
  EXPECT_EQ(BreaksAt({.hidden = 1536, .heads = 12, .kv_heads = 2, .inner = 8960}, kFp8), 4);
  EXPECT_EQ(BreaksAt({.hidden = 3584, .heads = 28, .kv_heads = 4, .inner = 18944}, kFp8), 8);
  EXPECT_EQ(BreaksAt({.hidden = 4096, .heads = 32, .kv_heads = 8, .inner = 12288}, kFp8), 64);
  EXPECT_EQ(
      BreaksAt({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128}, kFp8),
      4);
  EXPECT_EQ(
      BreaksAt({.hidden = 4096, .heads = 64, .kv_heads = 4, .inner = 1536, .experts = 128}, kFp8),
      8);
  EXPECT_EQ(BreaksAt({.hidden = 7168, .heads = 128, .kv_heads = 128, .inner = 18432}, kFp8), 32);
  // Blocks of 32 and 16 reach further: 768 = 24 * 32 = 48 * 16.
  EXPECT_EQ(
      BreaksAt({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128}, kMxfp8),
      16);
  EXPECT_EQ(
      BreaksAt({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128}, kNvfp4),
      32);
}

TEST(TensorParallel, CutsAnMlpInWholeBlocksAndItsThreeWeightsAlike) {
  const ModelSpec spec =
      SpecOfShapes({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128});
  for (const WeightFormat format : {WeightFormat::kFp8, WeightFormat::kMxfp8}) {
    const TensorParallelPlan plan = PlanTensorParallel(spec, TableOf(spec, format), 4).value();
    EXPECT_TRUE(plan.is_legal()) << plan.refusal();
    const TensorCut& down = CutOf(spec, plan, Role::kExpertDown);
    EXPECT_EQ(down.axis, CutAxis::kCols);
    for (const Role role : {Role::kExpertGate, Role::kExpertUp}) {
      EXPECT_EQ(CutOf(spec, plan, role).axis, CutAxis::kRows);
      // mxfp8 could cut gate and up anywhere, but down has the same partition.
      EXPECT_EQ(CutOf(spec, plan, role).block, format == WeightFormat::kFp8 ? 128 : 32);
      EXPECT_EQ(CutOf(spec, plan, role).extents, down.extents);
    }
    if (format == WeightFormat::kFp8) {
      EXPECT_FALSE(plan.is_even());
      EXPECT_THAT(down.extents, ElementsAre(256, 256, 128, 128));
    } else {
      EXPECT_TRUE(plan.is_even());
      EXPECT_THAT(down.extents, Each(192));
    }
  }
}

TEST(TensorParallel, RefusesByNameAxisSizeAndTp) {
  const ModelSpec spec =
      SpecOfShapes({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128});
  const PrecisionTable table = TableOf(spec, WeightFormat::kFp8);
  const TensorParallelPlan plan = PlanTensorParallel(spec, table, 8).value();
  EXPECT_FALSE(plan.is_legal());
  const TensorCut& down = CutOf(spec, plan, Role::kExpertDown);
  EXPECT_EQ(down.verdict, CutVerdict::kRefused);
  EXPECT_EQ(down.reason,
            "model.layers.0.mlp.experts.0.down_proj.weight: axis 1 of 768 at TP 8: 6 blocks of 128 "
            "are fewer than the ranks");
  EXPECT_TRUE(down.extents.empty());
  EXPECT_EQ(PlanTensorParallel(spec, table, 0).error().code(), StatusCode::kInvalidArgument);
}

TEST(TensorParallel, NeverSplitsHeadsNorTheirBlocks) {
  const ModelSpec odd = SpecOfShapes({.hidden = 1536, .heads = 12, .kv_heads = 2, .inner = 8960});
  const PrecisionTable bf16 = TableOf(odd, WeightFormat::kFp8);
  EXPECT_THAT(std::string(PlanTensorParallel(odd, bf16, 8).value().refusal()),
              HasSubstr("self_attn.q_proj.weight: axis 0 of 1536 at TP 8: 12 heads"));
  // Heads of 64 in blocks of 128: one head a rank cuts a block.
  const ModelSpec small =
      SpecOfShapes({.hidden = 512, .heads = 8, .kv_heads = 8, .head_dim = 64, .inner = 1024});
  const PrecisionTable fp8 = TableOf(small, WeightFormat::kFp8);
  EXPECT_TRUE(PlanTensorParallel(small, fp8, 4).value().is_legal());
  EXPECT_THAT(std::string(PlanTensorParallel(small, fp8, 8).value().refusal()),
              HasSubstr("axis 0 of 512 at TP 8: a slice of 64 is no multiple of the block of 128"));
  const PrecisionTable mxfp8 = TableOf(small, WeightFormat::kMxfp8);
  EXPECT_TRUE(PlanTensorParallel(small, mxfp8, 8).value().is_legal());
}

TEST(TensorParallel, GivesFewKeyHeadsToSeveralRanks) {
  const ModelSpec spec = SpecOfShapes({.hidden = 4096, .heads = 32, .kv_heads = 8, .inner = 12288});
  const TensorParallelPlan plan =
      PlanTensorParallel(spec, TableOf(spec, WeightFormat::kFp8), 16).value();
  EXPECT_TRUE(plan.is_legal()) << plan.refusal();
  const TensorCut& key = CutOf(spec, plan, Role::kAttentionK);
  EXPECT_EQ(key.ranks_per_slice, 2);
  EXPECT_THAT(key.extents, Each(128));
  EXPECT_THAT(CutOf(spec, plan, Role::kAttentionQ).extents, Each(256));
  EXPECT_EQ(CutOf(spec, plan, Role::kNorm).verdict, CutVerdict::kReplicated);
}

TEST(TensorParallel, TellsPeopleAndScripts) {
  const ModelSpec spec =
      SpecOfShapes({.hidden = 2048, .heads = 32, .kv_heads = 4, .inner = 768, .experts = 128});
  const PrecisionTable table = TableOf(spec, WeightFormat::kFp8);
  const std::string text = TensorParallelText(spec, table, 4).value();
  EXPECT_THAT(text, testing::StartsWith("tensor parallel 4: legal, uneven\n"));
  EXPECT_THAT(text, HasSubstr("down_proj.weight: 2 tensors, fp8, axis 1 of 768 in blocks of 128: "
                              "256 x 2, 128 x 2"));
  EXPECT_THAT(text, HasSubstr("TP 2: legal\nTP 4: legal, uneven\nTP 8: refused: model.layers.0"));
  const std::string json = TensorParallelJson(spec, table, 4).value();
  EXPECT_THAT(json, testing::StartsWith(R"({"tp":4,"legal":true,"even":false,"reason":"",)"));
  EXPECT_THAT(json, HasSubstr(R"("extents":[256,256,128,128])"));
}

}  // namespace
}  // namespace octavo
