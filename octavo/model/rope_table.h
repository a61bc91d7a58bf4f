#pragma once
// Cosines and sines of rotary position embeddings, one row a position.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// What a table is made from.
struct RopeSpec {
  double theta = 0.0;
  int64_t dim = 0;  // Rotated elements of a head; even.
  RopeScaling scaling;
};

// Of q and k, or with MLA of their rope parts.
RopeSpec RopeSpecOf(const ModelSpec& spec);

// Radians a position, [dim / 2]:
//   default  f_i = theta^(-2 i / dim)
//   llama3   with w = 2 pi / f_i, L = original / low and H = original / high:
//            f_i where w < H, f_i / factor where w > L, else (1 - s) f_i / factor + s f_i,
//            s = (original / w - low) / (high - low)
//   yarn     (1 - r_i) f_i + r_i f_i / factor, r_i = clamp((i - a) / (b - a), 0, 1), where a and b
//            are the dimensions that turn beta_fast and beta_slow times in `original` positions:
//            dim ln(original / (2 pi beta)) / (2 ln theta), rounded outwards if `truncate`
// Source: Llama 3.1 model card; Peng et al., YaRN (2023), section 3.2; HF transformers
// modeling_rope_utils.py.
std::vector<double> RopeFrequencies(const RopeSpec& rope);

// The factor on cos and sin: 1 but for yarn, where it is attention_factor if that is given, else
// m(mscale) / m(mscale_all_dim), or m(1) where one of them is 0 or absent;
// m(x) = 0.1 x ln(factor) + 1.
double RopeAttentionFactor(const RopeScaling& scaling);

// The factor on the scores of MLA's attention beside head_dim^-0.5: m(mscale_all_dim)^2 of yarn, 1
// without. Source: HF transformers modeling_deepseek_v3.py.
double MlaScoreFactor(const RopeScaling& scaling);

// Move-only; const is thread-safe.
//   angle[p, i] = p * f_i, i in [0, dim / 2)
// Everything is computed in FP64 and rounded once to FP32, so that long contexts do not inherit the
// error of an FP32 angle. Source: Su et al., RoFormer (2021), section 3.2.2.
class RopeTable {
 public:
  // Errors: kExhausted.
  static Result<RopeTable> Make(const RopeSpec& rope, int64_t num_positions);

  std::span<const float> cos() const { return cos_.As<float>(); }  // [positions, dim / 2]
  std::span<const float> sin() const { return sin_.As<float>(); }

 private:
  Buffer cos_;
  Buffer sin_;
};

}  // namespace octavo
