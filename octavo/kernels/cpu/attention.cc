// Causal attention over the paged KV cache.
//
// Work is cut into blocks: some (token, query head) rows that share one kv head, so that K and V
// are read once for all of them. Rows of one segment share all pages; samples of one prompt lie in
// segments whose page tables begin with the same pages. Where that is much of what they read, their
// rows go into common, larger blocks, which read it once. A block computes its scores over all
// pages, then the exact maximum and the exponentials, then the weighted sum of V; every sum runs
// over absolute positions in ops.h order, so cuts and companions leave no trace in the bits.

#include "octavo/kernels/cpu/attention.h"

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/kv_layout.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

constexpr int64_t kFloat = sizeof(float);
constexpr int64_t kStridePadElems = 32;
// Segments go into common blocks when they share at least this part of their pages. With less, what
// the scores of many rows cost outside of the second-level cache is more than what is saved.
constexpr int64_t kMinSharedPart = 4;
// Blocks of samples that share pages grow only while each thread has some of all blocks to take.
constexpr int64_t kMinBlocksPerThread = 4;

// Pages between the one that is worked on and the one whose scores are fetched: those of a block of
// many rows lie in the L3 cache.
constexpr int64_t kPagesAhead = 4;

int64_t NumPages(int64_t num_keys) { return RoundUp(num_keys, kPageTokens) / kPageTokens; }

// Pages of a segment up to its last row.
std::span<const int32_t> PagesOf(const Segment& segment) {
  return segment.page_table.first(
      static_cast<size_t>(NumPages(segment.first_position + segment.num_rows)));
}

}  // namespace

AttentionOp::AttentionOp(const CpuPath& path, ThreadPool* pool)
    : path_(path),
      pool_(pool),
      kernel_(path.matmul),
      workers_(static_cast<size_t>(pool->num_threads())) {
  for (const MatMulKernel* kernel : {&path.matmul, &path.wide}) {
    CHECK(kernel->attention_rows <= kMaxBlockRows);
    CHECK(kernel->attention_rows % kernel->row_step == 0);
  }
}

Status AttentionOp::Ensure(int64_t context, int64_t max_dim, int64_t num_segments) {
  // A block's last piece may begin anywhere, and matmul takes whole row steps from there.
  const int64_t row_step = std::max(path_.matmul.row_step, path_.wide.row_step);
  const int64_t rows = std::max(MaxRows(path_.matmul), MaxRows(path_.wide)) + row_step;
  const int64_t elem_bytes = std::max(path_.matmul.a_elem_bytes, path_.wide.a_elem_bytes);
  const int64_t depth = RoundUp(max_dim, kTileDepth);
  scores_stride_ = std::max(scores_stride_, RoundUp(context, kPageTokens) + kStridePadElems);
  order_.reserve(static_cast<size_t>(num_segments));
  joined_.reserve(static_cast<size_t>(num_segments));
  for (WorkerScratch& worker : workers_) {
    RETURN_IF_ERROR(worker.queries.Ensure(rows * depth * elem_bytes));
    RETURN_IF_ERROR(worker.scores.Ensure(rows * scores_stride_ * kFloat));
    RETURN_IF_ERROR(worker.outputs.Ensure(rows * depth * kFloat));
    RETURN_IF_ERROR(worker.page.Ensure(kPageTokens * depth * int64_t{sizeof(uint16_t)}));
    RETURN_IF_ERROR(worker.tail.Ensure(row_step * depth * kFloat));
  }
  return OkStatus();
}

Status AttentionOp::Reserve(int64_t max_context, int64_t max_dim, int64_t max_segments) {
  return Ensure(max_context, max_dim, max_segments);
}

// --- Which rows go together ---------------------------------------------------------------------

void AttentionOp::OrderSegments(std::span<const Segment> segments) {
  order_.clear();
  joined_.clear();
  for (size_t i = 0; i < segments.size(); ++i) {
    if (segments[i].num_rows > 0) {
      order_.push_back(static_cast<int32_t>(i));
    }
  }
  const auto pages = [&](int32_t i) { return PagesOf(segments[static_cast<size_t>(i)]); };
  std::ranges::sort(order_, [&](int32_t a, int32_t b) {
    const auto pages_a = pages(a);
    const auto pages_b = pages(b);
    const auto [in_a, in_b] = std::ranges::mismatch(pages_a, pages_b);
    if (in_a == pages_a.end() || in_b == pages_b.end()) {
      return pages_a.size() != pages_b.size() ? pages_a.size() < pages_b.size() : a < b;
    }
    return *in_a < *in_b;
  });
  for (size_t at = 0; at < order_.size(); ++at) {
    const auto here = pages(order_[at]);
    const auto before = at > 0 ? pages(order_[at - 1]) : std::span<const int32_t>();
    const auto shared = std::ranges::mismatch(before, here).in1 - before.begin();
    const auto longer = static_cast<int64_t>(std::max(before.size(), here.size()));
    joined_.push_back(shared * kMinSharedPart >= longer);
  }
}

// Calls visit(BlockStart) for all blocks in a fixed order.
template <typename Visit>
void AttentionOp::ForEachBlock(const AttentionArgs& args, int64_t shared_rows, Visit visit) const {
  for (size_t begin = 0; begin < order_.size();) {
    size_t end = begin + 1;
    while (IsJoined(end)) {
      ++end;
    }
    const int64_t max_rows = end - begin > 1 ? shared_rows : kernel_.attention_rows;
    for (int64_t kv_head = 0; kv_head < args.kv.shape.num_kv_heads; ++kv_head) {
      BlockStart start{.kv_head = kv_head, .at = begin, .flat = 0, .max_rows = max_rows};
      while (start.at < end) {
        visit(start);
        MoveToNextBlock(args, &start);
      }
    }
    begin = end;
  }
}

void AttentionOp::MoveToNextBlock(const AttentionArgs& args, BlockStart* start) const {
  const int64_t group = args.num_heads / args.kv.shape.num_kv_heads;
  for (int64_t rows_left = start->max_rows; rows_left > 0;) {
    const Segment& segment = args.segments[static_cast<size_t>(order_[start->at])];
    const int64_t num_flat = segment.num_rows * group;
    const int64_t num_rows = std::min(rows_left, num_flat - start->flat);
    rows_left -= num_rows;
    start->flat += num_rows;
    if (start->flat == num_flat) {
      start->flat = 0;
      if (!IsJoined(++start->at)) {
        return;
      }
    }
  }
}

// Rows of a block of several segments.
int64_t AttentionOp::SharedRows(const AttentionArgs& args) const {
  const int64_t most = MaxRows(kernel_);
  int64_t num_blocks = 0;
  ForEachBlock(args, most, [&](const BlockStart&) { ++num_blocks; });
  return num_blocks >= kMinBlocksPerThread * pool_->num_threads() ? most : kernel_.attention_rows;
}

void AttentionOp::FillBlock(const AttentionArgs& args, BlockStart start, Block* block) const {
  const int64_t group = args.num_heads / args.kv.shape.num_kv_heads;
  block->kv_head = start.kv_head;
  block->num_rows = 0;
  block->num_pieces = 0;
  block->num_pages = 0;
  do {
    const Segment& segment = args.segments[static_cast<size_t>(order_[start.at])];
    Piece& piece = block->pieces[static_cast<size_t>(block->num_pieces++)];
    piece.segment = &segment;
    piece.first_row = block->num_rows;
    piece.num_rows =
        std::min(start.max_rows - block->num_rows, segment.num_rows * group - start.flat);
    for (int64_t i = 0; i < piece.num_rows; ++i) {
      const int64_t token = (start.flat + i) / group;
      block->rows[static_cast<size_t>(block->num_rows++)] = {
          .token = segment.first_row + token,
          .head = start.kv_head * group + (start.flat + i) % group,
          .num_keys = segment.first_position + token + 1};
    }
    piece.num_pages = NumPages(block->rows[static_cast<size_t>(block->num_rows - 1)].num_keys);
    block->num_pages = std::max(block->num_pages, piece.num_pages);
    start.flat = 0;
    ++start.at;
  } while (block->num_rows < start.max_rows && IsJoined(start.at));
}

// The page of a piece at page_idx; -1 where its rows see none.
int32_t AttentionOp::PageOf(const Block& block, int64_t piece_idx, int64_t page_idx) {
  const Piece& piece = block.pieces[static_cast<size_t>(piece_idx)];
  return page_idx < piece.num_pages ? piece.segment->page_table[static_cast<size_t>(page_idx)]
                                    : int32_t{-1};
}

// Calls use(PageUse) for all pages of all rows: for each row in the order of its pages, and those
// that only some rows read after those that more do, one piece after the other: pieces side by
// side, page by page, are slower where most pages are not shared.
template <typename Use>
void AttentionOp::ForEachPage(const KvLayer& kv, const Block& block, Use use) const {
  const int64_t head_at = block.kv_head * KvLayout::Of(kv.shape).HeadBytes();
  PageUse pending;
  const auto emit = [&](int64_t begin, int64_t end, int64_t page_idx) {
    const Piece& first = block.pieces[static_cast<size_t>(begin)];
    const Piece& last = block.pieces[static_cast<size_t>(end - 1)];
    const PageUse next{.page_idx = page_idx,
                       .first_row = first.first_row,
                       .num_rows = last.first_row + last.num_rows - first.first_row,
                       .head = kv.pages + PageOf(block, begin, page_idx) * kv.page_bytes + head_at,
                       .next = nullptr};
    if (pending.head != nullptr) {
      pending.next = next.head;
      use(pending);
    }
    pending = next;
  };
  VisitPages(block, {.begin = 0, .end = block.num_pieces, .page_idx = 0}, emit);
  use(pending);
}

// Pages from range.page_idx on of the pieces of the range, which share those before it.
template <typename Emit>
void AttentionOp::VisitPages(const Block& block, const PieceRange& range, const Emit& emit) const {
  for (int64_t begin = range.begin; begin < range.end;) {
    // The pieces from `begin` on, before `limit`, that read the same page.
    const auto end_of_run = [&](int64_t page_idx, int64_t limit) {
      int64_t end = begin + 1;
      while (end < limit && PageOf(block, end, page_idx) == PageOf(block, begin, page_idx)) {
        ++end;
      }
      return end;
    };
    int64_t page_idx = range.page_idx;
    if (PageOf(block, begin, page_idx) < 0) {
      ++begin;
      continue;
    }
    const int64_t end = end_of_run(page_idx, range.end);
    do {
      emit(begin, end, page_idx++);
    } while (PageOf(block, begin, page_idx) >= 0 && end_of_run(page_idx, end) == end);
    if (end - begin > 1) {
      VisitPages(block, {.begin = begin, .end = end, .page_idx = page_idx}, emit);
    }
    begin = end;
  }
}

// --- One block ----------------------------------------------------------------------------------

// Fetches what the rows of a use have of a later page, `page_bytes` of each.
void AttentionOp::FetchScores(const PageUse& use, int64_t page_bytes,
                              WorkerScratch* scratch) const {
  constexpr int64_t kLineBytes = 64;
  for (int64_t r = use.first_row; r < use.first_row + use.num_rows; ++r) {
    const std::byte* row = scratch->scores.data() + r * scores_stride_ * kFloat +
                           (use.page_idx + kPagesAhead) * page_bytes;
    for (int64_t at = 0; at < page_bytes; at += kLineBytes) {
      __builtin_prefetch(row + at, /*rw=*/1);
    }
  }
}

// scores = q K^T, a page at a time.
void AttentionOp::ScoreKeys(const AttentionArgs& args, WorkerScratch* scratch) const {
  const MatMulKernel& kernel = kernel_;
  const KvLayout layout = KvLayout::Of(args.kv.shape);
  const Block& block = scratch->block;
  const int64_t depth = layout.KeyDepth();
  for (int64_t r = 0; r < block.num_rows; ++r) {
    std::byte* to = scratch->queries.data() + r * depth * kernel.a_elem_bytes;
    const Row& row = block.rows[static_cast<size_t>(r)];
    path_.LoadA(kernel,
                {Bf16Row(args.q, row.token) + row.head * layout.head_dim,
                 static_cast<size_t>(layout.head_dim)},
                depth, to);
  }
  // Pages lie anywhere, so each fetches its successor; the last one the values of the first.
  const std::byte* first_values = nullptr;
  ForEachPage(args.kv, block, [&](const PageUse& use) {
    first_values = first_values == nullptr ? use.head + layout.ValuesAt() : first_values;
    FetchScores(use, kPageTokens * kFloat, scratch);
    const int64_t prefetch_bytes = (use.next == nullptr ? first_values : use.next) - use.head;
    const std::byte* queries =
        scratch->queries.data() + use.first_row * depth * kernel.a_elem_bytes;
    float* scores =
        scratch->scores.floats() + use.first_row * scores_stride_ + use.page_idx * kPageTokens;
    const auto* keys = reinterpret_cast<const uint16_t*>(use.head);
    if (layout.is_fp8) {
      const auto* codes = reinterpret_cast<const uint8_t*>(use.head);
      const KvDecodeArgs decode{.codes = codes,
                                .scales = codes + layout.KeyScalesAt(),
                                .num_panels = kPageTokens / kPanelCols,
                                .panel_elems = layout.KeyPanelElems(),
                                .pairs = reinterpret_cast<uint16_t*>(scratch->page.data()),
                                .prefetch_bytes = prefetch_bytes};
      if (IsFused(use.num_rows)) {
        path_.kv.score_keys({.a = queries,
                             .a_stride = depth,
                             .num_rows = use.num_rows,
                             .b = decode,
                             .c = scores,
                             .c_stride = scores_stride_,
                             .from_zero = true});
        return;
      }
      path_.kv.decode_keys(decode);
      keys = decode.pairs;
    }
    kernel.matmul({.a = queries,
                   .a_stride = depth,
                   .num_rows = use.num_rows,
                   .b = keys,
                   .panel_stride = layout.KeyPanelElems(),
                   .num_panels = kPageTokens / kPanelCols,
                   .num_tiles = depth / kTileDepth,
                   .c = scores,
                   .c_stride = scores_stride_,
                   .from_zero = true,
                   .prefetch_bytes = layout.is_fp8 ? 0 : prefetch_bytes});
  });
}

// outputs = P V, a page (one tile of depth) at a time.
void AttentionOp::WeighValues(const AttentionArgs& args, WorkerScratch* scratch) const {
  const KvLayout layout = KvLayout::Of(args.kv.shape);
  ForEachPage(args.kv, scratch->block,
              [&](const PageUse& use) { WeighPage(layout, use, scratch); });
}

void AttentionOp::WeighPage(const KvLayout& layout, const PageUse& use,
                            WorkerScratch* scratch) const {
  const MatMulKernel& kernel = kernel_;
  FetchScores(use, kPageTokens * kernel.a_elem_bytes, scratch);
  const int64_t prefetch_bytes = use.next == nullptr ? 0 : use.next - use.head;
  const std::byte* values = use.head + layout.ValuesAt();
  const std::byte* weights = scratch->scores.data() + use.first_row * scores_stride_ * kFloat +
                             use.page_idx * kPageTokens * kernel.a_elem_bytes;
  const int64_t weights_stride = scores_stride_ * kFloat / kernel.a_elem_bytes;
  const int64_t stride = layout.OutputStride();
  float* sums = scratch->outputs.floats() + use.first_row * stride;
  if (layout.is_fp8) {
    const KvDecodeArgs decode{
        .codes = reinterpret_cast<const uint8_t*>(values),
        .scales = reinterpret_cast<const uint8_t*>(use.head + layout.ValueScalesAt()),
        .num_panels = layout.NumValuePanels(),
        .panel_elems = kTileElems,
        .pairs = reinterpret_cast<uint16_t*>(scratch->page.data()),
        .prefetch_bytes = prefetch_bytes};
    if (IsFused(use.num_rows)) {
      path_.kv.weigh_values({.a = weights,
                             .a_stride = weights_stride,
                             .num_rows = use.num_rows,
                             .b = decode,
                             .c = sums,
                             .c_stride = stride,
                             .from_zero = use.page_idx == 0});
      return;
    }
    path_.kv.decode_values(decode);
    values = scratch->page.data();
  }
  // A kernel of whole row steps would add to the rows of other pieces behind these: their last step
  // goes through a place of its own.
  const int64_t rows_after = scratch->block.num_rows - use.first_row - use.num_rows;
  const int64_t tail_rows = rows_after > 0 ? use.num_rows % kernel.row_step : 0;
  const auto weigh = [&](int64_t first, int64_t num_rows, float* c) {
    kernel.matmul({.a = weights + first * scores_stride_ * kFloat,
                   .a_stride = weights_stride,
                   .num_rows = num_rows,
                   .b = reinterpret_cast<const uint16_t*>(values),
                   .panel_stride = kTileElems,
                   .num_panels = layout.NumValuePanels(),
                   .num_tiles = 1,
                   .c = c,
                   .c_stride = stride,
                   .from_zero = use.page_idx == 0,
                   .prefetch_bytes = layout.is_fp8 ? 0 : prefetch_bytes});
  };
  const int64_t whole_rows = use.num_rows - tail_rows;
  if (whole_rows > 0) {
    weigh(0, whole_rows, sums);
  }
  if (tail_rows > 0) {
    const auto tail_bytes = static_cast<size_t>(tail_rows * stride * kFloat);
    std::memcpy(scratch->tail.data(), sums + whole_rows * stride, tail_bytes);
    weigh(whole_rows, tail_rows, scratch->tail.floats());
    std::memcpy(sums + whole_rows * stride, scratch->tail.data(), tail_bytes);
  }
}

void AttentionOp::RunBlock(const AttentionArgs& args, WorkerScratch* scratch) const {
  ScoreKeys(args, scratch);
  const Block& block = scratch->block;
  // Softmax without its division. P replaces the scores as A elements; keys that a row does not see
  // get 0. A row of the scratch starts at the same byte in both forms. The row's sum waits behind
  // its last page.
  const auto for_each_row = [&](auto body) {
    for (const Piece& piece :
         std::span(block.pieces).first(static_cast<size_t>(block.num_pieces))) {
      for (int64_t r = piece.first_row; r < piece.first_row + piece.num_rows; ++r) {
        body(block.rows[static_cast<size_t>(r)], r, piece.num_pages * kPageTokens);
      }
    }
  };
  for_each_row([&](const Row& row, int64_t r, int64_t padded_keys) {
    float* scores = scratch->scores.floats() + r * scores_stride_;
    const float max = path_.rows.scale_max(args.scale, row.num_keys, scores);
    scores[padded_keys] = path_.ExpSumToA(
        kernel_, {.max = max, .n = row.num_keys, .padded = padded_keys, .x = scores});
  });
  WeighValues(args, scratch);
  const KvLayout layout = KvLayout::Of(args.kv.shape);
  for_each_row([&](const Row& row, int64_t r, int64_t padded_keys) {
    path_.rows.divide(scratch->outputs.floats() + r * layout.OutputStride(),
                      scratch->scores.floats()[r * scores_stride_ + padded_keys], layout.value_dim,
                      Bf16Row(args.y, row.token) + row.head * layout.value_dim);
  });
}

Status AttentionOp::Run(const AttentionArgs& args) {
  int64_t context = 0;
  for (const Segment& segment : args.segments) {
    context = std::max(context, segment.first_position + segment.num_rows);
  }
  RETURN_IF_ERROR(Ensure(context, std::max(args.kv.shape.head_dim, args.kv.shape.ValueDim()),
                         static_cast<int64_t>(args.segments.size())));
  // FP8 pages are decoded on the way for few rows: by FMA.
  kernel_ = args.kv.shape.dtype == DType::kBf16 ? path_.wide : path_.matmul;
  OrderSegments(args.segments);
  if (order_.empty()) {
    return OkStatus();
  }
  // Threads take blocks as they come: those of long contexts cost more, and on a machine that is
  // not its own threads do not run at one speed. Who takes a block changes no bit of it.
  num_taken_.store(0, std::memory_order_relaxed);
  const int64_t shared_rows = SharedRows(args);
  pool_->Run([&](int worker) {
    const MatMulScope scope(kernel_);
    WorkerScratch* scratch = &workers_[static_cast<size_t>(worker)];
    int64_t block = 0;
    int64_t taken = num_taken_.fetch_add(1, std::memory_order_relaxed);
    ForEachBlock(args, shared_rows, [&](const BlockStart& start) {
      if (block++ == taken) {
        FillBlock(args, start, &scratch->block);
        RunBlock(args, scratch);
        taken = num_taken_.fetch_add(1, std::memory_order_relaxed);
      }
    });
  });
  return OkStatus();
}

}  // namespace octavo::cpu
