#pragma once
// The reference backend: scalar loops over rows, in either recipe. The arithmetic is in row_math.h;
// here is only where operands lie. Weights stay in their canonical layout.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::reference {

inline constexpr int64_t kTileDepth = 32;

inline int64_t PadTo(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

inline void LoadBf16(const std::byte* from, int64_t n, float* to) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = Bf16ToFloat(bits[i]);
  }
}

inline std::byte* RowData(const Activations& x, int64_t row, int64_t col) {
  return x.data + (row * x.stride + col) * DTypeBytes(x.dtype);
}

// x[row, col .. col + n) widened to FP32.
inline void LoadRow(const Activations& x, int64_t row, int64_t col, int64_t n, float* to) {
  if (x.dtype == DType::kBf16) {
    LoadBf16(RowData(x, row, col), n, to);
  } else {
    std::memcpy(to, RowData(x, row, col), static_cast<size_t>(n) * sizeof(float));
  }
}

// y[row, col .. col + n) = A(from).
inline void StoreRow(const Activations& y, int64_t row, int64_t col, int64_t n, const float* from) {
  if (y.dtype == DType::kBf16) {
    auto* bits = reinterpret_cast<uint16_t*>(RowData(y, row, col));
    for (int64_t i = 0; i < n; ++i) {
      bits[i] = FloatToBf16(from[i]);
    }
  } else {
    std::memcpy(RowData(y, row, col), from, static_cast<size_t>(n) * sizeof(float));
  }
}

inline void GrowTo(std::vector<float>* buffer, int64_t num_floats) {
  if (static_cast<int64_t>(buffer->size()) < num_floats) {
    buffer->resize(static_cast<size_t>(num_floats));
  }
}

class ReferenceBackend final : public Backend {
 public:
  ReferenceBackend(Recipe recipe, int num_threads)
      : recipe_(recipe),
        math_(recipe == Recipe::kServing ? ServingRowMath() : Fp32RowMath()),
        pool_(num_threads, {.flush_subnormals = recipe == Recipe::kServing}),
        workers_(static_cast<size_t>(num_threads)) {}

  std::string_view name() const override {
    return is_serving() ? "reference/serving" : "reference/fp32";
  }
  std::string_view recipe() const override { return is_serving() ? "serving-1" : "fp32-1"; }
  DType activation_dtype() const override { return is_serving() ? DType::kBf16 : DType::kF32; }
  ThreadPool& pool() override { return pool_; }
  InputRanges input_ranges() const override { return input_ranges_; }

  Status Reserve(const Limits& limits) override;
  Status Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const override;
  Status UnpackCodes(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                     std::span<std::byte> codes) const override;
  Status UnpackScales(const PackedMatrix& packed, std::span<std::byte> scales) const override;
  int64_t KvPageBytes(const KvShape& shape) const override;

  Status Embed(const EmbedArgs& args) override;
  Status RmsNorm(const RmsNormArgs& args) override;
  Status Add(const AddArgs& args) override;
  Status Linear(const LinearArgs& args) override;
  Status Rope(const RopeArgs& args) override;
  Status SiluMul(const SiluMulArgs& args) override;
  Status GatherRows(const GatherRowsArgs& args) override;
  Status Copy(const CopyArgs& args) override;
  Status GroupedLinear(const GroupedLinearArgs& args) override;
  Status Route(const RouteArgs& args) override;
  Status SortByExpert(const SortByExpertArgs& args) override;
  Status Combine(const CombineArgs& args) override;
  Status KvStore(const KvStoreArgs& args) override;
  Status Attention(const AttentionArgs& args) override;
  Status SoftmaxStats(const SoftmaxStatsArgs& args) override;

 private:
  // FP32 scratch of one worker; grown when an op needs more than Reserve was told.
  struct WorkerScratch {
    std::vector<float> row;     // Rows of an op: 3 * width.
    std::vector<float> keys;    // [context, head_dim], both padded to tiles.
    std::vector<float> values;  // Transposed: [head_dim, context].
    std::vector<float> scores;  // [context].
  };

  // Runs an op under the recipe's subnormal mode; pool workers are in it for good.
  class OpScope {
   public:
    explicit OpScope(const ReferenceBackend& backend) {
      if (backend.is_serving()) {
        guard_.emplace();
      }
    }

   private:
    std::optional<ScopedFlushSubnormals> guard_;
  };

  bool is_serving() const { return recipe_ == Recipe::kServing; }
  void ReserveRow(int64_t num_floats);
  // The first worker's place for one row of x.
  std::span<float> RowFor(const Activations& x) {
    ReserveRow(x.cols);
    return {workers_.front().row.data(), static_cast<size_t>(x.cols)};
  }
  void ReserveContext(int64_t context, int64_t head_dim);
  void LoadLinearInput(const Activations& x, InputForm form, float input_scale);
  void CountRow(const Activations& x, const PackedMatrix& weight, float scale, int64_t t);
  void CountRows(const Activations& x, const PackedMatrix& weight);
  void CountExperts(const GroupedLinearArgs& args);
  float LinearOutput(const PackedMatrix& weight, const float* w, int64_t n, int64_t t) const;
  void LinearRows(const LinearPart& part, std::span<const int32_t> source_rows, int64_t first_row,
                  int64_t last_row);
  void LoadContext(const AttentionArgs& args, const Segment& segment, int64_t kv_head,
                   WorkerScratch* scratch) const;
  void AttendRow(const AttentionArgs& args, const Segment& segment, int64_t row, int64_t head,
                 WorkerScratch* scratch) const;

  Recipe recipe_;
  const RowMath& math_;
  ThreadPool pool_;
  std::vector<WorkerScratch> workers_;
  std::vector<float> input_;         // Linear input [tokens, padded in], widened or quantized.
  std::vector<float> input_scales_;  // kFp8Group: [tokens, blocks].
  std::vector<float> row_factors_;   // [tokens].
  InputRanges input_ranges_;
};

}  // namespace octavo::reference
