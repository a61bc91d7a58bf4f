// Method: the absorbed attention against its direct form, which stands here in FP64 with nothing
// rounded: keys and values of every head are made from the latents by kv_b_proj, as the paper's
// equations have it. In the fp32 recipe both are the same numbers up to FP32; in serving they
// differ by the BF16 roundings on the way, whose bound is counted below. Derived weights are
// compared with Dequantize, element by element, in every format and on both backends.

#include "octavo/model/mla.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/activation_buffer.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/rope_table.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

constexpr int64_t kTokens = 45;  // Two pages.

using Vector = std::vector<double>;

// A weight of the table in FP64, [rows, cols].
struct Weight {
  int64_t rows = 0;
  int64_t cols = 0;
  Vector values = {};

  // y = x W^T of one row.
  Vector Times(std::span<const double> x) const {
    Vector y(static_cast<size_t>(rows), 0.0);
    for (size_t n = 0; n < y.size(); ++n) {
      for (size_t k = 0; k < static_cast<size_t>(cols); ++k) {
        y[n] += x[k] * values[n * static_cast<size_t>(cols) + k];
      }
    }
    return y;
  }
};

Vector Normed(std::span<const double> x, const Weight& weight, double eps) {
  double sum_sq = 0.0;
  for (const double v : x) {
    sum_sq += v * v;
  }
  Vector y(x.begin(), x.end());
  const double inv_rms = 1.0 / std::sqrt(sum_sq / static_cast<double>(x.size()) + eps);
  for (size_t i = 0; i < y.size(); ++i) {
    y[i] *= inv_rms * weight.values[i];
  }
  return y;
}

// One layer's attention of `spec` with weights, in FP64.
class DirectAttention {
 public:
  DirectAttention(const ModelSpec& spec, uint64_t seed) : spec_(spec), mla_(spec.mla) {
    for (size_t i = 0; i < spec.weights.size(); ++i) {
      const WeightSpec& row = spec.weights[i];
      Weight weight = {.rows = NumElements(row.shape) / row.shape.back(), .cols = row.shape.back()};
      for (const uint16_t bits : RandomValues(row, seed * 100000 + i)) {
        weight.values.push_back(Bf16ToFloat(bits));
      }
      weights_.push_back(std::move(weight));
    }
    frequencies_ = RopeFrequencies(RopeSpecOf(spec));
    scale_ = MlaScoreFactor(spec.rope_scaling) / std::sqrt(static_cast<double>(spec.head_dim));
  }

  // y [tokens][hidden] of a [tokens][hidden].
  std::vector<Vector> Run(const std::vector<Vector>& a) {
    std::vector<Vector> y;
    for (size_t t = 0; t < a.size(); ++t) {
      Cache(a[t], t);
      y.push_back(Named("o_proj").Times(Attend(Queries(a[t]), t)));
    }
    return y;
  }
  // The largest magnitude of a score, after the scale.
  double max_score() const { return max_score_; }

 private:
  const Weight& Named(const std::string& module) const {
    const int row = FindWeight(spec_, "model.layers.0.self_attn." + module + ".weight");
    EXPECT_GE(row, 0) << module;
    return weights_[static_cast<size_t>(row)];
  }

  void Rotate(std::span<double> x, size_t position) const {
    const size_t half = x.size() / 2;
    Vector rotated(x.size());
    const double factor = RopeAttentionFactor(spec_.rope_scaling);
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * frequencies_[i];
      const double first = mla_.is_rope_interleaved ? x[2 * i] : x[i];
      const double second = mla_.is_rope_interleaved ? x[2 * i + 1] : x[half + i];
      rotated[i] = factor * (first * std::cos(angle) - second * std::sin(angle));
      rotated[half + i] = factor * (second * std::cos(angle) + first * std::sin(angle));
    }
    std::ranges::copy(rotated, x.begin());
  }

  Vector Queries(const Vector& a) const {
    if (mla_.q_lora_rank == 0) {
      return Named("q_proj").Times(a);
    }
    const Vector latent = Named("q_a_proj").Times(a);
    return Named("q_b_proj").Times(Normed(latent, Named("q_a_layernorm"), mla_.latent_norm_eps));
  }

  // Keys and values of all heads at position t.
  void Cache(const Vector& a, size_t t) {
    const Vector latent = Named("kv_a_proj_with_mqa").Times(a);
    const auto rank = static_cast<size_t>(mla_.kv_lora_rank);
    const std::span<const double> all(latent);
    Vector rope_key(all.begin() + static_cast<std::ptrdiff_t>(rank), all.end());
    Rotate(rope_key, t);
    rope_keys_.push_back(rope_key);
    latents_.push_back(
        Named("kv_b_proj")
            .Times(Normed(all.first(rank), Named("kv_a_layernorm"), mla_.latent_norm_eps)));
  }

  // [heads * v] of the token at position t, which is the last one cached.
  Vector Attend(Vector q, size_t t) {
    const auto nope = static_cast<size_t>(mla_.qk_nope_head_dim);
    const auto rope = static_cast<size_t>(mla_.qk_rope_head_dim);
    const auto v_dim = static_cast<size_t>(mla_.v_head_dim);
    Vector out;
    for (size_t h = 0; h < static_cast<size_t>(spec_.num_heads); ++h) {
      const std::span<double> head = std::span(q).subspan(h * (nope + rope), nope + rope);
      Rotate(head.subspan(nope), t);
      Vector p;
      for (size_t j = 0; j <= t; ++j) {
        const auto key = std::span(latents_[j]).subspan(h * (nope + v_dim), nope);
        double score = 0.0;
        for (size_t i = 0; i < nope; ++i) {
          score += head[i] * key[i];
        }
        for (size_t i = 0; i < rope; ++i) {
          score += head[nope + i] * rope_keys_[j][i];
        }
        p.push_back(score * scale_);
        max_score_ = std::max(max_score_, std::abs(p.back()));
      }
      const double max = *std::ranges::max_element(p);
      double sum = 0.0;
      for (double& x : p) {
        x = std::exp(x - max);
        sum += x;
      }
      Vector o(v_dim, 0.0);
      for (size_t j = 0; j <= t; ++j) {
        const auto value = std::span(latents_[j]).subspan(h * (nope + v_dim) + nope, v_dim);
        for (size_t i = 0; i < v_dim; ++i) {
          o[i] += p[j] / sum * value[i];
        }
      }
      out.insert(out.end(), o.begin(), o.end());
    }
    return out;
  }

  const ModelSpec& spec_;
  const MlaSpec& mla_;
  std::vector<Weight> weights_;
  Vector frequencies_;
  double scale_ = 0.0;
  std::vector<Vector> latents_;    // [position][heads * (nope + v)]: keys and values.
  std::vector<Vector> rope_keys_;  // [position][rope]
  double max_score_ = 0.0;
};

ModelSpec MlaSpecForTest(bool has_q_latent, bool is_interleaved) {
  ModelSpec spec = RandomSpec("DeepseekV3ForCausalLM");
  spec.mla.is_rope_interleaved = is_interleaved;
  spec.rope_scaling = {.type = RopeType::kYarn,
                       .factor = 8.0,
                       .original_max_position_embeddings = 16,
                       .mscale = 0.8,
                       .mscale_all_dim = 1.1};
  if (!has_q_latent) {
    spec.mla.q_lora_rank = 0;
    for (WeightSpec& row : spec.weights) {
      const size_t at = row.name.find("q_b_proj");
      if (at != std::string::npos) {
        row.name.replace(at, 8, "q_proj");
        row.shape = {row.shape[0], spec.hidden_size};
      }
    }
    IndexWeights(&spec);
  }
  return spec;
}

// Inputs that BF16 holds.
std::vector<Vector> Inputs(int64_t hidden) {
  const WeightSpec like = {.name = "a", .role = Role::kEmbedding, .shape = {kTokens, hidden}};
  const std::vector<uint16_t> bits = RandomValues(like, 77);
  std::vector<Vector> inputs(static_cast<size_t>(kTokens));
  for (size_t i = 0; i < bits.size(); ++i) {
    inputs[i / static_cast<size_t>(hidden)].push_back(Bf16ToFloat(bits[i]));
  }
  return inputs;
}

float Load(const Activations& x, int64_t row, int64_t col) {
  const std::byte* at = x.data + (row * x.stride + col) * DTypeBytes(x.dtype);
  return x.dtype == DType::kBf16 ? Bf16ToFloat(*reinterpret_cast<const uint16_t*>(at))
                                 : *reinterpret_cast<const float*>(at);
}

void Store(const Activations& x, int64_t row, int64_t col, double value) {
  std::byte* at = x.data + (row * x.stride + col) * DTypeBytes(x.dtype);
  if (x.dtype == DType::kBf16) {
    *reinterpret_cast<uint16_t*>(at) = FloatToBf16(static_cast<float>(value));
  } else {
    *reinterpret_cast<float*>(at) = static_cast<float>(value);
  }
}

// ‖absorbed - direct‖ / ‖direct‖ over all tokens of layer 0, and the direct form's largest score.
struct Difference {
  double relative = 0.0;
  double max_score = 0.0;
};

Difference Compare(Backend& backend, const ModelSpec& spec) {
  const ModelLimits limits = {.max_tokens = kTokens, .max_logit_rows = 1, .max_context = 64};
  ModelWeights weights;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& row = spec.weights[i];
    weights.matrices.push_back(PackWeight(row, RandomValues(row, 100000 + i), kTestBf16, backend));
  }
  EXPECT_TRUE(DeriveWeights(spec, backend, &weights).ok());
  MlaAttention attention = MlaAttention::Make(spec, backend, limits).value();
  const MlaRows rows = FindMla(spec, LayerRows(spec, 0)).value();

  const KvShape shape = KvShapeOf(spec);
  const int64_t page_bytes = backend.KvPageBytes(shape);
  Buffer pages = Buffer::AllocateHost(2 * page_bytes).value();
  const KvLayer kv = {
      .pages = pages.data(), .page_bytes = page_bytes, .num_pages = 2, .shape = shape};
  std::vector<int32_t> positions;
  positions.reserve(kTokens);
  for (int32_t t = 0; t < kTokens; ++t) {
    positions.push_back(t);
  }
  const std::vector<int32_t> page_table = {1, 0};
  const Segment segments[] = {{.num_rows = kTokens, .page_table = page_table}};
  ActivationBuffer a =
      ActivationBuffer::Make(backend.activation_dtype(), kTokens, spec.hidden_size).value();
  ActivationBuffer y =
      ActivationBuffer::Make(backend.activation_dtype(), kTokens, spec.hidden_size).value();
  const std::vector<Vector> inputs = Inputs(spec.hidden_size);
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < spec.hidden_size; ++i) {
      Store(a.Rows(kTokens), t, i, inputs[static_cast<size_t>(t)][static_cast<size_t>(i)]);
    }
  }
  const ForwardBatch batch = {.token_ids = positions, .positions = positions, .segments = segments};
  const Status ran = attention.Run({.backend = backend,
                                    .batch = batch,
                                    .weights = weights,
                                    .kv = kv,
                                    .layer = 0,
                                    .hidden = y.Rows(kTokens),
                                    .normed = a.Rows(kTokens),
                                    .delta = y.Rows(kTokens)},
                                   {.x = a.Rows(kTokens)}, rows);
  EXPECT_TRUE(ran.ok()) << ran.message();

  DirectAttention direct(spec, 1);
  const std::vector<Vector> expected = direct.Run(inputs);
  double sum_sq_error = 0.0;
  double sum_sq = 0.0;
  for (int64_t t = 0; t < kTokens; ++t) {
    for (int64_t i = 0; i < spec.hidden_size; ++i) {
      const double e = expected[static_cast<size_t>(t)][static_cast<size_t>(i)];
      const double d = Load(y.Rows(kTokens), t, i) - e;
      sum_sq_error += d * d;
      sum_sq += e * e;
    }
  }
  return {.relative = std::sqrt(sum_sq_error / sum_sq), .max_score = direct.max_score()};
}

// Every FP32 result is off by at most 2^-24 and the longest sum has 96 terms; scores up to 30 give
// softmaxes an error of 30 times that. 2^-24 * (96 + 30) < 1e-5.
TEST(MlaAttention, AbsorbedEqualsDirectInFp32) {
  for (const bool has_q_latent : {false, true}) {
    for (const bool is_interleaved : {false, true}) {
      std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kFp32, 1);
      const Difference difference = Compare(*backend, MlaSpecForTest(has_q_latent, is_interleaved));
      EXPECT_LT(difference.relative, 1e-5) << has_q_latent << is_interleaved;
      EXPECT_LT(difference.max_score, 30.0);
      EXPECT_GT(difference.max_score, 3.0);  // Softmaxes that are not flat.
    }
  }
}

// u = 2^-9 is the largest relative error of one rounding to BF16. On the way of a value: c (3
// roundings: projection and the norm's two), p, the latent sum, its product with W_UV, the output:
// 7 u. On the way of a score: q (latent 3 with its norm, projection 1), rope 1, q' 1, and c again
// 3: 9 u of the score, which moves p by as much: 9 u * max_score. Norms add at most linearly.
TEST(MlaAttention, AbsorbedIsWithinBf16OfDirectInServing) {
  for (const bool has_q_latent : {false, true}) {
    std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
    const Difference difference = Compare(*backend, MlaSpecForTest(has_q_latent, true));
    EXPECT_LT(difference.relative, 0x1p-9 * (7.0 + 9.0 * difference.max_score));
    EXPECT_LT(difference.relative, 0.02);     // What is seen; the bound is for the worst case.
    EXPECT_GT(difference.relative, 0x1p-12);  // And it did round.
  }
}

// A wrong score scale or rope is far outside both bounds.
TEST(MlaAttention, DiffersWhenAnOptionIsTurned) {
  std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kFp32, 1);
  ModelSpec spec = MlaSpecForTest(true, true);
  ModelSpec other = spec;
  other.mla.is_rope_interleaved = false;
  ASSERT_LT(Compare(*backend, spec).relative, 1e-5);
  DirectAttention a(spec, 1);
  DirectAttention b(other, 1);
  const std::vector<Vector> inputs = Inputs(spec.hidden_size);
  const Vector last_a = a.Run(inputs).back();
  const Vector last_b = b.Run(inputs).back();
  double largest = 0.0;
  for (size_t i = 0; i < last_a.size(); ++i) {
    largest = std::max(largest, std::abs(last_a[i] - last_b[i]));
  }
  EXPECT_GT(largest, 0.01);
}

// --- Derived weights ----------------------------------------------------------------------------

// In FP32, by the codec.
std::vector<float> Decoded(const StoredMatrix& stored, std::span<const uint16_t> values) {
  const CanonicalMatrix& matrix = stored.canonical;
  std::vector<float> decoded(values.size());
  if (matrix.format == WeightFormat::kBf16) {
    std::ranges::transform(values, decoded.begin(), Bf16ToFloat);
    return decoded;
  }
  EXPECT_TRUE(Dequantize({.format = matrix.format,
                          .rows = matrix.rows,
                          .cols = matrix.cols,
                          .codes = stored.codes,
                          .scales = matrix.scales,
                          .tensor_scale = matrix.tensor_scale,
                          .values = {.dtype = DType::kF32,
                                     .shape = {matrix.rows, matrix.cols},
                                     .data = reinterpret_cast<std::byte*>(decoded.data())}})
                  .ok());
  return decoded;
}

// Row `row` of a packed BF16 matrix.
std::vector<uint16_t> UnpackedRow(const Backend& backend, const PackedMatrix& packed, int64_t row) {
  std::vector<uint16_t> bits(static_cast<size_t>(packed.cols));
  EXPECT_TRUE(backend.UnpackCodes(packed, row, 1, std::as_writable_bytes(std::span(bits))).ok());
  return bits;
}

// Every element of every head of layer 0, and how many matrices there are.
void ExpectDerived(const ModelSpec& spec, const Backend& backend, WeightFormat format) {
  ModelWeights weights;
  StoredMatrix first;
  std::vector<float> expected;
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& row = spec.weights[i];
    weights.matrices.emplace_back();
    if (row.role != Role::kMlaKvB || row.is_mtp) {
      continue;  // MTP layers are never looked at.
    }
    const std::vector<uint16_t> values = RandomValues(row, i);
    const StoredMatrix stored = StoreMatrix({.format = format}, values, row.shape[0], row.shape[1]);
    ASSERT_TRUE(backend.Pack(stored.canonical, &weights.matrices.back()).ok());
    if (row.layer == 0) {
      expected = Decoded(stored, values);
    }
  }
  const Status derived = DeriveWeights(spec, backend, &weights);
  ASSERT_TRUE(derived.ok()) << derived.message();
  ASSERT_EQ(weights.derived.size(), static_cast<size_t>(spec.num_layers * 2 * spec.num_heads));

  const int64_t nope = spec.mla.qk_nope_head_dim;
  const int64_t v_dim = spec.mla.v_head_dim;
  const int64_t rank = spec.mla.kv_lora_rank;
  const auto at = [&](int64_t row, int64_t col) {
    return FloatToBf16(expected[static_cast<size_t>(row * rank + col)]);
  };
  for (int64_t head = 0; head < spec.num_heads; ++head) {
    const int64_t first_row = head * (nope + v_dim);
    const PackedMatrix& key = weights.derived[static_cast<size_t>(head)];
    const PackedMatrix& value = weights.derived[static_cast<size_t>(spec.num_heads + head)];
    for (int64_t r = 0; r < rank; ++r) {
      const std::vector<uint16_t> row = UnpackedRow(backend, key, r);
      ASSERT_EQ(row.size(), static_cast<size_t>(nope));
      for (int64_t i = 0; i < nope; ++i) {
        ASSERT_EQ(row[static_cast<size_t>(i)], at(first_row + i, r)) << head << " " << r;
      }
    }
    for (int64_t i = 0; i < v_dim; ++i) {
      const std::vector<uint16_t> row = UnpackedRow(backend, value, i);
      ASSERT_EQ(row.size(), static_cast<size_t>(rank));
      for (int64_t r = 0; r < rank; ++r) {
        ASSERT_EQ(row[static_cast<size_t>(r)], at(first_row + nope + i, r)) << head << " " << i;
      }
    }
  }
}

TEST(DeriveWeights, RoundsTheDecodedKvBOnceInEveryFormat) {
  const ModelSpec spec = RandomSpec("DeepseekV3ForCausalLM");
  Result<std::unique_ptr<Backend>> cpu = MakeCpuBackend(BestIsa(), 1);
  ASSERT_TRUE(cpu.has_value()) << cpu.error().message();
  const std::unique_ptr<Backend> reference = MakeReferenceBackend(Recipe::kServing, 1);
  for (const WeightFormat format :
       {WeightFormat::kBf16, WeightFormat::kFp8, WeightFormat::kFp8Ue8m0, WeightFormat::kFp8Channel,
        WeightFormat::kFp8Tensor, WeightFormat::kMxfp8, WeightFormat::kNvfp4}) {
    SCOPED_TRACE(WeightFormatName(format));
    ExpectDerived(spec, *reference, format);
    ExpectDerived(spec, **cpu, format);
  }
}

TEST(DeriveWeights, MakesNothingForOtherAttentions) {
  const ModelSpec spec = RandomSpec("Qwen3ForCausalLM");
  const std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  ModelWeights weights;
  weights.matrices.resize(spec.weights.size());
  weights.derived.resize(3);
  ASSERT_TRUE(DeriveWeights(spec, *backend, &weights).ok());
  EXPECT_TRUE(weights.derived.empty());
}

}  // namespace
}  // namespace octavo
