// The paged KV cache and attention of the reference backend.

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/kv_codes.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::reference {

namespace {

// A page is [kv heads]{K [tokens][head_dim], V [tokens][value_dim]} of A or codes, for kF8E4m3
// followed by scale codes {K [tokens], V [tokens]} of that head.
struct KvPlace {
  std::byte* data = nullptr;
  std::byte* scale = nullptr;  // kF8E4m3.
  int64_t dim = 0;
};

bool IsFp8(const KvShape& shape) { return shape.dtype == DType::kF8E4m3; }

int64_t HeadBytes(const KvShape& shape, DType activation) {
  const int64_t dims = shape.head_dim + shape.ValueDim();
  return kPageTokens * (IsFp8(shape) ? dims + 2 : dims * DTypeBytes(activation));
}

struct KvIndex {
  int64_t position = 0;
  int64_t kv_head = 0;
  bool is_value = false;
};

KvPlace Place(const KvLayer& kv, DType activation, const Segment& segment, const KvIndex& index) {
  const KvShape& shape = kv.shape;
  const int64_t page = segment.page_table[static_cast<size_t>(index.position / kPageTokens)];
  const int64_t t = index.position % kPageTokens;
  const int64_t elem_bytes = IsFp8(shape) ? 1 : DTypeBytes(activation);
  std::byte* head = kv.pages + page * kv.page_bytes + index.kv_head * HeadBytes(shape, activation);
  std::byte* values = head + kPageTokens * shape.head_dim * elem_bytes;
  std::byte* scales = values + kPageTokens * shape.ValueDim() * elem_bytes;
  if (index.is_value) {
    return {values + t * shape.ValueDim() * elem_bytes, scales + kPageTokens + t, shape.ValueDim()};
  }
  return {head + t * shape.head_dim * elem_bytes, scales + t, shape.head_dim};
}

float MaxMagnitude(const float* x, int64_t n) {
  float max = 0.0F;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(x[i])) {
      return std::numeric_limits<float>::infinity();
    }
    max = std::max(max, std::fabs(x[i]));
  }
  return max;
}

void WriteRow(const KvShape& shape, DType activation, const float* x, const KvPlace& to) {
  if (!IsFp8(shape)) {
    StoreRow({activation, to.data, 1, to.dim, to.dim}, 0, 0, to.dim, x);
    return;
  }
  const float amax = MaxMagnitude(x, to.dim);
  const uint8_t scale = std::isfinite(amax) ? KvScaleCode(amax) : uint8_t{127};
  *to.scale = static_cast<std::byte>(scale);
  for (int64_t d = 0; d < to.dim; ++d) {
    to.data[d] = static_cast<std::byte>(FloatToE4m3(x[d] * E8m0Reciprocal(scale)));
  }
}

void ReadRow(const KvShape& shape, DType activation, const KvPlace& from, float* x) {
  if (!IsFp8(shape)) {
    LoadRow({activation, from.data, 1, from.dim, from.dim}, 0, 0, from.dim, x);
    return;
  }
  const float scale = E8m0ToFloat(static_cast<uint8_t>(*from.scale));
  for (int64_t d = 0; d < from.dim; ++d) {
    x[d] = E4m3ToFloat(static_cast<uint8_t>(from.data[d])) * scale;
  }
}

}  // namespace

int64_t ReferenceBackend::KvPageBytes(const KvShape& shape) const {
  return shape.num_kv_heads * HeadBytes(shape, activation_dtype());
}

Status ReferenceBackend::KvStore(const KvStoreArgs& args) {
  CheckArgs(args, activation_dtype());
  CHECK(args.kv.page_bytes == KvPageBytes(args.kv.shape));
  if (IsFp8(args.kv.shape) && !is_serving()) {
    return Unsupported("FP8 KV cache on {}", name());
  }
  const OpScope scope(*this);
  const int64_t head_dim = args.kv.shape.head_dim;
  const int64_t value_dim = args.kv.shape.ValueDim();
  const float end =
      IsFp8(args.kv.shape) ? kKvF8MagnitudeEnd : std::numeric_limits<float>::infinity();
  ReserveRow(head_dim + value_dim);
  float* k = workers_[0].row.data();
  float* v = k + head_dim;
  const auto store = [&](const Segment& segment, int64_t i, int64_t h) {
    const int64_t position = segment.first_position + i;
    LoadRow(args.k, segment.first_row + i, h * head_dim, head_dim, k);
    LoadRow(args.v, segment.first_row + i, h * value_dim, value_dim, v);
    if (!(MaxMagnitude(k, head_dim) < end && MaxMagnitude(v, value_dim) < end)) {
      std::fill_n(k, head_dim, std::numeric_limits<float>::quiet_NaN());
      std::fill_n(v, value_dim, 0.0F);
    }
    WriteRow(args.kv.shape, activation_dtype(), k,
             Place(args.kv, activation_dtype(), segment, {position, h, false}));
    WriteRow(args.kv.shape, activation_dtype(), v,
             Place(args.kv, activation_dtype(), segment, {position, h, true}));
  };
  for (const Segment& segment : args.segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      for (int64_t h = 0; h < args.kv.shape.num_kv_heads; ++h) {
        store(segment, i, h);
      }
    }
  }
  return OkStatus();
}

// Keys as rows and values as columns of FP32, zero-padded to whole tiles.
void ReferenceBackend::LoadContext(const AttentionArgs& args, const Segment& segment,
                                   int64_t kv_head, WorkerScratch* scratch) const {
  const KvShape& shape = args.kv.shape;
  const int64_t value_dim = shape.ValueDim();
  const int64_t depth = PadTo(shape.head_dim, kTileDepth);
  const int64_t context = segment.first_position + segment.num_rows;
  const int64_t tokens = PadTo(context, kTileDepth);
  std::fill_n(scratch->keys.begin(), tokens * depth, 0.0F);
  std::fill_n(scratch->values.begin(), value_dim * tokens, 0.0F);
  float* row = scratch->row.data();
  for (int64_t j = 0; j < context; ++j) {
    ReadRow(shape, activation_dtype(),
            Place(args.kv, activation_dtype(), segment, {j, kv_head, false}),
            scratch->keys.data() + j * depth);
    ReadRow(shape, activation_dtype(),
            Place(args.kv, activation_dtype(), segment, {j, kv_head, true}), row);
    for (int64_t d = 0; d < value_dim; ++d) {
      scratch->values[static_cast<size_t>(d * tokens + j)] = row[d];
    }
  }
}

void ReferenceBackend::AttendRow(const AttentionArgs& args, const Segment& segment, int64_t row,
                                 int64_t head, WorkerScratch* scratch) const {
  const int64_t head_dim = args.kv.shape.head_dim;
  const int64_t value_dim = args.kv.shape.ValueDim();
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
  for (int64_t d = 0; d < value_dim; ++d) {
    const float o = math_.dot(s, scratch->values.data() + d * stride, padded_keys);
    const float y = o / sum + 0.0F;
    StoreRow(args.y, row, head * value_dim + d, 1, &y);
  }
}

Status ReferenceBackend::Attention(const AttentionArgs& args) {
  CheckArgs(args, activation_dtype());
  CHECK(args.kv.page_bytes == KvPageBytes(args.kv.shape));
  if (IsFp8(args.kv.shape) && !is_serving()) {
    return Unsupported("FP8 KV cache on {}", name());
  }
  const OpScope scope(*this);
  const int64_t max_dim = std::max(args.kv.shape.head_dim, args.kv.shape.ValueDim());
  ReserveRow(PadTo(max_dim, kTileDepth));
  for (const Segment& segment : args.segments) {
    ReserveContext(segment.first_position + segment.num_rows, max_dim);
  }
  const int64_t group = args.num_heads / args.kv.shape.num_kv_heads;
  const int64_t num_items = static_cast<int64_t>(args.segments.size()) * args.kv.shape.num_kv_heads;
  pool_.ParallelFor(num_items, [&](int64_t begin, int64_t end, int worker) {
    WorkerScratch& scratch = workers_[static_cast<size_t>(worker)];
    for (int64_t item = begin; item < end; ++item) {
      const Segment& segment =
          args.segments[static_cast<size_t>(item / args.kv.shape.num_kv_heads)];
      const int64_t kv_head = item % args.kv.shape.num_kv_heads;
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

}  // namespace octavo::reference
