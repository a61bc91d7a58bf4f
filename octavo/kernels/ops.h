#pragma once
// The ops that a model is written in. Each is declared once: formula, shapes, dtypes, aliasing. A
// backend (backend.h) implements them; kernels/reference/ is the oracle.
//
// Activations are BF16 in the `serving` recipe and F32 in the reference's `fp32` recipe; "A" below
// is that type, and A(v) rounds an FP32 value to it (nearest even; nothing in `fp32`).
//
// Numerics of `serving`, which every backend reproduces bit for bit:
//  * FP32 arithmetic, no contraction, subnormals flushed (base/float_env.h). Bits mean those of
//    numbers: a NaN comes out as some NaN, whose sign and payload differ between instructions.
//  * MatMul order, for every contraction of BF16 operands (linear layers, QK^T, PV): the depth is
//    cut in tiles of 32 from 0, zero-padded; per output and tile
//      e = chain of fma over even k from +0, o = chain over odd k from +0, C = C + (e + o),
//    tiles ascending, C from +0. That is what AMX TDPBF16PS computes.
//  * Lane sum, for every other sum: lane l of 16 adds the elements i with i % 16 == l, ascending,
//    from +0; then lanes l and l + 8 are added, then l + 4, l + 2, l + 1.
//  * Exp is octavo::ExpF32 (math.h), a fixed sequence of FP32 operations.

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/tensor.h"
#include "octavo/kernels/matrix.h"

namespace octavo {

// A row-major matrix of activations; `stride` counts elements from row to row.
struct Activations {
  DType dtype = DType::kBf16;  // kBf16 or kF32.
  std::byte* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  int64_t stride = 0;
};

// y[t, :] = table[ids[t], :].
struct EmbedArgs {
  std::span<const int32_t> ids;         // [tokens], each in [0, table.rows).
  const PackedMatrix* table = nullptr;  // [vocab, hidden], bf16.
  Activations y;                        // [tokens, hidden] A.
};

// y[r, i] = A(w[i] * A(x[r, i] * (1 / sqrt(lane_sum_i(x[r, i]^2) / cols + eps)))).
// The square is accumulated by fma. y may be x. Source: HF transformers Qwen3RMSNorm.forward.
struct RmsNormArgs {
  Activations x;                         // [rows, cols] A.
  const PackedMatrix* weight = nullptr;  // [1, cols] bf16.
  float eps = 0.0F;
  Activations y;  // [rows, cols] A.
};

// x[r, i] = A(x[r, i] + delta[r, i]).
struct AddArgs {
  Activations x;
  Activations delta;
};

// y = x W^T for up to kMaxLinearParts weights that share their input.
//   bf16: y = A(C), C in MatMul order.
//   fp8:  x is quantized per token and group of 128 (fp8_activation.h): codes and scale sa; per
//         128-deep block b: P = MatMul order from +0 over exact products of codes;
//         acc = fma(P, sa[t, b] * sw[n / 128, b], acc), b ascending, from +0; y = A(acc).
// The fp32 recipe decodes the weight exactly and does not quantize x.
// Where y is F32 (the LM head) nothing is rounded.
struct LinearPart {
  const PackedMatrix* weight = nullptr;  // [out, in].
  Activations y;                         // [tokens, out] A or F32; not x.
};
inline constexpr int kMaxLinearParts = 3;
struct LinearArgs {
  Activations x;  // [tokens, in] A.
  std::span<const LinearPart> parts;
};

// Rotates the pairs (i, i + head_dim / 2) of each head in place ("neox"): with c and s from the
// FP32 tables at the token's position,
//   x[i]       = A(fma(x[i], c, -(x[i + d/2] * s)))
//   x[i + d/2] = A(fma(x[i + d/2], c, x[i] * s)).
struct RopeArgs {
  Activations x;  // [tokens, num_heads * head_dim] A.
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  std::span<const int32_t> positions;  // [tokens].
  std::span<const float> cos;          // [max_positions, head_dim / 2].
  std::span<const float> sin;
};

// y[t, i] = A(A(g / (1 + Exp(-g))) * up[t, i]) with g = gate[t, i]. y may be gate.
struct SiluMulArgs {
  Activations gate;
  Activations up;
  Activations y;
};

// y[i, :] = x[rows[i], :].
struct GatherRowsArgs {
  Activations x;
  std::span<const int32_t> rows;
  Activations y;
};

// --- Paged KV cache ----------------------------------------------------------------------------

// Tokens of one page; also one depth tile of PV.
inline constexpr int64_t kPageTokens = 32;

// One layer's part of the page pool. A page of a layer holds, for each kv head, the K part and then
// the V part, in a layout that the backend owns; Backend::KvPageBytes gives its size. Pages are
// all-zero bytes when they are handed to a sequence, so that the padding of a tile is finite.
struct KvLayer {
  std::byte* pages = nullptr;  // Page p starts at pages + p * page_bytes.
  int64_t page_bytes = 0;
  int64_t num_pages = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
};

// Consecutive tokens of one sequence inside a batch.
struct Segment {
  int64_t first_row = 0;                // Row of its first token.
  int64_t num_rows = 0;                 // Tokens in this batch.
  int64_t first_position = 0;           // Position of its first token = tokens already cached.
  std::span<const int32_t> page_table;  // Page of position p is page_table[p / kPageTokens].
};

// Writes k and v of every token of every segment to its position's place.
struct KvStoreArgs {
  Activations k;  // [tokens, num_kv_heads * head_dim] A.
  Activations v;
  std::span<const Segment> segments;
  KvLayer kv;
};

// Causal attention over the cached keys 0..position of each token (its own included; KvStore runs
// first). Query head h reads kv head h / (num_heads / num_kv_heads).
//   s[j] = scale * MatMul(q, k[j]) over head_dim; m = max_j s[j]; p[j] = Exp(s[j] - m);
//   l = lane sum of p over j; o[d] = MatMul over j of A(p[j]) and v[j, d];
//   y[d] = A(o[d] / l + 0.0).
// Cached values must be finite: in the tile of its position a token multiplies later tokens' v by a
// p of 0, and 0 * Inf is NaN.
struct AttentionArgs {
  Activations q;  // [tokens, num_heads * head_dim] A.
  Activations y;  // The same shape.
  std::span<const Segment> segments;
  KvLayer kv;
  int64_t num_heads = 0;
  float scale = 0.0F;
};

// For FP32 logits rows: max[r] = max_i x[r, i] + 0.0, sum[r] = lane sum of Exp(x[r, i] - max[r]).
// log_softmax(x)[i] = (x[i] - max) - Log(sum).
struct SoftmaxStatsArgs {
  Activations x;  // [rows, vocab] F32.
  std::span<float> max;
  std::span<float> sum;
};

}  // namespace octavo
