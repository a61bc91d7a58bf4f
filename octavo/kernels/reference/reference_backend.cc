// Rows, weights and everything that is not linear layers, attention or experts.

#include "octavo/kernels/reference/reference_backend.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/row_math.h"
#include "octavo/kernels/sort_by_expert.h"

namespace octavo::reference {

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
  made.tensor_scale = canonical.tensor_scale;
  made.tensor_scale_divides = canonical.tensor_scale_divides;
  made.input = canonical.input;
  made.input_scale = canonical.input_scale;
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
  const int64_t row_bytes = packed.codes.num_bytes() / packed.rows;
  CHECK(first_row >= 0);
  CHECK(first_row + num_rows <= packed.rows);
  CHECK(static_cast<int64_t>(codes.size()) == num_rows * row_bytes);
  std::memcpy(codes.data(), packed.codes.data() + first_row * row_bytes, codes.size());
  return OkStatus();
}

Status ReferenceBackend::UnpackScales(const PackedMatrix& packed,
                                      std::span<std::byte> scales) const {
  const std::span<const std::byte> stored = packed.scales.bytes();
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

Status ReferenceBackend::Rope(const RopeArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  const int64_t dim = args.head_dim;
  const int64_t half = dim / 2;
  const int64_t stride = args.head_stride == 0 ? dim : args.head_stride;
  ReserveRow(2 * dim);
  pool_.ParallelFor(args.x.rows, [&](int64_t begin, int64_t end, int worker) {
    float* head = workers_[static_cast<size_t>(worker)].row.data();
    float* loaded = head + dim;
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = args.positions[static_cast<size_t>(t)] * half;
      for (int64_t h = 0; h < args.num_heads; ++h) {
        LoadRow(args.x, t, h * stride, dim, loaded);
        for (int64_t i = 0; i < half; ++i) {
          head[i] = args.is_interleaved ? loaded[2 * i] : loaded[i];
          head[half + i] = args.is_interleaved ? loaded[2 * i + 1] : loaded[half + i];
        }
        math_.rope(head, args.cos.data() + first, args.sin.data() + first, dim);
        StoreRow(args.x, t, h * stride, dim, head);
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

Status ReferenceBackend::Copy(const CopyArgs& args) {
  CheckArgs(args, activation_dtype());
  for (int64_t r = 0; r < args.y.rows; ++r) {
    std::memcpy(RowData(args.y, r, 0), RowData(args.x, r, 0),
                static_cast<size_t>(args.y.cols * DTypeBytes(args.y.dtype)));
  }
  return OkStatus();
}

Status ReferenceBackend::SortByExpert(const SortByExpertArgs& args) {
  octavo::SortByExpert(args);
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

}  // namespace octavo::reference

namespace octavo {

std::unique_ptr<Backend> MakeReferenceBackend(Recipe recipe, int num_threads) {
  return std::make_unique<reference::ReferenceBackend>(recipe, num_threads);
}

}  // namespace octavo
