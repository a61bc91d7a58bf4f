// Method: "one bad token harms only itself" at every site whose input is quantized: linear layers,
// gate and up of an MLP, of routed and of shared experts, and their down projections, in every
// format with every form of input, `batch` included, on the vector backend.
//
// A step holds three sequences: one bad token, its mirror, and 40 good ones. The bad token's
// embedding holds a NaN or an infinity, or is a spike in a dimension that all others have at 0 and
// that the first layer's gate and up blow up, so that SwiGLU overflows to Inf between finite
// sites. The mirror is the same spike negated: equal magnitudes wherever the bad token is finite
// (all that comes before SwiGLU is odd), but a closed gate, so that it stays finite and keeps the
// scale of `batch` where it was. The mirror and the good tokens must have the bits that they have
// beside a token of zeros, whose own logits must be 0; and the good ones those that they have alone
// (not in `batch`). The bad token's logits must be NaN.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <iterator>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

// The MLP that overflows, all of whose kind do in the first layer.
struct Site {
  Role gate;
  Role up;
  Role down;
};
constexpr Site kMlp = {Role::kMlpGate, Role::kMlpUp, Role::kMlpDown};
constexpr Site kExperts = {Role::kExpertGate, Role::kExpertUp, Role::kExpertDown};
constexpr Site kShared = {Role::kSharedExpertGate, Role::kSharedExpertUp, Role::kSharedExpertDown};

struct Variant {
  std::string name;
  const char* architecture;
  Site site;
  TestFormat format;
};

constexpr int64_t kSpikeDim = 40;
constexpr int32_t kZero = 90;
constexpr int32_t kMirror = 91;
constexpr int32_t kOverflow = 92;
constexpr int32_t kNaN = 93;
constexpr int32_t kInf = 94;
constexpr int32_t kMinusInf = 95;

void SetEmbeddings(int64_t cols, std::span<uint16_t> values) {
  const auto row = [&](int32_t id) {
    return values.subspan(static_cast<size_t>(id * cols), static_cast<size_t>(cols));
  };
  for (size_t at = kSpikeDim; at < values.size(); at += static_cast<size_t>(cols)) {
    values[at] = 0;
  }
  for (const int32_t id : {kZero, kMirror, kOverflow}) {
    std::ranges::fill(row(id), uint16_t{0});
  }
  // Large, so that what attention adds in other dimensions is little.
  row(kOverflow)[kSpikeDim] = FloatToBf16(100.0F);
  row(kMirror)[kSpikeDim] = FloatToBf16(-100.0F);
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  row(kNaN)[17] = FloatToBf16(std::numeric_limits<float>::quiet_NaN());
  row(kInf)[95] = FloatToBf16(kInfinity);
  row(kMinusInf)[0] = FloatToBf16(-kInfinity);
}

void SetColumn(int64_t cols, float value, std::span<uint16_t> values) {
  for (size_t at = kSpikeDim; at < values.size(); at += static_cast<size_t>(cols)) {
    values[at] = FloatToBf16(value);
  }
}

void Scale(float factor, std::span<uint16_t> values) {
  for (uint16_t& value : values) {
    value = FloatToBf16(Bf16ToFloat(value) * factor);
  }
}

// Magnitudes at the site. A spike comes out of the norm as 9.8 times its weight of about 1 (5.6
// where fp8-tensor's static scale saturates); with 2^63 in its column gate and up are above 2^65
// and their product above 2^130: Inf. The others' products are below 2^109, which leaves
// weight-only formats room for sums of products with codes up to 2688.
constexpr float kWeightScale = 0x1p52F;
constexpr float kSpikeWeight = 0x1p63F;

// Changes one row of the weight table, if it is one of those above; false if not.
bool Change(const WeightSpec& row, const Site& site, std::vector<uint16_t>* values,
            TestFormat* format) {
  const int64_t cols = row.shape.back();
  if (row.role == Role::kEmbedding) {
    SetEmbeddings(cols, *values);
    return true;
  }
  if (row.layer != 0) {
    return false;
  }
  if (row.role == Role::kAttentionO) {  // Adds nothing to the spike's dimension.
    std::ranges::fill(std::span(*values).subspan(static_cast<size_t>(kSpikeDim * cols),
                                                 static_cast<size_t>(cols)),
                      uint16_t{0});
    return true;
  }
  if (row.role == site.gate || row.role == site.up) {
    Scale(kWeightScale, *values);
    SetColumn(cols, kSpikeWeight, *values);
    return true;
  }
  if (row.role == site.down) {
    // Back to what the residual is like. pow2 has no scale to adapt: its inputs saturate at 2688.
    Scale(format->input == InputForm::kNvfp4Pow2 ? 0x1p-11F : 0x1p-100F, *values);
    format->input_scale *= 0x1p104F;
    return true;
  }
  if (row.role == Role::kExpertGate || row.role == Role::kSharedExpertGate) {
    SetColumn(cols, 0.0F, *values);  // Where the spike may not rule the scale of `batch`.
    return true;
  }
  return false;
}

std::unique_ptr<Backend> Cpu() {
  Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(BestIsa(), 2);
  EXPECT_TRUE(backend.has_value()) << backend.error().message();
  return std::move(*backend);
}

constexpr uint64_t kSeed = 1;

// Of a runner with random weights of that seed.
void ChangeWeights(const Variant& variant, ModelRunner* runner) {
  for (size_t i = 0; i < runner->spec().weights.size(); ++i) {
    const WeightSpec& row = runner->spec().weights[i];
    std::vector<uint16_t> values = RandomValues(row, kSeed * 100000 + i);
    TestFormat format = variant.format;
    if (Change(row, variant.site, &values, &format)) {
      runner->weights().matrices[i] = PackWeight(row, values, format, runner->backend());
    }
  }
}

std::vector<int32_t> GoodIds() {
  std::vector<int32_t> ids(40);
  for (size_t i = 0; i < ids.size(); ++i) {
    ids[i] = static_cast<int32_t>(Philox(3, i)[0] % kZero);
  }
  return ids;
}

struct Outcome {
  std::vector<float> subject;  // Logits of the token under test.
  std::vector<float> others;   // Of the mirror and the good tokens.
  std::vector<int32_t> experts;
};

Outcome RunBeside(ModelRunner& runner, int32_t subject) {
  runner.ClearCache();
  const std::vector<int32_t> first = {subject};
  const std::vector<int32_t> second = {kMirror};
  const std::vector<int32_t> good = GoodIds();
  const ModelRunner::Part parts[] = {
      {.sequence = 1, .ids = first}, {.sequence = 2, .ids = second}, {.sequence = 0, .ids = good}};
  const std::vector<float> logits = runner.Run(parts);
  const auto vocab = static_cast<std::ptrdiff_t>(runner.spec().vocab_size);
  Outcome outcome = {.subject = {logits.begin(), logits.begin() + vocab},
                     .others = {logits.begin() + vocab, logits.end()},
                     .experts = {}};
  if (const auto routed = runner.model().RoutedExperts(); !routed.empty()) {
    const auto mine =
        routed.subspan(static_cast<size_t>(runner.spec().num_layers * runner.spec().moe.top_k));
    outcome.experts.assign(mine.begin(), mine.end());
  }
  return outcome;
}

bool SameBits(std::span<const float> a, std::span<const float> b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size_bytes()) == 0;
}

class BadToken : public testing::TestWithParam<Variant> {};

TEST_P(BadToken, HarmsItselfAlone) {
  ModelRunner runner(Cpu(), RandomSpec(GetParam().architecture, "model.", 0), kSeed,
                     GetParam().format);
  ChangeWeights(GetParam(), &runner);
  const Outcome clean = RunBeside(runner, kZero);
  EXPECT_TRUE(std::ranges::all_of(clean.subject, [](float x) { return x == 0.0F; }));
  EXPECT_TRUE(std::ranges::all_of(clean.others, [](float x) { return std::isfinite(x); }));
  for (const int32_t bad : {kOverflow, kNaN, kInf, kMinusInf}) {
    const Outcome beside = RunBeside(runner, bad);
    EXPECT_TRUE(std::ranges::all_of(beside.subject, [](float x) { return std::isnan(x); })) << bad;
    EXPECT_TRUE(SameBits(beside.others, clean.others)) << bad;
    EXPECT_EQ(beside.experts, clean.experts) << bad;
  }
  if (GetParam().format.input != InputForm::kNvfp4Batch) {
    runner.ClearCache();
    const std::vector<float> alone = runner.Run(GoodIds());
    const auto vocab = static_cast<size_t>(runner.spec().vocab_size);
    EXPECT_TRUE(SameBits(std::span(clean.others).subspan(vocab), alone));
  }
}

std::vector<Variant> Variants() {
  std::vector<NamedTestFormat> formats(std::begin(kTestQuantizedFormats),
                                       std::end(kTestQuantizedFormats));
  formats.push_back({"Bf16", kTestBf16});
  formats.push_back({"Fp8", kTestFp8});
  formats.push_back({"Nvfp4Batch", {WeightFormat::kNvfp4, InputForm::kNvfp4Batch}});
  struct Place {
    const char* name;
    const char* architecture;
    Site site;
  };
  constexpr Place kPlaces[] = {{"Mlp", "Qwen3ForCausalLM", kMlp},
                               {"Experts", "Qwen3MoeForCausalLM", kExperts},
                               {"ExpertsBesideShared", "DeepseekV3ForCausalLM", kExperts},
                               {"Shared", "DeepseekV3ForCausalLM", kShared}};
  std::vector<Variant> variants;
  for (const Place& place : kPlaces) {
    for (const NamedTestFormat& format : formats) {
      variants.push_back(
          {std::string(place.name) + format.name, place.architecture, place.site, format.format});
    }
  }
  return variants;
}

INSTANTIATE_TEST_SUITE_P(Sites, BadToken, testing::ValuesIn(Variants()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace octavo
