// The CPU backend: argument checks, subnormal mode, and which rows go to which thread. Arithmetic
// is in the path's kernels.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/cpu/attention.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/kv_layout.h"
#include "octavo/kernels/cpu/route.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/sort_by_expert.h"

namespace octavo::cpu {
namespace {

// Below this many elements, waking the pool costs more than the work.
constexpr int64_t kParallelElems = 32768;

class CpuBackend final : public Backend {
 public:
  CpuBackend(const CpuPath& path, int num_threads)
      : path_(path),
        pool_(num_threads, {.flush_subnormals = true, .pin = true}),
        linear_(path_, &pool_),
        attention_(path_, &pool_) {}

  std::string_view name() const override { return path_.name; }
  std::string_view recipe() const override { return "serving-1"; }
  DType activation_dtype() const override { return DType::kBf16; }
  ThreadPool& pool() override { return pool_; }
  InputRanges input_ranges() const override { return linear_.input_ranges(); }

  Status Reserve(const Limits& limits) override {
    RETURN_IF_ERROR(linear_.Reserve(limits.max_tokens, limits.max_width, limits.max_grouped_rows));
    return attention_.Reserve(limits.max_context, limits.max_head_dim, limits.max_tokens);
  }

  Status Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const override {
    return PackPanels(path_.layout, canonical, packed);
  }
  Status UnpackCodes(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                     std::span<std::byte> codes) const override {
    UnpackPanels(path_.layout, packed, first_row, num_rows, codes);
    return OkStatus();
  }
  Status UnpackScales(const PackedMatrix& packed, std::span<std::byte> scales) const override {
    UnpackPanelScales(path_.layout, packed, scales);
    return OkStatus();
  }

  int64_t KvPageBytes(const KvShape& shape) const override {
    return shape.num_kv_heads * KvLayout::Of(shape).HeadBytes();
  }

  Status Embed(const EmbedArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.y.rows, args.y.cols, [&](int64_t t) {
      UnpackRow(*args.table, args.ids[static_cast<size_t>(t)], Bf16Row(args.y, t));
    });
    return OkStatus();
  }

  Status RmsNorm(const RmsNormArgs& args) override {
    CheckArgs(args, DType::kBf16);
    const auto* weight = reinterpret_cast<const uint16_t*>(args.weight->codes.data());
    ForRows(args.x.rows, args.x.cols, [&](int64_t r) {
      path_.rows.rms_norm(Bf16Row(args.x, r), weight, args.x.cols, args.eps, Bf16Row(args.y, r));
    });
    return OkStatus();
  }

  Status Add(const AddArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.x.rows, args.x.cols, [&](int64_t r) {
      path_.rows.add(Bf16Row(args.delta, r), args.x.cols, Bf16Row(args.x, r));
    });
    return OkStatus();
  }

  Status Linear(const LinearArgs& args) override {
    CheckArgs(args, DType::kBf16);
    const ScopedFlushSubnormals flush;
    return args.x.rows == 0 ? OkStatus() : linear_.Run(args);
  }

  Status Rope(const RopeArgs& args) override {
    CheckArgs(args, DType::kBf16);
    if (args.is_interleaved && args.head_dim > kMaxInterleavedDim) {
      return Unsupported("interleaved rope over {} dims on {}: at most {}", args.head_dim, name(),
                         kMaxInterleavedDim);
    }
    const auto rope = args.is_interleaved ? path_.rows.rope_interleaved : path_.rows.rope;
    const int64_t half = args.head_dim / 2;
    const int64_t stride = args.head_stride == 0 ? args.head_dim : args.head_stride;
    ForRows(args.x.rows, args.num_heads * args.head_dim, [&](int64_t t) {
      const int64_t first = args.positions[static_cast<size_t>(t)] * half;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        rope(args.cos.data() + first, args.sin.data() + first, args.head_dim,
             Bf16Row(args.x, t) + h * stride);
      }
    });
    return OkStatus();
  }

  Status SiluMul(const SiluMulArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.y.rows, args.y.cols, [&](int64_t r) {
      path_.rows.silu_mul(Bf16Row(args.gate, r), Bf16Row(args.up, r), args.y.cols,
                          Bf16Row(args.y, r));
    });
    return OkStatus();
  }

  Status GatherRows(const GatherRowsArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.y.rows, args.y.cols, [&](int64_t i) {
      std::memcpy(Bf16Row(args.y, i), Bf16Row(args.x, args.rows[static_cast<size_t>(i)]),
                  static_cast<size_t>(args.y.cols) * sizeof(uint16_t));
    });
    return OkStatus();
  }

  Status Copy(const CopyArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.y.rows, args.y.cols, [&](int64_t r) {
      std::memcpy(Bf16Row(args.y, r), Bf16Row(args.x, r),
                  static_cast<size_t>(args.y.cols) * sizeof(uint16_t));
    });
    return OkStatus();
  }

  Status GroupedLinear(const GroupedLinearArgs& args) override {
    CheckArgs(args, DType::kBf16);
    const ScopedFlushSubnormals flush;
    return args.source_rows.empty() ? OkStatus() : linear_.RunGrouped(args);
  }

  Status Route(const RouteArgs& args) override {
    CheckArgs(args, DType::kBf16);
    if (args.logits.cols > kMaxExperts) {
      return Unsupported("routing over {} experts on {}: at most {}", args.logits.cols, name(),
                         kMaxExperts);
    }
    ForRows(args.logits.rows, args.logits.cols * args.top_k,
            [&](int64_t t) { RouteToken(path_, args, t); });
    return OkStatus();
  }

  Status SortByExpert(const SortByExpertArgs& args) override {
    octavo::SortByExpert(args);
    return OkStatus();
  }

  Status Combine(const CombineArgs& args) override {
    CheckArgs(args, DType::kBf16);
    ForRows(args.y.rows, args.y.cols * args.top_k, [&](int64_t t) {
      const int64_t slot = t * args.top_k;
      path_.rows.combine({.x = Bf16Row(args.x, 0),
                          .x_stride = args.x.stride,
                          .rows = args.row_of_slot.data() + slot,
                          .weights = args.weights.data() + slot,
                          .top_k = args.top_k,
                          .shared = args.shared.data == nullptr ? nullptr : Bf16Row(args.shared, t),
                          .n = args.y.cols,
                          .y = Bf16Row(args.y, t)});
    });
    return OkStatus();
  }

  Status KvStore(const KvStoreArgs& args) override {
    CheckArgs(args, DType::kBf16);
    CHECK(args.kv.page_bytes == KvPageBytes(args.kv.shape));
    const ScopedFlushSubnormals flush;
    StoreKv(path_, args, &pool_);
    return OkStatus();
  }

  Status Attention(const AttentionArgs& args) override {
    CheckArgs(args, DType::kBf16);
    CHECK(args.kv.page_bytes == KvPageBytes(args.kv.shape));
    const ScopedFlushSubnormals flush;
    return attention_.Run(args);
  }

  Status SoftmaxStats(const SoftmaxStatsArgs& args) override {
    CheckArgs(args);
    ForRows(args.x.rows, args.x.cols, [&](int64_t r) {
      const float* x = reinterpret_cast<const float*>(args.x.data) + r * args.x.stride;
      const float max = path_.rows.max(x, args.x.cols);
      args.max[static_cast<size_t>(r)] = max;
      args.sum[static_cast<size_t>(r)] = path_.rows.exp_sum(x, args.x.cols, max);
    });
    return OkStatus();
  }

 private:
  // Calls body(row) for every row, by the pool when there is enough to do.
  template <typename Body>
  void ForRows(int64_t rows, int64_t cols, Body body) {
    const ScopedFlushSubnormals flush;
    const auto range = [&](int64_t begin, int64_t end, int /*worker*/) {
      for (int64_t r = begin; r < end; ++r) {
        body(r);
      }
    };
    if (rows * cols < kParallelElems) {
      range(0, rows, 0);
    } else {
      pool_.ParallelFor(rows, range);
    }
  }

  CpuPath path_;
  ThreadPool pool_;
  LinearOp linear_;
  AttentionOp attention_;
};

}  // namespace

std::unique_ptr<Backend> MakeBackendOfPath(const CpuPath& path, int num_threads) {
  return std::make_unique<CpuBackend>(path, num_threads);
}

}  // namespace octavo::cpu
