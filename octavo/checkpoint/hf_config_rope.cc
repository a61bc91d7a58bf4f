#include "octavo/checkpoint/hf_config_rope.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/hf_config_section.h"

namespace octavo {
namespace {

constexpr double kThetaMax = 1e15;
constexpr double kFactorMax = 1e6;
constexpr int64_t kPositionsMax = int64_t{1} << 30;
constexpr std::string_view kOriginalKey = "original_max_position_embeddings";

// What every kind of rope object may hold.
constexpr std::array<std::string_view, 4> kCommonKeys = {"rope_type", "type", "rope_theta",
                                                         "partial_rotary_factor"};
constexpr std::array<std::string_view, 4> kLlama3Keys = {"factor", kOriginalKey, "low_freq_factor",
                                                         "high_freq_factor"};
constexpr std::array<std::string_view, 8> kYarnKeys = {
    "factor",           kOriginalKey, "beta_fast",      "beta_slow",
    "attention_factor", "mscale",     "mscale_all_dim", "truncate"};

// `section` is the whole config or one of its rope objects.
Status RefusePartialRotary(const HfSection& section) {
  double factor = 1.0;
  if (!section.OptionalPositive("partial_rotary_factor", 1.0, factor).ok() || factor != 1.0) {
    return section.NotBuilt("partial_rotary_factor", "1");
  }
  return OkStatus();
}

// "type" is the older name of "rope_type".
Result<RopeType> ParseRopeType(const HfSection& rope) {
  std::optional<RopeType> type;
  for (const std::string_view key : {"rope_type", "type"}) {
    if (!rope.Has(key)) {
      continue;
    }
    std::string name;
    std::optional<RopeType> found;
    if (rope.OptionalString(key, name).ok()) {
      for (const RopeType known : {RopeType::kDefault, RopeType::kLlama3, RopeType::kYarn}) {
        if (name == RopeTypeName(known)) {
          found = known;
        }
      }
    }
    if (!found) {
      return rope.NotBuilt(key, "\"default\", \"llama3\" or \"yarn\"");
    }
    if (type && *type != *found) {
      return rope.Wrong(key, fmt::format("\"{}\" as in rope_type", RopeTypeName(*type)));
    }
    type = found;
  }
  return type.value_or(RopeType::kDefault);
}

// A member that we do not know may change the frequencies: it is refused, not skipped.
template <size_t kSize>
Status RefuseOtherKeys(const HfSection& rope, const std::array<std::string_view, kSize>& known,
                       RopeType type) {
  for (const std::string& key : rope.Keys()) {
    if (std::find(known.begin(), known.end(), key) == known.end() &&
        std::find(kCommonKeys.begin(), kCommonKeys.end(), key) == kCommonKeys.end()) {
      return rope.NotBuilt(key, fmt::format("no such member of a {} rope", RopeTypeName(type)));
    }
  }
  return OkStatus();
}

// The members that llama3 and YaRN share. `original` is the fallback for the one of that name.
Status ParseStretch(const HfSection& rope, int64_t original, RopeScaling& out) {
  if (!rope.Has("factor")) {
    return rope.Missing("factor", fmt::format("a number from 1 to {:g}", kFactorMax));
  }
  RETURN_IF_ERROR(rope.OptionalNumber("factor", {.min = 1.0, .max = kFactorMax}, out.factor));
  out.original_max_position_embeddings = original;
  return rope.OptionalCount(kOriginalKey, kPositionsMax, out.original_max_position_embeddings);
}

Status ParseLlama3(const HfSection& rope, RopeScaling& out) {
  RETURN_IF_ERROR(RefuseOtherKeys(rope, kLlama3Keys, RopeType::kLlama3));
  RETURN_IF_ERROR(rope.Positive("low_freq_factor", kFactorMax, out.low_freq_factor));
  RETURN_IF_ERROR(rope.Positive("high_freq_factor", kFactorMax, out.high_freq_factor));
  if (out.high_freq_factor <= out.low_freq_factor) {
    return rope.Wrong("high_freq_factor",
                      fmt::format("a number above low_freq_factor {:g}", out.low_freq_factor));
  }
  return OkStatus();
}

Status ParseYarn(const HfSection& rope, RopeScaling& out) {
  RETURN_IF_ERROR(RefuseOtherKeys(rope, kYarnKeys, RopeType::kYarn));
  RETURN_IF_ERROR(rope.OptionalPositive("beta_fast", kFactorMax, out.beta_fast));
  RETURN_IF_ERROR(rope.OptionalPositive("beta_slow", kFactorMax, out.beta_slow));
  if (out.beta_fast < out.beta_slow) {
    return InvalidArgument("{}: beta_fast: expected at least beta_slow {:g}, got {:g}", rope.name(),
                           out.beta_slow, out.beta_fast);
  }
  RETURN_IF_ERROR(rope.OptionalPositive("attention_factor", kFactorMax, out.attention_factor));
  RETURN_IF_ERROR(rope.OptionalNumber("mscale", {.min = 0.0, .max = kFactorMax}, out.mscale));
  RETURN_IF_ERROR(
      rope.OptionalNumber("mscale_all_dim", {.min = 0.0, .max = kFactorMax}, out.mscale_all_dim));
  return rope.OptionalBool("truncate", out.truncate);
}

// `rope` is rope_parameters or rope_scaling.
Result<RopeScaling> ParseScaling(const HfSection& rope, int64_t original) {
  RopeScaling out;
  ASSIGN_OR_RETURN(out.type, ParseRopeType(rope));
  RETURN_IF_ERROR(RefusePartialRotary(rope));
  for (const std::string_view key : {"mrope_section", "full_attention", "sliding_attention"}) {
    if (rope.Has(key)) {
      return rope.NotBuilt(key, "one plain rotary embedding for all layers");
    }
  }
  if (out.type == RopeType::kDefault) {
    return out;
  }
  RETURN_IF_ERROR(ParseStretch(rope, original, out));
  RETURN_IF_ERROR(out.type == RopeType::kLlama3 ? ParseLlama3(rope, out) : ParseYarn(rope, out));
  return out;
}

}  // namespace

std::string_view RopeTypeName(RopeType type) {
  switch (type) {
    case RopeType::kDefault:
      return "default";
    case RopeType::kLlama3:
      return "llama3";
    case RopeType::kYarn:
      return "yarn";
  }
  return "unknown";
}

Status ParseHfRope(const HfSection& config, HfConfig& out) {
  RETURN_IF_ERROR(config.OptionalPositive("rope_theta", kThetaMax, out.rope_theta));
  RETURN_IF_ERROR(RefusePartialRotary(config));
  // Some files have it beside the rope object.
  int64_t original = out.max_position_embeddings;
  RETURN_IF_ERROR(config.OptionalCount(kOriginalKey, kPositionsMax, original));
  bool is_known = false;
  for (const std::string_view key : {"rope_scaling", "rope_parameters"}) {
    if (!config.Has(key)) {
      continue;
    }
    ASSIGN_OR_RETURN(const HfSection rope, config.Object(key));
    ASSIGN_OR_RETURN(const RopeScaling found, ParseScaling(rope, original));
    if (config.Has(kOriginalKey) && found.type != RopeType::kDefault &&
        found.original_max_position_embeddings != original) {
      return rope.Wrong(kOriginalKey, fmt::format("{} as elsewhere in the file", original));
    }
    if (is_known && found != out.rope_scaling) {
      return config.Wrong(key, "the same scaling as in rope_scaling");
    }
    is_known = true;
    out.rope_scaling = found;
    double theta = out.rope_theta;
    RETURN_IF_ERROR(rope.OptionalPositive("rope_theta", kThetaMax, theta));
    if (out.rope_theta != 0.0 && theta != out.rope_theta) {
      return InvalidArgument("{}: rope_theta: expected {} as elsewhere in the file, got {}",
                             rope.name(), out.rope_theta, theta);
    }
    out.rope_theta = theta;
  }
  return out.rope_theta != 0.0
             ? OkStatus()
             : config.Missing("rope_theta", "a number above 0 here or in rope_parameters");
}

}  // namespace octavo
