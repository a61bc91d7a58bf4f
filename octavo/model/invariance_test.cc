// Method: promise 5 of every architecture, bit for bit, on the vector backend with random weights
// in every format. The logits and routed experts of a prompt in one pass alone must come out again
// in chunks of any size, token by token, and in batches with others in any order. A token that is
// bad (NaN) must harm no other sequence. The same weights under another prefix are the same model.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

std::unique_ptr<Backend> Cpu() {
  Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(BestIsa(), 2);
  EXPECT_TRUE(backend.has_value()) << backend.error().message();
  return std::move(*backend);
}

std::vector<int32_t> RandomIds(uint64_t seed, size_t count) {
  std::vector<int32_t> ids(count);
  for (size_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(Philox(seed, i)[0] % 101);
  }
  return ids;
}

// What one sequence got, over all calls.
struct Outcome {
  std::vector<float> logits;
  std::vector<int32_t> experts;

  void Append(ModelRunner& runner, std::span<const float> all_logits, size_t first, size_t count) {
    const auto vocab = static_cast<size_t>(runner.spec().vocab_size);
    const auto rows = all_logits.subspan(first * vocab, count * vocab);
    logits.insert(logits.end(), rows.begin(), rows.end());
    const std::span<const int32_t> routed = runner.model().RoutedExperts();
    if (!routed.empty()) {
      const auto each = static_cast<size_t>(runner.spec().num_layers * runner.spec().moe.top_k);
      const auto mine = routed.subspan(first * each, count * each);
      experts.insert(experts.end(), mine.begin(), mine.end());
    }
  }
};

void ExpectSame(const Outcome& actual, const Outcome& expected, const std::string& what) {
  ASSERT_EQ(actual.logits.size(), expected.logits.size()) << what;
  EXPECT_EQ(std::memcmp(actual.logits.data(), expected.logits.data(),
                        expected.logits.size() * sizeof(float)),
            0)
      << what;
  EXPECT_EQ(actual.experts, expected.experts) << what;
}

struct Variant {
  std::string name;
  const char* architecture;
  TestFormat format;
  bool is_brief = false;  // Few sizes of chunks: other variants have them all.
};

std::string VariantName(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

class ModelInvariance : public testing::TestWithParam<Variant> {
 protected:
  static ModelRunner Runner() {
    return {Cpu(), RandomSpec(GetParam().architecture), 1, GetParam().format};
  }

  static Outcome InChunks(ModelRunner& runner, std::span<const int32_t> ids, size_t chunk) {
    runner.ClearCache();
    Outcome outcome;
    for (size_t first = 0; first < ids.size(); first += chunk) {
      const size_t count = std::min(chunk, ids.size() - first);
      const std::vector<float> logits = runner.Run(ids.subspan(first, count));
      outcome.Append(runner, logits, 0, count);
    }
    return outcome;
  }
};

TEST_P(ModelInvariance, HoldsInAnyChunks) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> ids = RandomIds(7, 131);  // Five pages, the last one of 3 tokens.
  const Outcome whole = InChunks(runner, ids, ids.size());
  EXPECT_FALSE(std::ranges::any_of(whole.logits, [](float x) { return std::isnan(x); }));
  const std::vector<size_t> chunks =
      GetParam().is_brief ? std::vector<size_t>{17, 100}
                          : std::vector<size_t>{1, 2, 15, 16, 17, 31, 32, 33, 64, 100, 130};
  for (const size_t chunk : chunks) {
    ExpectSame(InChunks(runner, ids, chunk), whole, std::to_string(chunk));
  }
}

// Steps of several sequences: one decodes, others prefill, in an order that changes.
TEST_P(ModelInvariance, HoldsInCompany) {
  ModelRunner runner = Runner();
  const std::array<std::vector<int32_t>, 4> ids = {RandomIds(1, 70), RandomIds(2, 33),
                                                   RandomIds(3, 64), RandomIds(4, 9)};
  std::array<Outcome, 4> alone;
  for (size_t s = 0; s < ids.size(); ++s) {
    alone[s] = InChunks(runner, ids[s], ids[s].size());
  }
  runner.ClearCache();
  constexpr size_t kChunks[4] = {1, 7, 16, 2};  // Tokens a step.
  std::array<Outcome, 4> together;
  std::array<size_t, 4> done = {};
  for (int step = 0; done != std::array<size_t, 4>{70, 33, 64, 9}; ++step) {
    std::vector<ModelRunner::Part> parts;
    for (size_t i = 0; i < ids.size(); ++i) {
      const size_t s = (i + static_cast<size_t>(step)) % ids.size();
      const size_t count = std::min(kChunks[s], ids[s].size() - done[s]);
      if (count > 0) {
        parts.push_back(
            {.sequence = static_cast<int>(s), .ids = std::span(ids[s]).subspan(done[s], count)});
      }
    }
    const std::vector<float> logits = runner.Run(parts);
    size_t first = 0;
    for (const ModelRunner::Part& part : parts) {
      const auto s = static_cast<size_t>(part.sequence);
      together[s].Append(runner, logits, first, part.ids.size());
      first += part.ids.size();
      done[s] += part.ids.size();
    }
  }
  for (size_t s = 0; s < ids.size(); ++s) {
    ExpectSame(together[s], alone[s], std::to_string(s));
  }
}

TEST_P(ModelInvariance, HoldsBesideABadToken) {
  ModelRunner runner = Runner();
  const std::vector<int32_t> good = RandomIds(5, 40);

  ModelSpec spec = RandomSpec(GetParam().architecture);
  const WeightSpec& table = spec.weights.front();
  ASSERT_EQ(table.role, Role::kEmbedding);
  std::vector<uint16_t> values = RandomValues(table, 100000);
  constexpr int32_t kBad = 50;
  std::vector<int32_t> clean = good;
  std::ranges::replace(clean, kBad, kBad + 1);
  const Outcome clean_alone = InChunks(runner, clean, clean.size());
  values[static_cast<size_t>(kBad * table.shape.back())] = 0x7FC0;  // NaN
  runner.weights().matrices.front() = PackWeight(table, values, kTestBf16, runner.backend());

  runner.ClearCache();
  const std::vector<int32_t> bad = {1, kBad, 2};
  const ModelRunner::Part parts[] = {{.sequence = 1, .ids = bad}, {.sequence = 0, .ids = clean}};
  const std::vector<float> logits = runner.Run(parts);
  EXPECT_TRUE(std::isnan(logits[static_cast<size_t>(spec.vocab_size)]));
  Outcome beside;
  beside.Append(runner, logits, bad.size(), clean.size());
  ExpectSame(beside, clean_alone, "beside a NaN");
}

TEST_P(ModelInvariance, HoldsAgainstTheReference) {
  const std::vector<int32_t> ids = RandomIds(8, 35);
  ModelRunner runner = Runner();
  ModelRunner oracle(MakeReferenceBackend(Recipe::kServing, 1), RandomSpec(GetParam().architecture),
                     1, GetParam().format);
  ExpectSame(InChunks(runner, ids, ids.size()), InChunks(oracle, ids, ids.size()), "reference");
}

TEST_P(ModelInvariance, HoldsUnderAnotherPrefix) {
  const std::vector<int32_t> ids = RandomIds(6, 40);
  ModelRunner runner = Runner();
  const Outcome expected = InChunks(runner, ids, ids.size());
  for (const char* prefix : {"", "language_model.model.", "model.language_model."}) {
    ModelRunner other(Cpu(), RandomSpec(GetParam().architecture, prefix), 1, GetParam().format);
    ExpectSame(InChunks(other, ids, ids.size()), expected, prefix);
  }
}

constexpr char kDense[] = "Qwen3ForCausalLM";
constexpr char kMoe[] = "Qwen3MoeForCausalLM";
constexpr char kMla[] = "DeepseekV3ForCausalLM";
INSTANTIATE_TEST_SUITE_P(Architectures, ModelInvariance,
                         testing::Values(Variant{"Qwen3", kDense, kTestBf16},
                                         Variant{"Qwen3Fp8", kDense, kTestFp8},
                                         Variant{"Qwen3Moe", kMoe, kTestBf16},
                                         Variant{"Qwen3MoeFp8", kMoe, kTestFp8},
                                         Variant{"DeepseekV3", kMla, kTestBf16},
                                         Variant{"DeepseekV3Fp8", kMla, kTestFp8},
                                         Variant{"Llama", "LlamaForCausalLM", kTestBf16},
                                         Variant{"Qwen2", "Qwen2ForCausalLM", kTestBf16}),
                         VariantName);

// Every format with every form of input but kNvfp4Batch, on every kind of block.
std::vector<Variant> QuantizedVariants() {
  std::vector<Variant> variants;
  for (const auto& [name, architecture] :
       {std::pair{"Dense", kDense}, {"Moe", kMoe}, {"Mla", kMla}}) {
    for (const auto& [format_name, format] : kTestQuantizedFormats) {
      variants.push_back({std::string(name) + format_name, architecture, format, true});
    }
  }
  return variants;
}

INSTANTIATE_TEST_SUITE_P(Formats, ModelInvariance, testing::ValuesIn(QuantizedVariants()),
                         VariantName);

INSTANTIATE_TEST_SUITE_P(
    Caches, ModelInvariance,
    testing::Values(
        Variant{"DenseFp8Cache", kDense, {.kv_dtype = DType::kF8E4m3}},
        Variant{"MlaFp8Cache", kMla, {.kv_dtype = DType::kF8E4m3}},
        Variant{"LlamaNvfp4", "LlamaForCausalLM", {WeightFormat::kNvfp4, InputForm::kNvfp4Token}},
        Variant{"Qwen2Mxfp8", "Qwen2ForCausalLM", {WeightFormat::kMxfp8, InputForm::kMxfp8}}),
    VariantName);

// The negative control: the scale of a step's inputs comes from all its tokens, so that a request
// changes with its company.
TEST(Nvfp4BatchScale, MakesTokensDependOnTheirStep) {
  for (const char* architecture : {kDense, kMoe, kMla}) {
    ModelRunner runner(Cpu(), RandomSpec(architecture), 1,
                       {WeightFormat::kNvfp4, InputForm::kNvfp4Batch});
    const std::vector<int32_t> ids = RandomIds(7, 40);
    const std::vector<float> whole = runner.Run(ids);
    runner.ClearCache();
    const std::vector<float> again = runner.Run(ids);
    EXPECT_EQ(std::memcmp(again.data(), whole.data(), whole.size() * sizeof(float)), 0);
    runner.ClearCache();
    const std::vector<float> first = runner.Run(std::span(ids).first(10));
    EXPECT_NE(std::memcmp(first.data(), whole.data(), first.size() * sizeof(float)), 0)
        << architecture;
  }
}

}  // namespace
}  // namespace octavo
