#include "octavo/model/rope_table.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <numbers>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr double kTurn = 2.0 * std::numbers::pi;

void StretchLlama3(const RopeScaling& scaling, std::span<double> frequencies) {
  const auto original = static_cast<double>(scaling.original_max_position_embeddings);
  const double low = scaling.low_freq_factor;
  const double high = scaling.high_freq_factor;
  for (double& f : frequencies) {
    const double wavelength = kTurn / f;
    if (wavelength < original / high) {
      continue;
    }
    if (wavelength > original / low) {
      f = f / scaling.factor;
      continue;
    }
    const double smooth = (original / wavelength - low) / (high - low);
    f = (1.0 - smooth) * f / scaling.factor + smooth * f;
  }
}

// The (fractional) dimension whose pair turns `turns` times in the original context.
double YarnDimension(const RopeSpec& rope, double turns) {
  const auto original = static_cast<double>(rope.scaling.original_max_position_embeddings);
  return static_cast<double>(rope.dim) * std::log(original / (turns * kTurn)) /
         (2.0 * std::log(rope.theta));
}

void StretchYarn(const RopeSpec& rope, std::span<double> frequencies) {
  double low = YarnDimension(rope, rope.scaling.beta_fast);
  double high = YarnDimension(rope, rope.scaling.beta_slow);
  if (rope.scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(rope.dim - 1));
  if (low == high) {
    high += 0.001;  // HF's guard against a ramp of no width.
  }
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] * (1.0 - ramp) + frequencies[i] / rope.scaling.factor * ramp;
  }
}

double YarnMscale(double factor, double mscale) {
  return factor <= 1.0 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

}  // namespace

RopeSpec RopeSpecOf(const ModelSpec& spec) {
  return {.theta = spec.rope_theta,
          .dim = spec.mla.kv_lora_rank > 0 ? spec.mla.qk_rope_head_dim : spec.head_dim,
          .scaling = spec.rope_scaling};
}

std::vector<double> RopeFrequencies(const RopeSpec& rope) {
  CHECK(rope.dim % 2 == 0);
  std::vector<double> frequencies(static_cast<size_t>(rope.dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(rope.dim);
    frequencies[i] = std::pow(rope.theta, exponent);
  }
  switch (rope.scaling.type) {
    case RopeType::kDefault:
      break;
    case RopeType::kLlama3:
      StretchLlama3(rope.scaling, frequencies);
      break;
    case RopeType::kYarn:
      StretchYarn(rope, frequencies);
      break;
  }
  return frequencies;
}

double RopeAttentionFactor(const RopeScaling& scaling) {
  if (scaling.type != RopeType::kYarn) {
    return 1.0;
  }
  if (scaling.attention_factor != 0.0) {
    return scaling.attention_factor;
  }
  if (scaling.mscale != 0.0 && scaling.mscale_all_dim != 0.0) {
    return YarnMscale(scaling.factor, scaling.mscale) /
           YarnMscale(scaling.factor, scaling.mscale_all_dim);
  }
  return YarnMscale(scaling.factor, 1.0);
}

double MlaScoreFactor(const RopeScaling& scaling) {
  if (scaling.type != RopeType::kYarn || scaling.mscale_all_dim == 0.0) {
    return 1.0;
  }
  const double mscale = YarnMscale(scaling.factor, scaling.mscale_all_dim);
  return mscale * mscale;
}

Result<RopeTable> RopeTable::Make(const RopeSpec& rope, int64_t num_positions) {
  const std::vector<double> frequencies = RopeFrequencies(rope);
  const double factor = RopeAttentionFactor(rope.scaling);
  RopeTable table;
  const int64_t num_bytes =
      num_positions * static_cast<int64_t>(frequencies.size()) * int64_t{sizeof(float)};
  ASSIGN_OR_RETURN(table.cos_, Buffer::AllocateHost(num_bytes));
  ASSIGN_OR_RETURN(table.sin_, Buffer::AllocateHost(num_bytes));
  const std::span<float> cos = table.cos_.As<float>();
  const std::span<float> sin = table.sin_.As<float>();
  size_t element = 0;
  for (int64_t position = 0; position < num_positions; ++position) {
    for (const double f : frequencies) {
      const double angle = static_cast<double>(position) * f;
      cos[element] = static_cast<float>(std::cos(angle) * factor);
      sin[element] = static_cast<float>(std::sin(angle) * factor);
      ++element;
    }
  }
  return table;
}

}  // namespace octavo
