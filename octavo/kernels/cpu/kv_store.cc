// KvStore: every token to its place in its page.

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/thread_pool.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
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

// Pairs of dims of a key lie 64 bytes of BF16 apart.
void StoreKeyBf16(const KvLayout& layout, const TokenHead& token, bool is_finite) {
  std::byte* to = token.head + layout.KeyElem(token.t, 0) * layout.ElemBytes();
  constexpr uint32_t kNaNs = uint32_t{kBf16NaN} << 16 | kBf16NaN;
  for (int64_t d = 0; d < layout.head_dim; d += 2) {
    uint32_t pair = kNaNs;
    if (is_finite) {
      std::memcpy(&pair, token.k + d, sizeof(pair));
    }
    std::memcpy(to, &pair, sizeof(pair));
    to += 2 * kPanelCols * sizeof(uint16_t);
  }
}

void StoreValueBf16(const KvKernels& kernels, const KvLayout& layout, const TokenHead& token,
                    bool is_finite) {
  auto* values = reinterpret_cast<uint16_t*>(token.head + layout.ValuesAt());
  if (is_finite) {
    kernels.store_values(token.v, layout.value_dim, token.t, values);
    return;
  }
  for (int64_t d = 0; d < layout.value_dim; ++d) {
    values[layout.ValueElem(token.t, d)] = 0;
  }
}

// Elements that are encoded at a time.
constexpr int64_t kEncodeElems = 512;

// Codes of x under `scale`, or `bad` for all, `use(first, codes)` at a time.
template <typename Use>
void Encode(const KvKernels& kernels, std::span<const uint16_t> x, uint8_t scale, bool is_finite,
            uint8_t bad, Use use) {
  std::array<uint8_t, kEncodeElems> codes;
  if (!is_finite) {
    codes.fill(bad);
  }
  const auto dim = static_cast<int64_t>(x.size());
  for (int64_t first = 0; first < dim; first += kEncodeElems) {
    const int64_t n = std::min(kEncodeElems, dim - first);
    if (is_finite) {
      kernels.encode_e4m3(x.data() + first, n, E8m0Reciprocal(scale), codes.data());
    }
    use(first, std::span<const uint8_t>(codes).first(static_cast<size_t>(n)));
  }
}

// Pairs of dims of a key lie by turns 8 and 56 bytes apart.
void StoreKeyFp8(const KvKernels& kernels, const KvLayout& layout, const TokenHead& token,
                 uint8_t scale, bool is_finite) {
  std::byte* key = token.head + layout.KeyElem(token.t, 0);
  Encode(kernels, {token.k, static_cast<size_t>(layout.head_dim)}, scale, is_finite, kE4m3NaN,
         [&](int64_t first, std::span<const uint8_t> codes) {
           std::byte* to = key + first * kPanelCols;
           for (size_t i = 0; i < codes.size(); i += 2) {
             std::memcpy(to + i / 4 * 64 + i / 2 % 2 * 8, codes.data() + i, 2);
           }
         });
  token.head[layout.KeyScalesAt() + token.t] = static_cast<std::byte>(scale);
}

// Four dims of a value are every other byte of a word of 8.
void StoreValueFp8(const KvKernels& kernels, const KvLayout& layout, const TokenHead& token,
                   uint8_t scale, bool is_finite) {
  constexpr size_t kWordDims = 4;
  std::byte* values = token.head + layout.ValuesAt();
  const auto shift = static_cast<unsigned>(token.t % 2 * 8);
  const uint64_t kept = ~(uint64_t{0x00FF00FF00FF00FF} << shift);
  Encode(kernels, {token.v, static_cast<size_t>(layout.value_dim)}, scale, is_finite, 0,
         [&](int64_t first, std::span<const uint8_t> codes) {
           for (size_t i = 0; i < codes.size(); i += kWordDims) {
             // By constant sizes: a copy of 1 to 4 bytes would be read back before it is whole.
             uint32_t four = 0;
             if (codes.size() - i >= kWordDims) {
               std::memcpy(&four, codes.data() + i, kWordDims);
             } else {
               std::memcpy(&four, codes.data() + i, 2);  // value_dim is even.
             }
             uint64_t spread = four;
             spread = (spread | spread << 16) & 0x0000FFFF0000FFFFU;
             spread = (spread | spread << 8) & 0x00FF00FF00FF00FFU;
             std::byte* to =
                 values + layout.ValueElem(token.t & ~int64_t{1}, first + static_cast<int64_t>(i));
             uint64_t word = 0;
             std::memcpy(&word, to, sizeof(word));
             word = (word & kept) | (spread << shift);
             std::memcpy(to, &word, sizeof(word));
           }
         });
  token.head[layout.ValueScalesAt() + token.t] = static_cast<std::byte>(scale);
}

void StoreTokenHead(const CpuPath& path, const KvLayout& layout, const TokenHead& token) {
  const float key_amax = path.inputs.finite_amax(token.k, layout.head_dim);
  const float value_amax = path.inputs.finite_amax(token.v, layout.value_dim);
  if (!layout.is_fp8) {
    const bool is_finite = std::isfinite(key_amax) && std::isfinite(value_amax);
    StoreKeyBf16(layout, token, is_finite);
    StoreValueBf16(path.kv, layout, token, is_finite);
    return;
  }
  const bool is_finite = key_amax < kKvF8MagnitudeEnd && value_amax < kKvF8MagnitudeEnd;
  StoreKeyFp8(path.kv, layout, token, is_finite ? KvScaleCode(key_amax) : kScaleOfOne, is_finite);
  StoreValueFp8(path.kv, layout, token, is_finite ? KvScaleCode(value_amax) : kScaleOfOne,
                is_finite);
}

// The row of a segment at which two threads part that would part at `row`. The values of two tokens
// share words, so an odd position goes with the one before it.
int64_t CutOf(const Segment& segment, int64_t row) {
  const int64_t end = segment.first_row + segment.num_rows;
  if (row <= segment.first_row || row >= end) {
    return std::clamp(row, segment.first_row, end);
  }
  return row + (segment.first_position + row - segment.first_row) % 2;
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
      StoreTokenHead(path, layout, token);
    }
  };
  const auto store_rows = [&](int64_t begin, int64_t end, int /*worker*/) {
    for (const Segment& segment : args.segments) {
      const int64_t to = CutOf(segment, end);
      for (int64_t row = CutOf(segment, begin); row < to; ++row) {
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
