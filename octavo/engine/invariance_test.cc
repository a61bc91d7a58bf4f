// Method: promise 5, bit for bit. One request is run alone; then the same request is run in every
// other way the engine has - in company, after a prefix hit, with other chunk sizes, retracted half
// way by a full pool and by a swap to equal weights, and as a scored prompt - and tokens and
// logprobs must have equal bits. Prompt lengths stand around the borders of matrix tiles (16),
// pages (32), FP8 groups and chunks (128, 512). BF16 and FP8; reference and vector backend. Then in
// brief, on the vector backend, every architecture in every format with every form of input that
// has this promise, and with a KV cache in FP8.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/page_pool.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model_for_test.h"

namespace octavo {
namespace {

constexpr int64_t kNewTokens = 40;  // Crosses a page border from every length.
constexpr int64_t kLengths[] = {15, 16, 17, 31, 32, 33, 127, 128, 129, 511, 512, 513};
// For the scalar reference, which is slow; the vector backend has its bits and takes all lengths.
constexpr int64_t kFewLengths[] = {15, 17, 32, 129};

struct Variant {
  const char* name = nullptr;
  TestFormat format = {};
  bool cpu = false;
};

std::string VariantName(const testing::TestParamInfo<Variant>& info) { return info.param.name; }

// The request under test: sampled at temperature 1, so that its logprobs are those of scoring.
Request Subject(int64_t length) {
  Request request =
      Sampling(RandomIds(static_cast<uint64_t>(length), length), 7 + length, kNewTokens);
  request.rid = "subject";
  return request;
}

Request Other(uint64_t seed) {
  Request request;
  request.input_ids = RandomIds(1000 + seed, 1 + static_cast<int64_t>(seed * 37 % 150));
  request.sampling.max_new_tokens = 5 + static_cast<int64_t>(seed % 40);
  request.sampling.ignore_eos = true;
  request.sampling.seed = static_cast<int64_t>(seed);
  return request;
}

class Promise5 : public testing::TestWithParam<Variant> {
 protected:
  HarnessOptions Options() const {
    HarnessOptions options;
    options.weights.format = GetParam().format;
    options.cpu = GetParam().cpu;
    options.num_threads = 2;
    return options;
  }

  static std::span<const int64_t> Lengths() {
    return GetParam().cpu ? std::span<const int64_t>(kLengths) : kFewLengths;
  }

  Collected Alone(int64_t length) const {
    Harness harness(Options());
    return harness.Run(Subject(length));
  }
};

void ExpectSameBits(const Collected& actual, const Collected& expected, const std::string& what) {
  EXPECT_EQ(actual.all.new_ids, expected.all.new_ids) << what;
  EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(expected.all.new_logprobs)) << what;
  EXPECT_EQ(actual.all.routed_experts, expected.all.routed_experts) << what;
}

// Runs `generate`, then asks for the logprobs of what it gave.
void ExpectGeneratedAsScored(Harness& harness, Request generate) {
  Request score;
  score.input_ids = generate.input_ids;
  const size_t length = score.input_ids.size();
  const Collected generated = harness.Run(std::move(generate));
  score.input_ids.insert(score.input_ids.end(), generated.all.new_ids.begin(),
                         generated.all.new_ids.end());
  score.sampling.max_new_tokens = 0;
  score.return_logprob = true;
  score.logprob_start_len = static_cast<int64_t>(length) - 1;
  const Collected scored = harness.Run(std::move(score));
  ASSERT_EQ(scored.all.input_logprobs.size(), static_cast<size_t>(kNewTokens + 1));
  EXPECT_FALSE(scored.all.input_logprobs[0].first.has_value());
  std::vector<TokenLogprob> entries;
  for (size_t i = 1; i < scored.all.input_logprobs.size(); ++i) {
    entries.push_back({.logprob = scored.all.input_logprobs[i].first.value(),
                       .id = scored.all.input_logprobs[i].second});
  }
  EXPECT_EQ(Bits(entries), Bits(generated.all.new_logprobs)) << length;
}

TEST_P(Promise5, InCompanyAsAlone) {
  for (const int64_t length : Lengths()) {
    Harness harness(Options());
    std::vector<std::shared_ptr<RecordingSink>> others;
    others.reserve(63);
    for (uint64_t i = 0; i < 30; ++i) {
      others.push_back(harness.Add(Other(i)));
    }
    const std::shared_ptr<RecordingSink> subject = harness.Add(Subject(length));
    for (uint64_t i = 30; i < 63; ++i) {
      others.push_back(harness.Add(Other(i)));
    }
    harness.RunAll();
    ExpectSameBits(subject->Get(), Alone(length), std::to_string(length));
    for (const auto& other : others) {
      EXPECT_TRUE(other->finished());
    }
  }
}

TEST_P(Promise5, WithAPrefixHitAsWithout) {
  for (const int64_t length : Lengths()) {
    const Collected alone = Alone(length);
    Harness harness(Options());
    const Collected first = harness.Run(Subject(length));
    EXPECT_EQ(first.all.cached_tokens, 0);
    const Collected second = harness.Run(Subject(length));
    EXPECT_EQ(second.all.cached_tokens, length - 1);
    ExpectSameBits(second, alone, std::to_string(length));

    // Without the cache there is no hit, and the same bits.
    HarnessOptions options = Options();
    options.engine.prefix_cache = false;
    Harness plain(options);
    plain.Run(Subject(length));
    const Collected uncached = plain.Run(Subject(length));
    EXPECT_EQ(uncached.all.cached_tokens, 0);
    ExpectSameBits(uncached, alone, std::to_string(length));
  }
}

TEST_P(Promise5, InAnyChunks) {
  for (const int64_t length : Lengths()) {
    const Collected alone = Alone(length);
    for (const int64_t chunk_tokens : {int64_t{16}, int64_t{100}, int64_t{512}}) {
      HarnessOptions options = Options();
      options.engine.chunk_tokens = chunk_tokens;
      Harness harness(options);
      harness.Add(Other(3));
      const std::shared_ptr<RecordingSink> subject = harness.Add(Subject(length));
      harness.RunAll();
      ExpectSameBits(subject->Get(), alone,
                     std::to_string(length) + " in chunks of " + std::to_string(chunk_tokens));
    }
  }
}

TEST_P(Promise5, RetractedByAFullPool) {
  for (const int64_t length : Lengths()) {
    HarnessOptions options = Options();
    // One page less than both would need in the end, so the younger has to go and come back.
    options.engine.max_total_tokens = (2 * NumPagesFor(length + kNewTokens) - 1) * kPageTokens;
    Harness harness(options);
    Request older = Subject(length);
    older.rid = "older";
    older.input_ids = RandomIds(99, length);
    harness.Add(std::move(older));
    const std::shared_ptr<RecordingSink> subject = harness.Add(Subject(length));
    harness.RunAll();
    ExpectSameBits(subject->Get(), Alone(length), std::to_string(length));
    EXPECT_GE(subject->Get().all.num_retractions, 1) << length;
  }
}

TEST_P(Promise5, RetractedBySwapsToEqualWeights) {
  for (const int64_t length : Lengths()) {
    Harness harness(Options());
    const std::shared_ptr<RecordingSink> subject = harness.Add(Subject(length));
    for (int i = 0; i < 8; ++i) {
      harness.Step();
    }
    for (int swap = 0; swap < 3; ++swap) {
      harness.core().Swap({.weights = harness.NewWeights(Options().weights),
                           .version = "v" + std::to_string(swap),
                           .in_flight = InFlight::kRetract,
                           .done = nullptr});
      for (int i = 0; i < 9; ++i) {
        harness.Step();
      }
    }
    harness.RunAll();
    EXPECT_EQ(subject->Get().all.num_retractions, 3);
    ExpectSameBits(subject->Get(), Alone(length), std::to_string(length));
  }
}

TEST_P(Promise5, GeneratedAsScored) {
  for (const int64_t length : Lengths()) {
    for (const float temperature : {0.0F, 1.0F}) {
      Harness harness(Options());
      Request generate = Subject(length);
      generate.sampling.temperature = temperature;
      SCOPED_TRACE(temperature);
      ExpectGeneratedAsScored(harness, std::move(generate));
    }
  }
}

// Below temperature 1, generation reports the tempered distribution; asking for the same ids one
// step at a time (a fresh prefill each) must give the same bits.
TEST_P(Promise5, TemperedLogprobsAreThoseOfAFreshPrefill) {
  for (const int64_t length : {int64_t{17}, int64_t{33}}) {
    Harness harness(Options());
    Request generate = Subject(length);
    generate.sampling.temperature = 0.7F;
    const Collected generated = harness.Run(std::move(generate));
    for (const size_t step : {size_t{0}, size_t{1}, size_t{15}, size_t{39}}) {
      Request one;
      one.input_ids = RandomIds(static_cast<uint64_t>(length), length);
      one.input_ids.insert(one.input_ids.end(), generated.all.new_ids.begin(),
                           generated.all.new_ids.begin() + static_cast<std::ptrdiff_t>(step));
      one.sampling.max_new_tokens = 1;
      one.sampling.temperature = 0.7F;
      one.return_logprob = true;
      one.logprob_start_len = 0;  // No prefix hit.
      one.token_ids_logprob = {generated.all.new_ids[step]};
      const Collected fresh = harness.Run(std::move(one));
      EXPECT_EQ(Bits(fresh.all.new_ids_logprobs[0]), Bits({generated.all.new_logprobs[step]}));
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Engine, Promise5,
                         testing::Values(Variant{.name = "Bf16Reference"},
                                         Variant{.name = "Fp8Reference", .format = kTestFp8},
                                         Variant{.name = "Bf16Cpu", .cpu = true},
                                         Variant{
                                             .name = "Fp8Cpu", .format = kTestFp8, .cpu = true}),
                         VariantName);

// --- Every architecture and format, in brief ----------------------------------------------------

constexpr int64_t kLength = 45;  // A page and a tail, which a prefix hit copies.

struct BriefVariant {
  std::string name;
  const char* architecture = nullptr;
  TestFormat format = {};
};

class Promise5InFormats : public testing::TestWithParam<BriefVariant> {
 protected:
  static HarnessOptions Options() {
    HarnessOptions options;
    options.spec = RandomSpec(GetParam().architecture);
    options.weights.format = GetParam().format;
    options.engine.kv_cache_dtype = GetParam().format.kv_dtype;
    options.engine.max_total_tokens = 1024;
    options.engine.return_routed_experts = options.spec.moe.num_experts > 0;
    options.cpu = true;
    return options;
  }
  // With the experts that its tokens were sent to, where there are any.
  static Request Routed(Request request) {
    request.return_routed_experts = Options().engine.return_routed_experts;
    return request;
  }
  static Collected Alone() {
    Harness harness(Options());
    return harness.Run(Routed(Subject(kLength)));
  }
};

TEST_P(Promise5InFormats, InCompanyAndInChunksAsAlone) {
  HarnessOptions options = Options();
  options.engine.chunk_tokens = 16;
  Harness harness(options);
  harness.Add(Other(1));
  harness.Add(Other(2));
  const std::shared_ptr<RecordingSink> subject = harness.Add(Routed(Subject(kLength)));
  harness.Add(Other(3));
  harness.Add(Other(4));
  harness.RunAll();
  ExpectSameBits(subject->Get(), Alone(), "in company");
}

TEST_P(Promise5InFormats, WithAPrefixHitAndACopiedTailAsWithout) {
  Harness harness(Options());
  const Collected first = harness.Run(Routed(Subject(kLength)));
  EXPECT_EQ(first.all.cached_tokens, 0);
  const Collected second = harness.Run(Routed(Subject(kLength)));
  EXPECT_EQ(second.all.cached_tokens, kLength - 1);
  ExpectSameBits(second, first, "with a prefix hit");
}

TEST_P(Promise5InFormats, RetractedByAFullPool) {
  HarnessOptions options = Options();
  options.engine.max_total_tokens = (2 * NumPagesFor(kLength + kNewTokens) - 1) * kPageTokens;
  Harness harness(options);
  Request older = Subject(kLength);
  older.rid = "older";
  older.input_ids = RandomIds(99, kLength);
  harness.Add(std::move(older));
  const std::shared_ptr<RecordingSink> subject = harness.Add(Routed(Subject(kLength)));
  harness.RunAll();
  EXPECT_GE(subject->Get().all.num_retractions, 1);
  ExpectSameBits(subject->Get(), Alone(), "retracted");
}

// Retracted all is computed again; in place all is kept.
TEST_P(Promise5InFormats, ThroughSwapsToEqualWeights) {
  for (const InFlight in_flight : {InFlight::kRetract, InFlight::kInPlace}) {
    Harness harness(Options());
    const std::shared_ptr<RecordingSink> subject = harness.Add(Routed(Subject(kLength)));
    harness.Steps(8);
    harness.core().Swap({.weights = harness.NewWeights(Options().weights),
                         .version = "v1",
                         .in_flight = in_flight,
                         .done = nullptr});
    harness.RunAll();
    EXPECT_EQ(subject->Get().all.num_retractions, in_flight == InFlight::kRetract ? 1 : 0);
    ExpectSameBits(subject->Get(), Alone(), "swapped");
  }
}

TEST_P(Promise5InFormats, GeneratedAsScored) {
  Harness harness(Options());
  ExpectGeneratedAsScored(harness, Subject(kLength));
}

std::vector<BriefVariant> BriefVariants() {
  std::vector<NamedTestFormat> formats = {
      {"Bf16", kTestBf16}, {"Fp8", kTestFp8}, {"Fp8Cache", {.kv_dtype = DType::kF8E4m3}}};
  formats.insert(formats.end(), std::begin(kTestQuantizedFormats), std::end(kTestQuantizedFormats));
  std::vector<BriefVariant> variants;
  for (const auto& [name, architecture] : {std::pair{"Dense", "Qwen3ForCausalLM"},
                                           {"Moe", "Qwen3MoeForCausalLM"},
                                           {"Mla", "DeepseekV3ForCausalLM"},
                                           {"Llama", "LlamaForCausalLM"},
                                           {"Qwen2", "Qwen2ForCausalLM"}}) {
    for (const NamedTestFormat& format : formats) {
      variants.push_back({std::string(name) + format.name, architecture, format.format});
    }
  }
  return variants;
}

INSTANTIATE_TEST_SUITE_P(Engine, Promise5InFormats, testing::ValuesIn(BriefVariants()),
                         [](const auto& info) { return info.param.name; });

// The negative space: other weights, another seed and another prompt do change the bits.
TEST(Promise5Negative, OtherWeightsOtherSeedOtherPromptGiveOtherTokens) {
  Request request;
  request.input_ids = RandomIds(5, 20);
  request.sampling.max_new_tokens = 40;
  request.sampling.ignore_eos = true;
  request.sampling.seed = 1;
  const auto run = [](const Request& like, uint64_t weights_seed, int64_t seed) {
    HarnessOptions options;
    options.weights.seed = weights_seed;
    Harness harness(options);
    Request copy;
    copy.input_ids = like.input_ids;
    copy.sampling = like.sampling;
    copy.sampling.seed = seed;
    return harness.Run(std::move(copy)).all.new_ids;
  };
  const std::vector<int32_t> base = run(request, 1, 1);
  EXPECT_EQ(run(request, 1, 1), base);
  EXPECT_NE(run(request, 2, 1), base);
  EXPECT_NE(run(request, 1, 2), base);
  request.input_ids[3] ^= 1;
  EXPECT_NE(run(request, 1, 1), base);
}

}  // namespace
}  // namespace octavo
