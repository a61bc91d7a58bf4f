// The paged KV cache and attention of the reference backend.

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
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::reference {

// A page is [kv heads]{K [tokens][head_dim], V [tokens][value_dim]} of A.
std::byte* ReferenceBackend::KvRow(const KvLayer& kv, const Segment& segment, int64_t position,
                                   int64_t head, bool is_value) const {
  const int64_t page = segment.page_table[static_cast<size_t>(position / kPageTokens)];
  const int64_t t = position % kPageTokens;
  const int64_t head_dim = kv.shape.head_dim;
  const int64_t value_dim = kv.shape.ValueDim();
  const int64_t elem = head * kPageTokens * (head_dim + value_dim) +
                       (is_value ? kPageTokens * head_dim + t * value_dim : t * head_dim);
  return kv.pages + page * kv.page_bytes + elem * DTypeBytes(activation_dtype());
}

Status ReferenceBackend::KvStore(const KvStoreArgs& args) {
  CheckArgs(args, activation_dtype());
  CHECK(args.kv.page_bytes == KvPageBytes(args.kv.shape));
  const int64_t head_dim = args.kv.shape.head_dim;
  const int64_t value_dim = args.kv.shape.ValueDim();
  const int64_t elem_bytes = DTypeBytes(activation_dtype());
  for (const Segment& segment : args.segments) {
    for (int64_t i = 0; i < segment.num_rows; ++i) {
      const int64_t row = segment.first_row + i;
      const int64_t position = segment.first_position + i;
      for (int64_t h = 0; h < args.kv.shape.num_kv_heads; ++h) {
        std::memcpy(KvRow(args.kv, segment, position, h, false), RowData(args.k, row, h * head_dim),
                    static_cast<size_t>(head_dim * elem_bytes));
        std::memcpy(KvRow(args.kv, segment, position, h, true), RowData(args.v, row, h * value_dim),
                    static_cast<size_t>(value_dim * elem_bytes));
      }
    }
  }
  return OkStatus();
}

// Keys as rows and values as columns of FP32, zero-padded to whole tiles.
void ReferenceBackend::LoadContext(const AttentionArgs& args, const Segment& segment,
                                   int64_t kv_head, WorkerScratch* scratch) const {
  const int64_t head_dim = args.kv.shape.head_dim;
  const int64_t value_dim = args.kv.shape.ValueDim();
  const int64_t depth = PadTo(head_dim, kTileDepth);
  const int64_t context = segment.first_position + segment.num_rows;
  const int64_t tokens = PadTo(context, kTileDepth);
  std::fill_n(scratch->keys.begin(), tokens * depth, 0.0F);
  std::fill_n(scratch->values.begin(), value_dim * tokens, 0.0F);
  float* row = scratch->row.data();
  for (int64_t j = 0; j < context; ++j) {
    const Activations key{activation_dtype(), KvRow(args.kv, segment, j, kv_head, false), 1,
                          head_dim, head_dim};
    LoadRow(key, 0, 0, head_dim, scratch->keys.data() + j * depth);
    const Activations value{activation_dtype(), KvRow(args.kv, segment, j, kv_head, true), 1,
                            value_dim, value_dim};
    LoadRow(value, 0, 0, value_dim, row);
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
