// Method: the logits of the trained checkpoint models/abacus-dense against those that HF
// transformers computed for it in FP32 (tests/data/model/dense.safetensors: prompts, logits after
// every prompt position, greedy continuations). Bounds and their definitions stand at each test; a
// last test breaks one weight block and sees the bound fail.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr int64_t kMaxTokens = 256;

struct GoldenPrompt {
  std::vector<int32_t> ids;
  std::vector<float> logits;  // [ids, vocab]
  std::vector<int32_t> greedy;
};

template <typename T>
std::vector<T> Elements(const SafetensorsFile& file, const std::string& name) {
  for (const SafetensorsEntry& entry : file.header().entries) {
    if (entry.name == name) {
      const ConstTensorView view = file.View(entry);
      std::vector<T> elements(static_cast<size_t>(NumElements(view.shape)));
      std::memcpy(elements.data(), view.data, elements.size() * sizeof(T));
      return elements;
    }
  }
  ADD_FAILURE() << "no tensor " << name;
  return {};
}

std::vector<GoldenPrompt> LoadGolden() {
  Result<SafetensorsFile> file = SafetensorsFile::Open("tests/data/model/dense.safetensors");
  EXPECT_TRUE(file.has_value()) << file.error().message();
  std::vector<GoldenPrompt> prompts;
  for (int i = 0; i < 4; ++i) {
    const std::string prefix = std::to_string(i);
    prompts.push_back({.ids = Elements<int32_t>(*file, prefix + ".ids"),
                       .logits = Elements<float>(*file, prefix + ".logits"),
                       .greedy = Elements<int32_t>(*file, prefix + ".greedy")});
  }
  return prompts;
}

// How the weights of the checkpoint are changed before they are packed.
struct WeightOptions {
  bool fp8 = false;            // Every linear layer in FP8 blocks.
  std::string damaged_weight;  // Its first 128x128 block is multiplied by 1.5.
};

std::vector<uint16_t> Bf16Values(const ConstTensorView& view) {
  std::vector<uint16_t> values(static_cast<size_t>(NumElements(view.shape)));
  std::memcpy(values.data(), view.data, values.size() * sizeof(uint16_t));
  return values;
}

void ScaleFirstBlock(int64_t cols, std::vector<uint16_t>* values) {
  for (int64_t n = 0; n < kFp8BlockDim; ++n) {
    for (int64_t k = 0; k < kFp8BlockDim; ++k) {
      uint16_t& bits = (*values)[static_cast<size_t>(n * cols + k)];
      bits = FloatToBf16(Bf16ToFloat(bits) * 1.5F);
    }
  }
}

PackedMatrix PackWeight(const WeightSpec& row, std::vector<uint16_t> values, bool fp8,
                        const Backend& backend) {
  CanonicalMatrix canonical;
  canonical.cols = row.shape.back();
  canonical.rows = NumElements(row.shape) / canonical.cols;
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  if (fp8 && IsLinearRole(row.role)) {
    codes.resize(values.size());
    scales.resize(static_cast<size_t>(NumFp8Blocks(canonical.rows) * NumFp8Blocks(canonical.cols)));
    EXPECT_TRUE(EncodeFp8Block({.rows = canonical.rows,
                                .cols = canonical.cols,
                                .values = values,
                                .codes = codes,
                                .scales = scales})
                    .ok());
    canonical.format = WeightFormat::kFp8;
    canonical.codes = std::as_bytes(std::span(codes));
    canonical.scales = std::as_bytes(std::span(scales));
    canonical.input = InputForm::kFp8Group;
  } else {
    canonical.codes = std::as_bytes(std::span(values));
  }
  PackedMatrix packed;
  const Status status = backend.Pack(canonical, &packed);
  EXPECT_TRUE(status.ok()) << status.message();
  return packed;
}

// A model on one backend, with the weights of models/abacus-dense and a KV cache of one sequence.
class Runner {
 public:
  Runner(std::unique_ptr<Backend> backend, const WeightOptions& options)
      : backend_(std::move(backend)) {
    Result<Checkpoint> checkpoint = Checkpoint::Open("models/abacus-dense");
    EXPECT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    Result<ModelSpec> spec = MakeModelSpec(checkpoint->config());
    EXPECT_TRUE(spec.has_value()) << spec.error().message();
    spec_ = *spec;
    for (const WeightSpec& row : spec_.weights) {
      const StoredTensor* stored = checkpoint->Find(row.name);
      EXPECT_NE(stored, nullptr) << row.name;
      std::vector<uint16_t> values = Bf16Values(stored->view);
      if (row.name == options.damaged_weight) {
        ScaleFirstBlock(row.shape.back(), &values);
      }
      weights_.matrices.push_back(PackWeight(row, std::move(values), options.fp8, *backend_));
    }
    Result<std::unique_ptr<Model>> model =
        MakeModel(spec_, backend_.get(),
                  {.max_tokens = kMaxTokens, .max_logit_rows = 64, .max_context = kMaxTokens});
    EXPECT_TRUE(model.has_value()) << model.error().message();
    model_ = std::move(*model);
    ClearCache();
  }

  const ModelSpec& spec() const { return spec_; }

  // Forgets every cached token.
  void ClearCache() {
    const int64_t num_pages = kMaxTokens / kPageTokens;
    const int64_t page_bytes = backend_->KvPageBytes(KvShapeOf(spec_));
    memory_.clear();
    kv_.clear();
    page_table_.clear();
    for (int64_t layer = 0; layer < spec_.num_layers; ++layer) {
      memory_.push_back(*Buffer::AllocateHost(page_bytes * num_pages));
      kv_.push_back({.pages = memory_.back().data(),
                     .page_bytes = page_bytes,
                     .num_pages = num_pages,
                     .shape = KvShapeOf(spec_)});
    }
    for (int64_t page = num_pages - 1; page >= 0; --page) {
      page_table_.push_back(static_cast<int32_t>(page));  // Not the identity.
    }
    num_cached_ = 0;
  }

  // Runs `ids` after what is cached; logits [ids, vocab] of every one of them.
  std::vector<float> Run(std::span<const int32_t> ids) {
    const auto count = static_cast<int64_t>(ids.size());
    std::vector<int32_t> positions;
    std::vector<int32_t> rows;
    for (int64_t i = 0; i < count; ++i) {
      positions.push_back(static_cast<int32_t>(num_cached_ + i));
      rows.push_back(static_cast<int32_t>(i));
    }
    const Segment segments[] = {{.first_row = 0,
                                 .num_rows = count,
                                 .first_position = num_cached_,
                                 .page_table = page_table_}};
    const Status ran = model_->Forward(
        {.token_ids = ids, .positions = positions, .segments = segments}, weights_, kv_);
    EXPECT_TRUE(ran.ok()) << ran.message();
    num_cached_ += count;
    std::vector<float> logits(static_cast<size_t>(count * spec_.vocab_size));
    const Status headed = model_->Logits(rows, weights_, logits);
    EXPECT_TRUE(headed.ok()) << headed.message();
    return logits;
  }

 private:
  std::unique_ptr<Backend> backend_;
  ModelSpec spec_;
  ModelWeights weights_;
  std::unique_ptr<Model> model_;
  std::vector<Buffer> memory_;
  std::vector<KvLayer> kv_;
  std::vector<int32_t> page_table_;
  int64_t num_cached_ = 0;
};

// Natural log-softmax in FP64.
std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double max = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float x : logits) {
    sum += std::exp(x - max);
  }
  std::vector<double> result;
  for (const float x : logits) {
    result.push_back(x - max - std::log(sum));
  }
  return result;
}

// How far a backend's distributions are from the golden ones, over all positions of all prompts.
struct Mismatch {
  double max_abs_logit = 0.0;  // Largest |difference| of any logit.
  double kl_mean = 0.0;        // Mean over positions of sum_i p_i ln(p_i / q_i), p golden.
  double dlogprob_mean = 0.0;  // Mean over positions whose next token is known (prompt tokens 1..)
                               // of |ln p(next) - ln q(next)|.
};

Mismatch Compare(Runner& runner) {
  Mismatch mismatch;
  int64_t num_positions = 0;
  int64_t num_predictions = 0;
  const auto vocab = static_cast<size_t>(runner.spec().vocab_size);
  for (const GoldenPrompt& prompt : LoadGolden()) {
    runner.ClearCache();
    const std::vector<float> logits = runner.Run(prompt.ids);
    for (size_t t = 0; t < prompt.ids.size(); ++t) {
      const auto golden_row = std::span(prompt.logits).subspan(t * vocab, vocab);
      const auto row = std::span(logits).subspan(t * vocab, vocab);
      const std::vector<double> golden = LogSoftmax(golden_row);
      const std::vector<double> actual = LogSoftmax(row);
      for (size_t i = 0; i < vocab; ++i) {
        mismatch.max_abs_logit =
            std::max(mismatch.max_abs_logit, std::abs(double{row[i]} - double{golden_row[i]}));
        mismatch.kl_mean += std::exp(golden[i]) * (golden[i] - actual[i]);
      }
      ++num_positions;
      if (t + 1 < prompt.ids.size()) {
        const auto next = static_cast<size_t>(prompt.ids[t + 1]);
        mismatch.dlogprob_mean += std::abs(golden[next] - actual[next]);
        ++num_predictions;
      }
    }
  }
  mismatch.kl_mean /= static_cast<double>(num_positions);
  mismatch.dlogprob_mean /= static_cast<double>(num_predictions);
  return mismatch;
}

// BF16 serving against FP32: mean KL <= 1e-5 and mean |dlogprob| <= 0.001 (the project's bar).
bool WithinBf16Bound(const Mismatch& mismatch) {
  return mismatch.kl_mean <= 1e-5 && mismatch.dlogprob_mean <= 0.001;
}

TEST(Qwen3Fp32Recipe, LogitsEqualTransformersWithin2e4) {
  Runner runner(MakeReferenceBackend(Recipe::kFp32, 2), {});
  // 2e-4: both sides compute in FP32 and differ by the order of their sums alone.
  const Mismatch mismatch = Compare(runner);
  RecordProperty("max_abs_logit", std::to_string(mismatch.max_abs_logit));
  EXPECT_LE(mismatch.max_abs_logit, 2e-4);
}

TEST(Qwen3Fp32Recipe, GreedyContinuationsEqualTransformers) {
  Runner runner(MakeReferenceBackend(Recipe::kFp32, 2), {});
  for (const GoldenPrompt& prompt : LoadGolden()) {
    runner.ClearCache();
    std::vector<float> logits = runner.Run(prompt.ids);
    std::vector<int32_t> greedy;
    while (greedy.size() < prompt.greedy.size()) {
      const auto last = std::span(logits).last(static_cast<size_t>(runner.spec().vocab_size));
      const auto best = std::ranges::max_element(last) - last.begin();
      greedy.push_back(static_cast<int32_t>(best));
      logits = runner.Run(std::span(greedy).last(1));
    }
    EXPECT_EQ(greedy, prompt.greedy);
  }
}

TEST(Qwen3ServingRecipe, Bf16StaysWithinItsBound) {
  Runner runner(MakeReferenceBackend(Recipe::kServing, 2), {});
  const Mismatch mismatch = Compare(runner);
  EXPECT_LE(mismatch.kl_mean, 1e-5);
  EXPECT_LE(mismatch.dlogprob_mean, 0.001);
  // And it did round: FP32 would be a hundred times closer.
  EXPECT_GT(mismatch.max_abs_logit, 2e-3);
}

TEST(Qwen3ServingRecipe, Fp8OfAllLinearLayersStaysWithinItsBound) {
  Runner runner(MakeReferenceBackend(Recipe::kServing, 2), {.fp8 = true, .damaged_weight = ""});
  const Mismatch mismatch = Compare(runner);
  EXPECT_LE(mismatch.kl_mean, 3e-4);
  EXPECT_FALSE(WithinBf16Bound(mismatch));  // It is FP8 that ran.
}

// Seen to fail: one block of a middle layer is enough, on both counts. (The bound is a mean over
// 149 positions; of ten blocks tried, one hid below rounding: layer 3's first of up_proj, KL 4e-6.)
TEST(Qwen3ServingRecipe, OneBlockTimesOneAndAHalfBreaksTheBf16Bound) {
  Runner runner(MakeReferenceBackend(Recipe::kServing, 2),
                {.fp8 = false, .damaged_weight = "model.layers.3.self_attn.o_proj.weight"});
  const Mismatch mismatch = Compare(runner);
  EXPECT_GT(mismatch.kl_mean, 1e-5);
  EXPECT_GT(mismatch.dlogprob_mean, 0.001);
}

// The vector path gives the bits of the oracle, so one prompt is enough here; the ops themselves
// are compared in kernels.
TEST(Qwen3CpuBackend, GivesTheBitsOfTheServingRecipe) {
  const std::vector<int32_t> ids = LoadGolden()[0].ids;
  for (const bool fp8 : {false, true}) {
    Result<std::unique_ptr<Backend>> cpu = MakeCpuBackend(BestIsa(), 2);
    ASSERT_TRUE(cpu.has_value()) << cpu.error().message();
    Runner fast(std::move(*cpu), {.fp8 = fp8, .damaged_weight = ""});
    Runner oracle(MakeReferenceBackend(Recipe::kServing, 2), {.fp8 = fp8, .damaged_weight = ""});
    const std::vector<float> actual = fast.Run(ids);
    const std::vector<float> expected = oracle.Run(ids);
    ASSERT_EQ(std::memcmp(actual.data(), expected.data(), expected.size() * sizeof(float)), 0);
  }
}

TEST(Qwen3, ChunksOfAPromptGiveTheBitsOfTheWhole) {
  Runner runner(MakeReferenceBackend(Recipe::kServing, 2), {});
  const std::vector<int32_t> ids = LoadGolden()[2].ids;  // 46 tokens: two pages.
  const std::vector<float> whole = runner.Run(ids);
  for (const size_t cut : {size_t{1}, size_t{16}, size_t{31}, size_t{32}, size_t{33}}) {
    runner.ClearCache();
    std::vector<float> chunked = runner.Run(std::span(ids).first(cut));
    const std::vector<float> rest = runner.Run(std::span(ids).subspan(cut));
    chunked.insert(chunked.end(), rest.begin(), rest.end());
    EXPECT_EQ(std::memcmp(chunked.data(), whole.data(), whole.size() * sizeof(float)), 0) << cut;
  }
}

// A spec that can be converted is not yet one that can be served: the message says what of it.
TEST(MakeModel, RefusesByNameWhatIsNotServed) {
  struct Case {
    const char* says;
    std::function<void(ModelSpec&)> change;
  };
  const Case cases[] = {
      {"GptOssForCausalLM", [](ModelSpec& s) { s.architecture = "GptOssForCausalLM"; }},
      {"serving DeepseekV3ForCausalLM is not built in this release",
       [](ModelSpec& s) { s.architecture = "DeepseekV3ForCausalLM"; }},
      {"with yarn rope scaling", [](ModelSpec& s) { s.rope_scaling.type = RopeType::kYarn; }},
      {"with attention_bias", [](ModelSpec& s) { s.has_qkv_bias = true; }},
      {"with attention_bias", [](ModelSpec& s) { s.has_o_bias = true; }},
  };
  std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  for (const Case& c : cases) {
    ModelSpec spec;
    spec.architecture = "Qwen3ForCausalLM";
    EXPECT_TRUE(CheckServable(spec).ok());
    c.change(spec);
    const Result<std::unique_ptr<Model>> model =
        MakeModel(spec, backend.get(), {.max_tokens = 1, .max_logit_rows = 1, .max_context = 1});
    ASSERT_FALSE(model.has_value()) << c.says;
    EXPECT_EQ(model.error().code(), StatusCode::kUnsupported);
    EXPECT_NE(model.error().message().find(c.says), std::string::npos) << model.error().message();
  }
}

}  // namespace
}  // namespace octavo
