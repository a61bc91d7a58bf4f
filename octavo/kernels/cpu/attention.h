#pragma once
// KvStoreArgs and AttentionArgs of ops.h on the CPU.

#include <array>
#include <atomic>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kv_layout.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {

// kv_store.cc
void StoreKv(const CpuPath& path, const KvStoreArgs& args, ThreadPool* pool);

// One thread.
class AttentionOp {
 public:
  AttentionOp(const CpuPath& path, ThreadPool* pool);
  // `max_dim` covers head_dim and value_dim.
  Status Reserve(int64_t max_context, int64_t max_dim, int64_t max_segments);
  Status Run(const AttentionArgs& args);

 private:
  static constexpr int64_t kMaxBlockRows = 64;

  // A (token, query head) pair.
  struct Row {
    int64_t token = 0;  // Row of q and y.
    int64_t head = 0;
    int64_t num_keys = 0;  // Keys that it sees.
  };
  // Rows of a block that belong to one segment.
  struct Piece {
    const Segment* segment = nullptr;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    int64_t num_pages = 0;  // That any of its rows sees.
  };
  // Some successive rows of one kv head, of one segment or of several that share pages.
  struct Block {
    int64_t kv_head = 0;
    int64_t num_rows = 0;
    int64_t num_pieces = 0;
    int64_t num_pages = 0;  // Of the longest piece.
    std::array<Row, kMaxBlockRows> rows;
    std::array<Piece, kMaxBlockRows> pieces;
  };
  // Rows [first_row, first_row + num_rows) of a block, which read the same page at page_idx.
  struct PageUse {
    int64_t page_idx = 0;
    int64_t first_row = 0;
    int64_t num_rows = 0;
    const std::byte* head = nullptr;  // The kv head's part of the page.
    const std::byte* next = nullptr;  // That of the use after it, or null.
  };
  // Where a block begins: row `flat` of segment order_[at]. It ends after max_rows rows, or before
  // a segment that is not joined to the one before it.
  struct BlockStart {
    int64_t kv_head = 0;
    size_t at = 0;
    int64_t flat = 0;
    int64_t max_rows = 0;
  };
  // Pieces [begin, end) of a block, from a page on.
  struct PieceRange {
    int64_t begin = 0;
    int64_t end = 0;
    int64_t page_idx = 0;
  };
  struct WorkerScratch {
    Block block;
    Scratch queries;  // A elements [block rows, padded head_dim].
    Scratch scores;   // FP32 [block rows, context], then P as A elements.
    Scratch outputs;  // FP32 [block rows, padded value_dim].
    Scratch page;     // FP8: K or V of a page as BF16.
    Scratch tail;     // FP32 [row_step, padded value_dim].
  };

  Status Ensure(int64_t context, int64_t max_dim, int64_t num_segments);
  void OrderSegments(std::span<const Segment> segments);
  // The most rows of a block.
  static int64_t MaxRows(const MatMulKernel& kernel) {
    return kMaxBlockRows / kernel.attention_rows * kernel.attention_rows;
  }
  template <typename Visit>
  void ForEachBlock(const AttentionArgs& args, int64_t shared_rows, Visit visit) const;
  void MoveToNextBlock(const AttentionArgs& args, BlockStart* start) const;
  bool IsJoined(size_t at) const { return at < joined_.size() && joined_[at]; }
  int64_t SharedRows(const AttentionArgs& args) const;
  void FillBlock(const AttentionArgs& args, BlockStart start, Block* block) const;
  static int32_t PageOf(const Block& block, int64_t piece_idx, int64_t page_idx);
  template <typename Use>
  void ForEachPage(const KvLayer& kv, const Block& block, Use use) const;
  template <typename Emit>
  void VisitPages(const Block& block, const PieceRange& range, const Emit& emit) const;
  // Whether so few rows of FP8 are decoded on the way.
  bool IsFused(int64_t num_rows) const {
    return kernel_.a_elem_bytes == 4 && num_rows <= path_.kv.max_fused_rows;
  }
  void RunBlock(const AttentionArgs& args, WorkerScratch* scratch) const;
  void FetchScores(const PageUse& use, int64_t page_bytes, WorkerScratch* scratch) const;
  void ScoreKeys(const AttentionArgs& args, WorkerScratch* scratch) const;
  void WeighValues(const AttentionArgs& args, WorkerScratch* scratch) const;
  void WeighPage(const KvLayout& layout, const PageUse& use, WorkerScratch* scratch) const;

  const CpuPath& path_;
  ThreadPool* pool_;
  MatMulKernel kernel_;  // Of this run.
  int64_t scores_stride_ = 0;
  std::vector<int32_t> order_;  // Segments with rows, sorted by their pages.
  std::vector<bool> joined_;    // Whether each goes into a block with the one before.
  std::vector<WorkerScratch> workers_;
  std::atomic<int64_t> num_taken_{0};  // Blocks of this run.
};

}  // namespace octavo::cpu
