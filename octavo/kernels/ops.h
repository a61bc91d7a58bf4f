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
#include <optional>
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

// y[t, i] = A(A(g / (1 + Exp(-g))) * up[t, i]) with g = gate[t, i]. y may be gate.
struct SiluMulArgs {
  Activations gate;
  Activations up;
  Activations y;
};

// y = x W^T for up to kMaxLinearParts weights that share their input. D is CodesOf(W) with what of
// its scales multiplies inside BF16 exactly, x^ likewise the quantized input (linear_input.h), and
// C a sum over the whole depth in MatMul order:
//   bf16                 y = A(C(x, W) + bias)
//   fp8, fp8-ue8m0       per 128-deep block b: P = MatMul order from +0 over codes;
//                        acc = fma(P, sa[t, b] * sw[n / 128, b], acc), b ascending, from +0;
//                        y = A(acc + bias)
//   fp8-channel          y = A((C(codes, codes) * sa[t]) * sw[n] + bias)
//   fp8-tensor           y = A((C(codes, codes) * sa[t]) * tensor_scale + bias)
//   mxfp8                x^ = code * 2^(b - 127), D likewise: y = A(C(x^, D) + bias)
//   nvfp4                x^ = code * group scale, D likewise (475 values, exact in BF16; group
//                        scales are E4M3 from 0x00 to 0x7E, Pack refuses others):
//                        y = A(C(x^, D) * (ga[t] * tensor_scale) + bias)
// With InputForm::kBf16 (weight-only) x is not quantized and the factors sa and ga are absent: fp8
// blocks fma(P, sw[n / 128, b], acc), mxfp8 as above, the others A(C * sw + bias).
// Products x^ and D below 2^-126 are 0 (subnormals are flushed). Without a bias nothing is added.
// The fp32 recipe decodes the weight exactly (Dequantize) and does not quantize x.
// Where y is F32 (the LM head, a router) nothing is rounded.
// Source: docs/numerics.md.
struct LinearPart {
  const PackedMatrix* weight = nullptr;  // [out, in].
  Activations y;                         // [tokens, out] A or F32; not x.
  const PackedMatrix* bias = nullptr;    // BF16 vector [1, out], or null.
};
inline constexpr int kMaxLinearParts = 3;
struct LinearArgs {
  Activations x;  // [tokens, in] A.
  std::span<const LinearPart> parts;
  // The op whose y is x, where it is left to this one: at most one. The bits are those of two ops,
  // but a row is quantized while it is in the cache.
  std::optional<RmsNormArgs> norm = {};
  std::optional<SiluMulArgs> silu_mul = {};
};

// The experts of a layer: for group g and rows i in [offsets[g], offsets[g + 1])
//   y[i, :] = Linear(x[source_rows[i], :], weights[g])
// with the arithmetic of LinearArgs. A row of x is quantized once, however many groups read it.
struct GroupedPart {
  std::span<const PackedMatrix* const> weights;  // [groups], all of one format, shape and input.
  Activations y;                                 // [rows, out] A; not x.
};
inline constexpr int kMaxGroupedParts = 2;
struct GroupedLinearArgs {
  Activations x;                         // [source rows, in] A.
  std::span<const int32_t> source_rows;  // [rows]. kNvfp4Batch: over all rows of x.
  std::span<const int32_t> offsets;      // [groups + 1], ascending from 0 to rows.
  std::span<const GroupedPart> parts;
  std::optional<SiluMulArgs> silu_mul = {};  // As in LinearArgs.
};

// Rotates the pairs (i, i + head_dim / 2) of each head in place ("neox"): with c and s from the
// FP32 tables at the token's position,
//   x[i]       = A(fma(x[i], c, -(x[i + d/2] * s)))
//   x[i + d/2] = A(fma(x[i + d/2], c, x[i] * s)).
// Interleaved, the pair i is (2i, 2i + 1) before and (i, i + d/2) after: DeepSeek's checkpoints.
struct RopeArgs {
  Activations
      x;  // [tokens, num_heads * head_stride] A; the first head_dim of each head are rotated.
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  std::span<const int32_t> positions;  // [tokens].
  std::span<const float> cos;          // [max_positions, head_dim / 2].
  std::span<const float> sin;
  int64_t head_stride = 0;  // Elements from head to head; 0: head_dim.
  bool is_interleaved = false;
};

// y[i, :] = x[rows[i], :].
struct GatherRowsArgs {
  Activations x;
  std::span<const int32_t> rows;
  Activations y;
};

// y[t, i] = x[t, i]: between strided views.
struct CopyArgs {
  Activations x;
  Activations y;
};

// --- Mixture of experts -------------------------------------------------------------------------

enum class RouteScoring { kSoftmax, kSigmoid };

// Chooses top_k experts a token, in FP32.
//   kSoftmax:  p = Exp(x - max) / lane_sum(Exp(x - max)); choice = p
//   kSigmoid:  p = 1 / (1 + Exp(-x));                     choice = p + bias
// Groups (num_groups > 1): a group's rank is the sum of its two largest choices, or its only one;
// experts outside the top_groups best groups are not eligible. The top_k eligible with the largest
// choice are taken; of equal ones the lower index wins, for groups too. weight = p of the chosen;
// with norm_topk_prob divided by (their sum, ascending expert, + sum_eps); then times scale.
// Experts of a token are returned in ascending order. A token with a choice that is not finite (a
// NaN logit, +inf under softmax, a bad bias) gets NaN weights and the experts 0 .. top_k - 1.
// Source: HF transformers modeling_qwen3_moe.py, modeling_deepseek_v3.py; masked groups are -inf as
// in DeepSeek's own code.
struct RouteArgs {
  Activations logits;  // [tokens, experts] A or F32.
  RouteScoring scoring = RouteScoring::kSoftmax;
  std::span<const float> bias;  // [experts], or empty; kSigmoid alone.
  int64_t num_groups = 1;
  int64_t top_groups = 1;
  bool norm_topk_prob = false;
  float sum_eps = 0.0F;  // 1e-20 for DeepSeek-V3.
  float scale = 1.0F;
  int64_t top_k = 0;
  std::span<int32_t> experts;  // [tokens, top_k]
  std::span<float> weights;    // [tokens, top_k]
};

// Slots (token t, k-th expert) = t * top_k + k, sorted by expert, then token:
// order[i] = the token of sorted row i; row_of_slot is the inverse; offsets as GroupedLinearArgs.
struct SortByExpertArgs {
  std::span<const int32_t> experts;  // [tokens, top_k]
  int64_t top_k = 0;
  std::span<int32_t> source_rows;  // [tokens * top_k]
  std::span<int32_t> row_of_slot;  // [tokens * top_k]
  std::span<int32_t> offsets;      // [experts + 1]
};

// y[t, :] = A(sum_k fma(weights[t, k], x[row_of_slot[t * top_k + k], :], .) + shared[t, :]), slots
// ascending, from +0.
struct CombineArgs {
  Activations x;  // [tokens * top_k, hidden] A.
  std::span<const int32_t> row_of_slot;
  std::span<const float> weights;
  int64_t top_k = 0;
  Activations shared;  // [tokens, hidden] A, or data null: nothing is added.
  Activations y;       // [tokens, hidden] A; may be shared.
};

// --- Paged KV cache ----------------------------------------------------------------------------

// Tokens of one page; also one depth tile of PV.
inline constexpr int64_t kPageTokens = 32;

// What one token leaves in the cache of one layer.
//   kBf16    K and V as they are (F32 in the fp32 recipe).
//   kF8E4m3  Per token, kv head and K or V one power of two 2^e, the smallest with amax <= 448 *
//            2^e but at least 2^-117 (E8M0, as mxfp8), and E4M3 codes of x * 2^-e: code * 2^e is
//            exact in BF16, and attention reads that. The scale belongs to the token: no weight
//            update makes it stale. The fp32 recipe refuses it.
// A token whose K or V of a kv head holds a NaN, an infinity or (kF8E4m3) a magnitude from 2^127 on
// leaves NaN as all of its K and 0 as its V: whoever attends to it gets NaN, and nobody else.
struct KvShape {
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;   // Of K.
  int64_t value_dim = 0;  // Of V; 0: head_dim. MLA's latent cache: head_dim 576, value_dim 512.
  DType dtype = DType::kBf16;

  constexpr int64_t ValueDim() const { return value_dim == 0 ? head_dim : value_dim; }
};

// One layer's part of the page pool. A page of a layer holds, for each kv head, the K part and then
// the V part, in a layout that the backend owns; Backend::KvPageBytes gives its size. Pages are
// all-zero bytes when they are handed to a sequence, so that the padding of a tile is finite.
struct KvLayer {
  std::byte* pages = nullptr;  // Page p starts at pages + p * page_bytes.
  int64_t page_bytes = 0;
  int64_t num_pages = 0;
  KvShape shape;
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
  Activations v;  // [tokens, num_kv_heads * value_dim] A.
  std::span<const Segment> segments;
  KvLayer kv;
};

// Causal attention over the cached keys 0..position of each token (its own included; KvStore runs
// first). Query head h reads kv head h / (num_heads / num_kv_heads).
//   s[j] = scale * MatMul(q, k[j]) over head_dim; m = max_j s[j]; p[j] = Exp(s[j] - m);
//   l = lane sum of p over j; o[d] = MatMul over j of A(p[j]) and v[j, d];
//   y[d] = A(o[d] / l + 0.0).
// A token multiplies the v of later tokens, in its tile or its page, by a p of 0; KvStore leaves
// only finite v there.
struct AttentionArgs {
  Activations q;  // [tokens, num_heads * head_dim] A.
  Activations y;  // [tokens, num_heads * value_dim] A.
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
