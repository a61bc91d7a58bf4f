// Causal attention over the paged KV cache, and the store into it.
//
// Work is cut into blocks: some (token, query head) rows that share one kv head of one segment, so
// that K and V are read once for all of them. A block computes its scores over all pages, then the
// exact maximum and the exponentials, then the weighted sum of V; every sum runs over absolute
// positions in ops.h order, so cuts and companions leave no trace in the bits.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kv_layout.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kStridePadElems = 32;

// One kv head's part of the page that holds `page_idx` of a sequence.
const uint16_t* HeadPage(const KvLayer& kv, const Segment& segment, int64_t page_idx,
                         int64_t kv_head) {
  const int64_t page = segment.page_table[static_cast<size_t>(page_idx)];
  return reinterpret_cast<const uint16_t*>(kv.pages + page * kv.page_bytes) +
         kv_head * KvLayout{kv.shape.head_dim, kv.shape.ValueDim()}.HeadElems();
}

int64_t BytesBetween(const uint16_t* from, const uint16_t* to) {
  return reinterpret_cast<const std::byte*>(to) - reinterpret_cast<const std::byte*>(from);
}

}  // namespace

// Rows f of a segment's (token, head of the group) pairs, token-major: token f / group.
struct AttentionOp::Block {
  const Segment* segment = nullptr;
  int64_t kv_head = 0;
  int64_t group = 0;  // Query heads of a kv head.
  int64_t first = 0;
  int64_t num_rows = 0;

  int64_t Token(int64_t row) const { return (first + row) / group; }
  int64_t Head(int64_t row) const { return kv_head * group + (first + row) % group; }
  // Keys that a row sees.
  int64_t NumKeys(int64_t row) const { return segment->first_position + Token(row) + 1; }
  // Pages that any row sees.
  int64_t NumPages() const { return RoundUp(NumKeys(num_rows - 1), kPageTokens) / kPageTokens; }
};

AttentionOp::AttentionOp(const CpuPath& path, ThreadPool* pool)
    : path_(path), pool_(pool), workers_(static_cast<size_t>(pool->num_threads())) {}

int64_t AttentionOp::BlockRows(int64_t group) const {
  return std::max(path_.matmul.attention_rows, RoundUp(group, path_.matmul.row_step));
}

// `max_dim` covers head_dim and value_dim.
Status AttentionOp::Ensure(int64_t context, int64_t group, int64_t max_dim) {
  const int64_t rows = BlockRows(group);
  const int64_t depth = RoundUp(max_dim, kTileDepth);
  scores_stride_ = std::max(scores_stride_, RoundUp(context, kPageTokens) + kStridePadElems);
  for (WorkerScratch& worker : workers_) {
    RETURN_IF_ERROR(worker.queries.Ensure(rows * depth * path_.matmul.a_elem_bytes));
    RETURN_IF_ERROR(worker.scores.Ensure(rows * scores_stride_ * kFloat));
    RETURN_IF_ERROR(worker.outputs.Ensure(rows * depth * kFloat));
  }
  return OkStatus();
}

Status AttentionOp::Reserve(int64_t max_context, int64_t max_heads, int64_t max_head_dim) {
  return Ensure(max_context, max_heads, max_head_dim);
}

void AttentionOp::Store(const KvStoreArgs& args) {
  const KvLayout layout{args.kv.shape.head_dim, args.kv.shape.ValueDim()};
  const auto store_rows = [&](int64_t begin, int64_t end, int /*worker*/) {
    for (const Segment& segment : args.segments) {
      const int64_t from = std::max(begin, segment.first_row);
      const int64_t to = std::min(end, segment.first_row + segment.num_rows);
      for (int64_t row = from; row < to; ++row) {
        const int64_t position = segment.first_position + row - segment.first_row;
        const int64_t t = position % kPageTokens;
        for (int64_t h = 0; h < args.kv.shape.num_kv_heads; ++h) {
          auto* page = const_cast<uint16_t*>(HeadPage(args.kv, segment, position / kPageTokens, h));
          const uint16_t* k = Bf16Row(args.k, row) + h * layout.head_dim;
          const uint16_t* v = Bf16Row(args.v, row) + h * layout.value_dim;
          for (int64_t d = 0; d < layout.head_dim; d += 2) {
            std::memcpy(page + layout.KeyElem(t, d), k + d, 2 * sizeof(uint16_t));
          }
          for (int64_t d = 0; d < layout.value_dim; ++d) {
            page[layout.ValueElem(t, d)] = v[d];
          }
        }
      }
    }
  };
  constexpr int64_t kParallelElems = 16384;
  if (args.k.rows * args.k.cols < kParallelElems) {
    store_rows(0, args.k.rows, 0);
  } else {
    pool_->ParallelFor(args.k.rows, store_rows);
  }
}

// scores = q K^T, a page at a time.
void AttentionOp::ScoreKeys(const AttentionArgs& args, const Block& block,
                            WorkerScratch* scratch) const {
  const MatMulKernel& kernel = path_.matmul;
  const KvLayout layout{args.kv.shape.head_dim, args.kv.shape.ValueDim()};
  const int64_t depth = layout.KeyDepth();
  for (int64_t r = 0; r < block.num_rows; ++r) {
    std::byte* to = scratch->queries.data() + r * depth * kernel.a_elem_bytes;
    const int64_t row = block.segment->first_row + block.Token(r);
    path_.LoadA(Bf16Row(args.q, row) + block.Head(r) * layout.head_dim, layout.head_dim, to);
    std::memset(to + layout.head_dim * kernel.a_elem_bytes, 0,
                static_cast<size_t>((depth - layout.head_dim) * kernel.a_elem_bytes));
  }
  const int64_t num_pages = block.NumPages();
  for (int64_t page = 0; page < num_pages; ++page) {
    // Pages lie anywhere, so each fetches its successor; the last one the values of the first.
    const uint16_t* keys = HeadPage(args.kv, *block.segment, page, block.kv_head);
    const uint16_t* next =
        page + 1 < num_pages
            ? HeadPage(args.kv, *block.segment, page + 1, block.kv_head)
            : HeadPage(args.kv, *block.segment, 0, block.kv_head) + layout.ValuesOffset();
    kernel.matmul({.a = scratch->queries.data(),
                   .a_stride = depth,
                   .num_rows = block.num_rows,
                   .b = keys,
                   .panel_stride = layout.KeyPanelElems(),
                   .num_panels = kPageTokens / kPanelCols,
                   .num_tiles = depth / kTileDepth,
                   .c = scratch->scores.floats() + page * kPageTokens,
                   .c_stride = scores_stride_,
                   .from_zero = true,
                   .prefetch_bytes = BytesBetween(keys, next)});
  }
}

// outputs = P V, a page (one tile of depth) at a time.
void AttentionOp::WeighValues(const AttentionArgs& args, const Block& block,
                              WorkerScratch* scratch) const {
  const MatMulKernel& kernel = path_.matmul;
  const KvLayout layout{args.kv.shape.head_dim, args.kv.shape.ValueDim()};
  const int64_t num_pages = block.NumPages();
  for (int64_t page = 0; page < num_pages; ++page) {
    const uint16_t* head = HeadPage(args.kv, *block.segment, page, block.kv_head);
    const uint16_t* next =
        HeadPage(args.kv, *block.segment, std::min(page + 1, num_pages - 1), block.kv_head);
    kernel.matmul({.a = scratch->scores.data() + page * kPageTokens * kernel.a_elem_bytes,
                   .a_stride = scores_stride_ * kFloat / kernel.a_elem_bytes,
                   .num_rows = block.num_rows,
                   .b = head + layout.ValuesOffset(),
                   .panel_stride = kTileElems,
                   .num_panels = layout.NumValuePanels(),
                   .num_tiles = 1,
                   .c = scratch->outputs.floats(),
                   .c_stride = layout.OutputStride(),
                   .from_zero = page == 0,
                   .prefetch_bytes = BytesBetween(head, next)});
  }
}

void AttentionOp::RunBlock(const AttentionArgs& args, const Block& block,
                           WorkerScratch* scratch) const {
  ScoreKeys(args, block, scratch);
  // Softmax without its division. P replaces the scores as A elements; keys that a row does not see
  // get 0. A row of the scratch starts at the same byte in both forms. The row's sum waits behind
  // its last page.
  const int64_t padded_keys = block.NumPages() * kPageTokens;
  for (int64_t r = 0; r < block.num_rows; ++r) {
    float* row = scratch->scores.floats() + r * scores_stride_;
    const float max = path_.rows.scale_max(args.scale, block.NumKeys(r), row);
    row[padded_keys] = path_.ExpSumToA(max, block.NumKeys(r), padded_keys, row);
  }
  WeighValues(args, block, scratch);
  const KvLayout layout{args.kv.shape.head_dim, args.kv.shape.ValueDim()};
  for (int64_t r = 0; r < block.num_rows; ++r) {
    const int64_t row = block.segment->first_row + block.Token(r);
    path_.rows.divide(scratch->outputs.floats() + r * layout.OutputStride(),
                      scratch->scores.floats()[r * scores_stride_ + padded_keys], layout.value_dim,
                      Bf16Row(args.y, row) + block.Head(r) * layout.value_dim);
  }
}

Status AttentionOp::Run(const AttentionArgs& args) {
  const int64_t group = args.num_heads / args.kv.shape.num_kv_heads;
  const int64_t block_rows = BlockRows(group);
  // Visits all blocks in a fixed order with the cost (FMA and reads of K and V, in row-keys) that
  // lies before each.
  const auto for_each_block = [&](auto visit) {
    constexpr int64_t kReadCost = 4;  // Reading a key costs about as much as using it four times.
    int64_t cost = 0;
    for (const Segment& segment : args.segments) {
      for (int64_t kv_head = 0; kv_head < args.kv.shape.num_kv_heads; ++kv_head) {
        const int64_t num_flat = segment.num_rows * group;
        for (int64_t first = 0; first < num_flat; first += block_rows) {
          const Block block{.segment = &segment,
                            .kv_head = kv_head,
                            .group = group,
                            .first = first,
                            .num_rows = std::min(block_rows, num_flat - first)};
          visit(block, cost);
          cost += block.NumKeys(block.num_rows - 1) * (block.num_rows + kReadCost);
        }
      }
    }
    return cost;
  };

  int64_t context = 0;
  for (const Segment& segment : args.segments) {
    context = std::max(context, segment.first_position + segment.num_rows);
  }
  RETURN_IF_ERROR(
      Ensure(context, group, std::max(args.kv.shape.head_dim, args.kv.shape.ValueDim())));
  const int64_t total = for_each_block([](const Block&, int64_t) {});
  if (total == 0) {
    return OkStatus();
  }
  const int64_t num_workers = pool_->num_threads();
  pool_->Run([&](int worker) {
    const MatMulScope scope(path_.matmul);
    for_each_block([&](const Block& block, int64_t cost) {
      if (cost * num_workers / total == worker) {
        RunBlock(args, block, &workers_[static_cast<size_t>(worker)]);
      }
    });
  });
  return OkStatus();
}

}  // namespace octavo::cpu
