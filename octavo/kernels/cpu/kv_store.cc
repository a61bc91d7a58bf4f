// KvStore: every token to its place in its page.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "octavo/base/thread_pool.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kv_layout.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/kv_codes.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

constexpr uint16_t kBf16NaN = 0x7FC0;
constexpr uint8_t kScaleOfOne = 127;

// One token and kv head; t is its place in the page.
struct TokenHead {
  const uint16_t* k = nullptr;
  const uint16_t* v = nullptr;
  std::byte* head = nullptr;
  int64_t t = 0;
};

void StoreBf16(const KvLayout& layout, const TokenHead& token, bool is_finite) {
  auto* keys = reinterpret_cast<uint16_t*>(token.head);
  auto* values = reinterpret_cast<uint16_t*>(token.head + layout.ValuesAt());
  if (!is_finite) {
    for (int64_t d = 0; d < layout.head_dim; ++d) {
      keys[layout.KeyElem(token.t, d)] = kBf16NaN;
    }
    for (int64_t d = 0; d < layout.value_dim; ++d) {
      values[layout.ValueElem(token.t, d)] = 0;
    }
    return;
  }
  for (int64_t d = 0; d < layout.head_dim; d += 2) {
    std::memcpy(keys + layout.KeyElem(token.t, d), token.k + d, 2 * sizeof(uint16_t));
  }
  for (int64_t d = 0; d < layout.value_dim; ++d) {
    values[layout.ValueElem(token.t, d)] = token.v[d];
  }
}

// Elements that are encoded at a time.
constexpr int64_t kEncodeElems = 512;

void StoreFp8(const KvKernels& kernels, const KvLayout& layout, const TokenHead& token,
              const std::array<float, 2>& amax) {
  const bool is_finite = amax[0] < kKvF8MagnitudeEnd && amax[1] < kKvF8MagnitudeEnd;
  std::array<uint8_t, kEncodeElems> codes;
  auto* keys = reinterpret_cast<uint8_t*>(token.head);
  auto* values = reinterpret_cast<uint8_t*>(token.head + layout.ValuesAt());
  const uint8_t key_scale = is_finite ? KvScaleCode(amax[0]) : kScaleOfOne;
  const uint8_t value_scale = is_finite ? KvScaleCode(amax[1]) : kScaleOfOne;
  for (int64_t first = 0; first < layout.head_dim; first += kEncodeElems) {
    const int64_t n = std::min(kEncodeElems, layout.head_dim - first);
    codes.fill(kE4m3NaN);
    if (is_finite) {
      kernels.encode_e4m3(token.k + first, n, E8m0Reciprocal(key_scale), codes.data());
    }
    for (int64_t i = 0; i < n; i += 2) {
      std::memcpy(keys + layout.KeyElem(token.t, first + i), codes.data() + i, 2);
    }
  }
  for (int64_t first = 0; first < layout.value_dim; first += kEncodeElems) {
    const int64_t n = std::min(kEncodeElems, layout.value_dim - first);
    codes.fill(0);
    if (is_finite) {
      kernels.encode_e4m3(token.v + first, n, E8m0Reciprocal(value_scale), codes.data());
    }
    for (int64_t i = 0; i < n; ++i) {
      values[layout.ValueElem(token.t, first + i)] = codes[static_cast<size_t>(i)];
    }
  }
  token.head[layout.KeyScalesAt() + token.t] = static_cast<std::byte>(key_scale);
  token.head[layout.ValueScalesAt() + token.t] = static_cast<std::byte>(value_scale);
}

}  // namespace

void StoreKv(const CpuPath& path, const KvStoreArgs& args, ThreadPool* pool) {
  const KvLayout layout = KvLayout::Of(args.kv.shape);
  const auto store_row = [&](const Segment& segment, int64_t row) {
    const int64_t position = segment.first_position + row - segment.first_row;
    const int64_t page = segment.page_table[static_cast<size_t>(position / kPageTokens)];
    for (int64_t h = 0; h < args.kv.shape.num_kv_heads; ++h) {
      const TokenHead token{
          .k = Bf16Row(args.k, row) + h * layout.head_dim,
          .v = Bf16Row(args.v, row) + h * layout.value_dim,
          .head = args.kv.pages + page * args.kv.page_bytes + h * layout.HeadBytes(),
          .t = position % kPageTokens};
      const std::array<float, 2> amax = {path.inputs.finite_amax(token.k, layout.head_dim),
                                         path.inputs.finite_amax(token.v, layout.value_dim)};
      if (layout.is_fp8) {
        StoreFp8(path.kv, layout, token, amax);
      } else {
        StoreBf16(layout, token, std::isfinite(amax[0]) && std::isfinite(amax[1]));
      }
    }
  };
  const auto store_rows = [&](int64_t begin, int64_t end, int /*worker*/) {
    for (const Segment& segment : args.segments) {
      const int64_t from = std::max(begin, segment.first_row);
      const int64_t to = std::min(end, segment.first_row + segment.num_rows);
      for (int64_t row = from; row < to; ++row) {
        store_row(segment, row);
      }
    }
  };
  constexpr int64_t kParallelElems = 16384;
  if (args.k.rows * args.k.cols < kParallelElems) {
    store_rows(0, args.k.rows, 0);
  } else {
    pool->ParallelFor(args.k.rows, store_rows);
  }
}

}  // namespace octavo::cpu
