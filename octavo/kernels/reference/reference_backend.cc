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
#include "octavo/kernels/fp8_activation.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo {
namespace {

constexpr int64_t kTileDepth = 32;

int64_t PadTo(int64_t value, int64_t step) { return (value + step - 1) / step * step; }

void LoadBf16(const std::byte* from, int64_t n, float* to) {
  const auto* bits = reinterpret_cast<const uint16_t*>(from);
  for (int64_t i = 0; i < n; ++i) {
    to[i] = Bf16ToFloat(bits[i]);
  }
}

std::byte* RowData(const Activations& x, int64_t row, int64_t col) {
  return x.data + (row * x.stride + col) * DTypeBytes(x.dtype);
}

// x[row, col .. col + n) widened to FP32.
void LoadRow(const Activations& x, int64_t row, int64_t col, int64_t n, float* to) {
  if (x.dtype == DType::kBf16) {
    LoadBf16(RowData(x, row, col), n, to);
  } else {
    std::memcpy(to, RowData(x, row, col), static_cast<size_t>(n) * sizeof(float));
  }
}

// y[row, col .. col + n) = A(from).
void StoreRow(const Activations& y, int64_t row, int64_t col, int64_t n, const float* from) {
  if (y.dtype == DType::kBf16) {
    auto* bits = reinterpret_cast<uint16_t*>(RowData(y, row, col));
    for (int64_t i = 0; i < n; ++i) {
      bits[i] = FloatToBf16(from[i]);
    }
  } else {
    std::memcpy(RowData(y, row, col), from, static_cast<size_t>(n) * sizeof(float));
  }
}

class ReferenceBackend final : public Backend {
 public:
  ReferenceBackend(Recipe recipe, int num_threads)
      : recipe_(recipe),
        math_(recipe == Recipe::kServing ? ServingRowMath() : Fp32RowMath()),
        pool_(num_threads, /*flush_subnormals=*/recipe == Recipe::kServing),
        workers_(static_cast<size_t>(num_threads)) {}

  std::string_view name() const override {
    return is_serving() ? "reference/serving" : "reference/fp32";
  }
  std::string_view recipe() const override { return is_serving() ? "serving-1" : "fp32-1"; }
  DType activation_dtype() const override { return is_serving() ? DType::kBf16 : DType::kF32; }
  ThreadPool& pool() override { return pool_; }

  Status Reserve(const Limits& limits) override;
  Status Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const override;
  Status UnpackCodes(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                     std::span<std::byte> codes) const override;
  Status UnpackScales(const PackedMatrix& packed, std::span<float> scales) const override;
  int64_t KvPageBytes(int64_t num_kv_heads, int64_t head_dim) const override {
    return num_kv_heads * 2 * kPageTokens * head_dim * DTypeBytes(activation_dtype());
  }

  Status Embed(const EmbedArgs& args) override;
  Status RmsNorm(const RmsNormArgs& args) override;
  Status Add(const AddArgs& args) override;
  Status Linear(const LinearArgs& args) override;
  Status Rope(const RopeArgs& args) override;
  Status SiluMul(const SiluMulArgs& args) override;
  Status GatherRows(const GatherRowsArgs& args) override;
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
  std::byte* KvRow(const KvLayer& kv, const Segment& segment, int64_t position, int64_t head,
                   bool is_value) const;
  void ReserveRow(int64_t num_floats);
  void ReserveContext(int64_t context, int64_t head_dim);
  void LoadLinearInput(const Activations& x, bool quantize);
  void LinearOutputs(const LinearArgs& args, const LinearPart& part);
  void LoadContext(const AttentionArgs& args, const Segment& segment, int64_t kv_head,
                   WorkerScratch* scratch) const;
  void AttendRow(const AttentionArgs& args, const Segment& segment, int64_t row, int64_t head,
                 WorkerScratch* scratch) const;

  Recipe recipe_;
  const RowMath& math_;
  ThreadPool pool_;
  std::vector<WorkerScratch> workers_;
  std::vector<float> input_;         // Linear input [tokens, padded in], widened or quantized.
  std::vector<float> input_scales_;  // FP8: [tokens, blocks].
};

void GrowTo(std::vector<float>* buffer, int64_t num_floats) {
  if (static_cast<int64_t>(buffer->size()) < num_floats) {
    buffer->resize(static_cast<size_t>(num_floats));
  }
}

void ReferenceBackend::ReserveRow(int64_t num_floats) {
  for (WorkerScratch& worker : workers_) {
    GrowTo(&worker.row, num_floats);
  }
}

void ReferenceBackend::ReserveContext(int64_t context, int64_t head_dim) {
  const int64_t tokens = PadTo(context, kTileDepth);
  const int64_t depth = PadTo(head_dim, kTileDepth);
  for (WorkerScratch& worker : workers_) {
    GrowTo(&worker.keys, tokens * depth);
    GrowTo(&worker.values, tokens * depth);
    GrowTo(&worker.scores, tokens);
  }
}

Status ReferenceBackend::Reserve(const Limits& limits) {
  const int64_t width = PadTo(limits.max_width, kTileDepth);
  GrowTo(&input_, limits.max_tokens * width);
  GrowTo(&input_scales_, limits.max_tokens * NumFp8Blocks(width));
  ReserveRow(3 * std::max(width, PadTo(limits.max_head_dim, kTileDepth)));
  ReserveContext(limits.max_context, limits.max_head_dim);
  return OkStatus();
}

Status ReferenceBackend::Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const {
  RETURN_IF_ERROR(CheckCanonical(canonical));
  PackedMatrix made;
  made.format = canonical.format;
  made.rows = canonical.rows;
  made.cols = canonical.cols;
  ASSIGN_OR_RETURN(made.codes,
                   Buffer::AllocateHost(static_cast<int64_t>(canonical.codes.size_bytes())));
  ASSIGN_OR_RETURN(made.scales,
                   Buffer::AllocateHost(static_cast<int64_t>(canonical.scales.size_bytes())));
  std::memcpy(made.codes.data(), canonical.codes.data(), canonical.codes.size_bytes());
  if (!canonical.scales.empty()) {
    std::memcpy(made.scales.data(), canonical.scales.data(), canonical.scales.size_bytes());
  }
  *packed = std::move(made);
  return OkStatus();
}

Status ReferenceBackend::UnpackCodes(const PackedMatrix& packed, int64_t first_row,
                                     int64_t num_rows, std::span<std::byte> codes) const {
  const int64_t row_bytes = packed.cols * (packed.format == WeightFormat::kBf16 ? 2 : 1);
  CHECK(first_row >= 0);
  CHECK(first_row + num_rows <= packed.rows);
  CHECK(static_cast<int64_t>(codes.size()) == num_rows * row_bytes);
  std::memcpy(codes.data(), packed.codes.data() + first_row * row_bytes, codes.size());
  return OkStatus();
}

Status ReferenceBackend::UnpackScales(const PackedMatrix& packed, std::span<float> scales) const {
  const std::span<const float> stored = packed.scales.As<float>();
  CHECK(scales.size() == stored.size());
  std::copy(stored.begin(), stored.end(), scales.begin());
  return OkStatus();
}

Status ReferenceBackend::Embed(const EmbedArgs& args) {
  CheckArgs(args, activation_dtype());
  ReserveRow(args.y.cols);
  const int64_t hidden = args.y.cols;
  for (int64_t t = 0; t < args.y.rows; ++t) {
    float* row = workers_[0].row.data();
    LoadBf16(args.table->codes.data() + args.ids[static_cast<size_t>(t)] * hidden * 2, hidden, row);
    StoreRow(args.y, t, 0, hidden, row);
  }
  return OkStatus();
}

Status ReferenceBackend::RmsNorm(const RmsNormArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t n = args.x.cols;
  ReserveRow(2 * n);
  pool_.ParallelFor(args.x.rows, [&](int64_t begin, int64_t end, int worker) {
    float* row = workers_[static_cast<size_t>(worker)].row.data();
    float* weight = row + n;
    LoadBf16(args.weight->codes.data(), n, weight);
    for (int64_t r = begin; r < end; ++r) {
      LoadRow(args.x, r, 0, n, row);
      math_.rms_norm(row, weight, n, args.eps, row);
      StoreRow(args.y, r, 0, n, row);
    }
  });
  return OkStatus();
}

Status ReferenceBackend::Add(const AddArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t n = args.x.cols;
  ReserveRow(2 * n);
  pool_.ParallelFor(args.x.rows, [&](int64_t begin, int64_t end, int worker) {
    float* x = workers_[static_cast<size_t>(worker)].row.data();
    float* delta = x + n;
    for (int64_t r = begin; r < end; ++r) {
      LoadRow(args.x, r, 0, n, x);
      LoadRow(args.delta, r, 0, n, delta);
      math_.add(x, delta, n);
      StoreRow(args.x, r, 0, n, x);
    }
  });
  return OkStatus();
}

// Fills input_ (rows padded with zeros to whole tiles) and, when quantizing, input_scales_.
void ReferenceBackend::LoadLinearInput(const Activations& x, bool quantize) {
  const int64_t depth = PadTo(x.cols, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(x.cols);
  GrowTo(&input_, x.rows * depth);
  GrowTo(&input_scales_, x.rows * num_blocks);
  pool_.ParallelFor(x.rows, [&](int64_t begin, int64_t end, int /*worker*/) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = input_.data() + t * depth;
      LoadRow(x, t, 0, x.cols, row);
      std::fill(row + x.cols, row + depth, 0.0F);
      for (int64_t block = 0; quantize && block < num_blocks; ++block) {
        const int64_t first = block * kActivationGroup;
        const auto size = static_cast<size_t>(std::min(kActivationGroup, x.cols - first));
        input_scales_[static_cast<size_t>(t * num_blocks + block)] =
            QuantizeFp8Group({row + first, size}, {row + first, size});
      }
    }
  });
}

void ReferenceBackend::LinearOutputs(const LinearArgs& args, const LinearPart& part) {
  const PackedMatrix& weight = *part.weight;
  const int64_t in = args.x.cols;
  const int64_t depth = PadTo(in, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(in);
  pool_.ParallelFor(weight.rows, [&](int64_t begin, int64_t end, int worker) {
    float* w = workers_[static_cast<size_t>(worker)].row.data();
    std::fill(w + in, w + depth, 0.0F);
    for (int64_t n = begin; n < end; ++n) {
      const float* sw = nullptr;
      if (weight.format == WeightFormat::kBf16) {
        LoadBf16(weight.codes.data() + n * in * 2, in, w);
      } else {
        const auto* codes = reinterpret_cast<const uint8_t*>(weight.codes.data()) + n * in;
        std::transform(codes, codes + in, w, E4m3ToFloat);
        sw = weight.scales.As<float>().data() + n / kFp8BlockDim * num_blocks;
      }
      for (int64_t t = 0; t < args.x.rows; ++t) {
        const float* x = input_.data() + t * depth;
        const float y = sw == nullptr
                            ? math_.dot(x, w, depth)
                            : math_.dot_fp8(x, w, depth, input_scales_.data() + t * num_blocks, sw);
        StoreRow(part.y, t, n, 1, &y);
      }
    }
  });
}

Status ReferenceBackend::Linear(const LinearArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  ReserveRow(PadTo(args.x.cols, kTileDepth));
  std::optional<bool> loaded_quantized;
  for (const LinearPart& part : args.parts) {
    const bool quantize = is_serving() && part.weight->format == WeightFormat::kFp8;
    if (loaded_quantized != quantize) {
      LoadLinearInput(args.x, quantize);
      loaded_quantized = quantize;
    }
    LinearOutputs(args, part);
  }
  return OkStatus();
}

Status ReferenceBackend::Rope(const RopeArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t half = args.head_dim / 2;
  ReserveRow(args.head_dim);
  pool_.ParallelFor(args.x.rows, [&](int64_t begin, int64_t end, int worker) {
    float* head = workers_[static_cast<size_t>(worker)].row.data();
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = args.positions[static_cast<size_t>(t)] * half;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        LoadRow(args.x, t, h * args.head_dim, args.head_dim, head);
        math_.rope(head, args.cos.data() + first, args.sin.data() + first, args.head_dim);
        StoreRow(args.x, t, h * args.head_dim, args.head_dim, head);
      }
    }
  });
  return OkStatus();
}

Status ReferenceBackend::SiluMul(const SiluMulArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t n = args.gate.cols;
  ReserveRow(2 * n);
  pool_.ParallelFor(args.gate.rows, [&](int64_t begin, int64_t end, int worker) {
    float* gate = workers_[static_cast<size_t>(worker)].row.data();
    float* up = gate + n;
    for (int64_t r = begin; r < end; ++r) {
      LoadRow(args.gate, r, 0, n, gate);
      LoadRow(args.up, r, 0, n, up);
      math_.silu_mul(gate, up, n, gate);
      StoreRow(args.y, r, 0, n, gate);
    }
  });
  return OkStatus();
}

Status ReferenceBackend::GatherRows(const GatherRowsArgs& args) {
  CheckArgs(args, activation_dtype());
  for (int64_t i = 0; i < args.y.rows; ++i) {
    std::memcpy(RowData(args.y, i, 0), RowData(args.x, args.rows[static_cast<size_t>(i)], 0),
                static_cast<size_t>(args.y.cols * DTypeBytes(args.y.dtype)));
  }
  return OkStatus();
}

// A page is [kv heads][K, V][tokens][head_dim] of A.
std::byte* ReferenceBackend::KvRow(const KvLayer& kv, const Segment& segment, int64_t position,
                                   int64_t head, bool is_value) const {
  const int64_t page = segment.page_table[static_cast<size_t>(position / kPageTokens)];
  const int64_t part = head * 2 + (is_value ? 1 : 0);
  const int64_t row = part * kPageTokens + position % kPageTokens;
  return kv.pages + page * kv.page_bytes + row * kv.head_dim * DTypeBytes(activation_dtype());
}

Status ReferenceBackend::KvStore(const KvStoreArgs& args) {
  CheckArgs(args, activation_dtype());
  CHECK(args.kv.page_bytes == KvPageBytes(args.kv.num_kv_heads, args.kv.head_dim));
  const int64_t head_dim = args.kv.head_dim;
  const auto head_bytes = static_cast<size_t>(head_dim * DTypeBytes(activation_dtype()));
  for (const Segment& segment : args.segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const int64_t row = segment.first_row + i;
      const int64_t position = segment.first_position + i;
      for (int64_t h = 0; h < args.kv.num_kv_heads; ++h) {
        std::memcpy(KvRow(args.kv, segment, position, h, false), RowData(args.k, row, h * head_dim),
                    head_bytes);
        std::memcpy(KvRow(args.kv, segment, position, h, true), RowData(args.v, row, h * head_dim),
                    head_bytes);
      }
    }
  }
  return OkStatus();
}

// Keys as rows and values as columns of FP32, zero-padded to whole tiles.
void ReferenceBackend::LoadContext(const AttentionArgs& args, const Segment& segment,
                                   int64_t kv_head, WorkerScratch* scratch) const {
  const int64_t head_dim = args.kv.head_dim;
  const int64_t depth = PadTo(head_dim, kTileDepth);
  const int64_t context = segment.first_position + segment.num_rows;
  const int64_t tokens = PadTo(context, kTileDepth);
  std::fill_n(scratch->keys.begin(), tokens * depth, 0.0F);
  std::fill_n(scratch->values.begin(), head_dim * tokens, 0.0F);
  float* row = scratch->row.data();
  for (int64_t j = 0; j < context; ++j) {
    const Activations key{activation_dtype(), KvRow(args.kv, segment, j, kv_head, false), 1,
                          head_dim, head_dim};
    LoadRow(key, 0, 0, head_dim, scratch->keys.data() + j * depth);
    const Activations value{activation_dtype(), KvRow(args.kv, segment, j, kv_head, true), 1,
                            head_dim, head_dim};
    LoadRow(value, 0, 0, head_dim, row);
    for (int64_t d = 0; d < head_dim; ++d) {
      scratch->values[static_cast<size_t>(d * tokens + j)] = row[d];
    }
  }
}

void ReferenceBackend::AttendRow(const AttentionArgs& args, const Segment& segment, int64_t row,
                                 int64_t head, WorkerScratch* scratch) const {
  const int64_t head_dim = args.kv.head_dim;
  const int64_t depth = PadTo(head_dim, kTileDepth);
  const int64_t stride = PadTo(segment.first_position + segment.num_rows, kTileDepth);
  const int64_t num_keys = segment.first_position + (row - segment.first_row) + 1;
  const int64_t padded_keys = PadTo(num_keys, kTileDepth);
  float* q = scratch->row.data();
  float* s = scratch->scores.data();

  LoadRow(args.q, row, head * head_dim, head_dim, q);
  std::fill(q + head_dim, q + depth, 0.0F);
  float max = -std::numeric_limits<float>::infinity();
  for (int64_t j = 0; j < num_keys; ++j) {
    s[j] = args.scale * math_.dot(q, scratch->keys.data() + j * depth, depth);
    max = s[j] > max ? s[j] : max;
  }
  const float sum = math_.exp_sum(s, num_keys, max, s);
  for (int64_t j = 0; is_serving() && j < num_keys; ++j) {
    s[j] = Bf16ToFloat(FloatToBf16(s[j]));
  }
  std::fill(s + num_keys, s + padded_keys, 0.0F);
  for (int64_t d = 0; d < head_dim; ++d) {
    const float o = math_.dot(s, scratch->values.data() + d * stride, padded_keys);
    const float y = o / sum + 0.0F;
    StoreRow(args.y, row, head * head_dim + d, 1, &y);
  }
}

Status ReferenceBackend::Attention(const AttentionArgs& args) {
  CheckArgs(args, activation_dtype());
  CHECK(args.kv.page_bytes == KvPageBytes(args.kv.num_kv_heads, args.kv.head_dim));
  const OpScope scope(*this);
  ReserveRow(PadTo(args.kv.head_dim, kTileDepth));
  for (const Segment& segment : args.segments) {
    ReserveContext(segment.first_position + segment.num_rows, args.kv.head_dim);
  }
  const int64_t group = args.num_heads / args.kv.num_kv_heads;
  const int64_t num_items = static_cast<int64_t>(args.segments.size()) * args.kv.num_kv_heads;
  pool_.ParallelFor(num_items, [&](int64_t begin, int64_t end, int worker) {
    WorkerScratch& scratch = workers_[static_cast<size_t>(worker)];
    for (int64_t item = begin; item < end; ++item) {
      const Segment& segment = args.segments[static_cast<size_t>(item / args.kv.num_kv_heads)];
      const int64_t kv_head = item % args.kv.num_kv_heads;
      LoadContext(args, segment, kv_head, &scratch);
      for (int64_t i = 0; i < segment.num_rows; ++i) {
        for (int64_t h = kv_head * group; h < (kv_head + 1) * group; ++h) {
          AttendRow(args, segment, segment.first_row + i, h, &scratch);
        }
      }
    }
  });
  return OkStatus();
}

Status ReferenceBackend::SoftmaxStats(const SoftmaxStatsArgs& args) {
  CheckArgs(args);
  const OpScope scope(*this);
  pool_.ParallelFor(args.x.rows, [&](int64_t begin, int64_t end, int /*worker*/) {
    for (int64_t r = begin; r < end; ++r) {
      const auto* x = reinterpret_cast<const float*>(RowData(args.x, r, 0));
      float max = -std::numeric_limits<float>::infinity();
      for (int64_t i = 0; i < args.x.cols; ++i) {
        max = x[i] > max ? x[i] : max;
      }
      max = max + 0.0F;
      args.max[static_cast<size_t>(r)] = max;
      args.sum[static_cast<size_t>(r)] = math_.exp_sum(x, args.x.cols, max, nullptr);
    }
  });
  return OkStatus();
}

}  // namespace

std::unique_ptr<Backend> MakeReferenceBackend(Recipe recipe, int num_threads) {
  return std::make_unique<ReferenceBackend>(recipe, num_threads);
}

}  // namespace octavo
