// Method: small random models of three architectures in every format and layout. What staging holds
// after tensors came in shuffled orders, as BF16 or as stored parts, is read back and compared,
// digest for digest, with the files that the converter writes; each fault is made once.

#include "octavo/sync/staging.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/small_model_for_test.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::Not;

struct Case {
  const char* name;
  const char* config;
  WeightFormat format;
  StoredLayout layout;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const auto& [name, config] : {std::pair{"dense", kSmallDense}, std::pair{"moe", kSmallMoe},
                                     std::pair{"mla", kSmallMla}}) {
    for (const WeightFormat format : AllWeightFormats()) {
      cases.push_back({name, config, format, StoredLayout::kDefault});
      if (format == WeightFormat::kNvfp4) {
        cases.push_back({name, config, format, StoredLayout::kCompressedTensors});
      }
    }
  }
  return cases;
}

PolicyOptions PolicyOf(const Case& c) {
  PolicyOptions policy;
  policy.format = c.format;
  policy.layout = c.layout;
  if (c.format != WeightFormat::kBf16) {
    policy.scope = QuantizeScope::kAll;
  }
  return policy;
}

// A plan with the table that it points to.
struct Planned {
  PrecisionTable table;
  std::unique_ptr<const WeightPlan> plan;
};

std::unique_ptr<Planned> Plan(const ModelSpec& spec, PrecisionTable table,
                              const ArithmeticOptions& options = {}) {
  auto planned = std::make_unique<Planned>();
  planned->table = std::move(table);
  auto plan = MakeWeightPlan(spec, planned->table, options);
  CHECK(plan.error().message() == "");
  planned->plan = std::move(plan).value();
  return planned;
}

class StagingTest : public testing::Test {
 protected:
  std::unique_ptr<Staging> Stage(const WeightPlan& plan, std::optional<LiveBase> base = {},
                                 int64_t waiting_bytes_max = int64_t{1} << 30) {
    return std::make_unique<Staging>(StagingOptions{.plan = &plan,
                                                    .backend = backend_.get(),
                                                    .pool = nullptr,
                                                    .base = std::move(base),
                                                    .waiting_bytes_max = waiting_bytes_max});
  }

  Status PutAll(Staging& staging, const Checkpoint& checkpoint, uint32_t seed) {
    std::vector<const StoredTensor*> tensors;
    for (const StoredTensor& tensor : checkpoint.tensors()) {
      tensors.push_back(&tensor);
    }
    std::ranges::shuffle(tensors, std::mt19937(seed));
    for (const StoredTensor* tensor : tensors) {
      RETURN_IF_ERROR(staging.Put(tensor->name, tensor->view));
    }
    return OkStatus();
  }

  std::string Hex(const PrecisionTable& table, const ModelWeights& weights) {
    const auto digest = DigestLiveWeights(table, weights, *backend_, nullptr);
    CHECK(digest.has_value());
    return digest->hex;
  }

  std::string Path(const std::string& name) { return folder_.Path(name); }

  TestFolder folder_;
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend(Recipe::kServing, 1);
};

class StagingFormats : public StagingTest, public testing::WithParamInterface<Case> {};

TEST_P(StagingFormats, HoldsWhatTheConverterWritesInAnyOrderAndForm) {
  const Case& c = GetParam();
  const SmallModel model(Path("bf16"), c.config);
  const auto planned = Plan(model.spec(), model.Table(PolicyOf(c)));
  const std::string offline = model.Convert(planned->table, Path("stored"));
  const Checkpoint stored = std::move(*Checkpoint::Open(Path("stored")));
  for (const uint32_t seed : {1U, 2U}) {
    const auto from_bf16 = Stage(*planned->plan);
    ASSERT_EQ(PutAll(*from_bf16, model.Open(), seed).message(), "");
    EXPECT_EQ(from_bf16->waiting_bytes(), 0);
    ASSERT_EQ(from_bf16->Seal().message(), "");
    EXPECT_EQ(Hex(planned->table, *from_bf16->Take()), offline);

    const auto from_parts = Stage(*planned->plan);
    ASSERT_EQ(PutAll(*from_parts, stored, seed).message(), "");
    ASSERT_EQ(from_parts->Seal().message(), "");
    EXPECT_EQ(Hex(planned->table, *from_parts->Take()), offline);
  }
}

TEST_P(StagingFormats, LoadsAFolderThatTheConverterWroteByItsOwnTable) {
  const Case& c = GetParam();
  const SmallModel model(Path("bf16"), c.config);
  const std::string offline = model.Convert(model.Table(PolicyOf(c)), Path("stored"));
  const Checkpoint stored = std::move(*Checkpoint::Open(Path("stored")));
  auto table = TableFromQuantizationConfig(model.spec(), stored.config().quantization_config);
  ASSERT_TRUE(table.has_value()) << table.error().message();
  const auto planned = Plan(model.spec(), std::move(*table));
  const auto weights = LoadWeights(stored, *planned->plan, *backend_);
  ASSERT_TRUE(weights.has_value()) << weights.error().message();
  EXPECT_EQ(Hex(planned->table, **weights), offline);
}

TEST_P(StagingFormats, OneFlippedLiveBitChangesTheDigest) {
  const Case& c = GetParam();
  const SmallModel model(Path("bf16"), c.config);
  const auto planned = Plan(model.spec(), model.Table(PolicyOf(c)));
  auto weights = std::move(*LoadWeights(model.Open(), *planned->plan, *backend_));
  const std::string before = Hex(planned->table, *weights);
  for (size_t i = 0; i < weights->matrices.size(); ++i) {
    PackedMatrix& matrix = weights->matrices[i];
    for (Buffer* buffer : {&matrix.codes, &matrix.scales}) {
      if (buffer->num_bytes() > 0) {
        buffer->data()[0] ^= std::byte{1};
        EXPECT_NE(Hex(planned->table, *weights), before) << planned->table.rows[i].name;
        buffer->data()[0] ^= std::byte{1};
      }
    }
    const bool has_tensor_scale = SharesScale(matrix.format);
    for (float* value : {&matrix.tensor_scale, &weights->stored_input_scales[i]}) {
      if (has_tensor_scale && *value != 0.0F) {
        const float held = std::exchange(*value, *value * 1.5F);
        EXPECT_NE(Hex(planned->table, *weights), before) << planned->table.rows[i].name;
        *value = held;
      }
    }
  }
  EXPECT_EQ(Hex(planned->table, *weights), before);
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  std::string name = std::string(info.param.name) + "_" +
                     std::string(WeightFormatName(info.param.format)) +
                     (info.param.layout == StoredLayout::kDefault ? "" : "_ct");
  std::ranges::replace(name, '-', '_');
  return name;
}

INSTANTIATE_TEST_SUITE_P(All, StagingFormats, testing::ValuesIn(AllCases()), CaseName);

// --- Sets that share a scale ---------------------------------------------------------------------

PolicyOptions Nvfp4All() {
  PolicyOptions policy;
  policy.format = WeightFormat::kNvfp4;
  policy.scope = QuantizeScope::kAll;
  return policy;
}

constexpr const char* kGate = "model.layers.1.mlp.gate_proj.weight";
constexpr const char* kUp = "model.layers.1.mlp.up_proj.weight";
constexpr const char* kQ = "model.layers.1.self_attn.q_proj.weight";

class StagingSets : public StagingTest {
 protected:
  ConstTensorView Weight(const char* name) const { return checkpoint_.Find(name)->view; }

  SmallModel model_{Path("bf16"), kSmallDense};
  Checkpoint checkpoint_ = model_.Open();
  std::unique_ptr<Planned> planned_ = Plan(model_.spec(), model_.Table(Nvfp4All()));
  std::unique_ptr<Staging> staging_ = Stage(*planned_->plan);
};

TEST_F(StagingSets, AMemberWaitsAsBf16UntilTheLastOneIsThere) {
  ASSERT_TRUE(staging_->Put(kGate, Weight(kGate)).ok());
  EXPECT_EQ(staging_->waiting_bytes(), int64_t{2} * 288 * 160);
  EXPECT_EQ(staging_->num_staged(), 0);
  EXPECT_TRUE(staging_->Put(kGate, Weight(kGate)).ok());  // The same again changes nothing.
  ASSERT_TRUE(staging_->Put(kUp, Weight(kUp)).ok());
  EXPECT_EQ(staging_->waiting_bytes(), 0);
  EXPECT_EQ(staging_->num_staged(), 2);
}

TEST_F(StagingSets, ASetWithoutOneMemberIsNamedAtTheSeal) {
  for (const StoredTensor& tensor : checkpoint_.tensors()) {
    if (tensor.name != kUp) {
      ASSERT_TRUE(staging_->Put(tensor.name, tensor.view).ok());
    }
  }
  const Status status = staging_->Seal();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(std::string("missing ") + kUp));
  EXPECT_THAT(status.message(), HasSubstr(std::string("wait ") + kGate));
  ASSERT_TRUE(staging_->Put(kUp, Weight(kUp)).ok());
  EXPECT_TRUE(staging_->Seal().ok());
}

TEST_F(StagingSets, WhatWaitsIsBounded) {
  const auto staging = Stage(*planned_->plan, {}, int64_t{2} * 288 * 160);
  ASSERT_TRUE(staging->Put(kGate, Weight(kGate)).ok());
  const Status status = staging->Put(kQ, Weight(kQ));
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr(kQ));
  ASSERT_TRUE(staging->Put(kUp, Weight(kUp)).ok());  // The set is done, so there is room again.
  EXPECT_TRUE(staging->Put(kQ, Weight(kQ)).ok());
}

TEST_F(StagingSets, ASetInTwoFormsIsRefused) {
  model_.Convert(planned_->table, Path("stored"));
  const Checkpoint stored = std::move(*Checkpoint::Open(Path("stored")));
  ASSERT_TRUE(staging_->Put(kGate, Weight(kGate)).ok());
  Status status = staging_->Put(kUp, stored.Find(kUp)->view);
  EXPECT_THAT(status.message(), HasSubstr(kGate));
  const auto other = Stage(*planned_->plan);
  ASSERT_TRUE(other->Put(kUp, stored.Find(kUp)->view).ok());
  status = other->Put(kGate, Weight(kGate));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(kUp));
}

TEST_F(StagingSets, AnInfiniteMemberIsRefusedWhenItComes) {
  TestTensor poisoned = model_.tensors().at(kGate);
  poisoned.bytes[3] = std::byte{0x7F};
  poisoned.bytes[2] = std::byte{0x80};
  const Status status = staging_->Put(kGate, {DType::kBf16, poisoned.shape, poisoned.bytes.data()});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("[0, 1]"));
  EXPECT_EQ(staging_->waiting_bytes(), 0);
}

TEST_F(StagingSets, AStoredPartThatCannotBeIsRefusedWhenItComes) {
  model_.Convert(planned_->table, Path("stored"));
  const Checkpoint stored = std::move(*Checkpoint::Open(Path("stored")));
  const float infinite = std::numeric_limits<float>::infinity();
  const auto scalar = [](const float& value) {
    return ConstTensorView{DType::kF32, {}, reinterpret_cast<const std::byte*>(&value)};
  };
  const std::string global = "model.layers.1.mlp.up_proj.weight_scale_2";
  EXPECT_THAT(staging_->Put(global, scalar(infinite)).message(), HasSubstr(global));
  EXPECT_TRUE(staging_->Put(global, stored.Find(global)->view).ok());
  EXPECT_THAT(staging_->Put(global, scalar(0.5F)).message(), HasSubstr("another value"));
}

// --- Input scales --------------------------------------------------------------------------------

class StagingInputScales : public StagingTest {
 protected:
  // The stored form of the model with input scales of its own: 1 + the position of the row.
  void MakeStored(const char* config, StoredLayout layout, WeightFormat format) {
    model_.emplace(Path("bf16"), config);
    PolicyOptions policy = Nvfp4All();
    policy.layout = layout;
    policy.format = format;
    table_ = model_->Table(policy);
    table_.declares_input_scales = true;
    model_->Convert(table_, Path("stored"));
    stored_.emplace(std::move(*Checkpoint::Open(Path("stored"))));
  }
  float ScaleOf(size_t row_idx) const { return 1.0F + static_cast<float>(row_idx); }

  Status PutStored(Staging& staging, const WeightPlan& plan, const std::string& except = "") {
    for (const StoredTensor& tensor : stored_->tensors()) {
      if (!tensor.name.ends_with("input_scale") && !tensor.name.ends_with("input_global_scale")) {
        RETURN_IF_ERROR(staging.Put(tensor.name, tensor.view));
      }
    }
    for (size_t i = 0; i < plan.parts.size(); ++i) {
      for (const StoredTensorSpec& part : plan.parts[i]) {
        const float value = ScaleOf(i);
        if (IsInputScale(part.part) && part.name != except) {
          RETURN_IF_ERROR(staging.Put(
              part.name, {DType::kF32, part.shape, reinterpret_cast<const std::byte*>(&value)}));
        }
      }
    }
    return OkStatus();
  }

  std::optional<SmallModel> model_;
  PrecisionTable table_;
  std::optional<Checkpoint> stored_;
};

constexpr ArithmeticOptions kStatic = {.nvfp4_input_scale = Nvfp4InputScale::kStatic};

// Sets quantize their input once: with the largest scale of q/k/v, of gate/up, and over experts.
TEST_F(StagingInputScales, StaticOnesAreTheLargestOfTheirSet) {
  MakeStored(kSmallMoe, StoredLayout::kDefault, WeightFormat::kNvfp4);
  const auto planned = Plan(model_->spec(), table_, kStatic);
  const auto staging = Stage(*planned->plan);
  ASSERT_EQ(PutStored(*staging, *planned->plan).message(), "");
  ASSERT_EQ(staging->Seal().message(), "");
  const auto weights = staging->Take();
  const auto row = [&](const char* name) {
    return static_cast<size_t>(FindWeight(model_->spec(), name));
  };
  const auto scale = [&](const char* name) { return weights->matrices[row(name)].input_scale; };
  EXPECT_EQ(scale(kQ), ScaleOf(row("model.layers.1.self_attn.v_proj.weight")));
  EXPECT_EQ(scale("model.layers.1.self_attn.o_proj.weight"),
            ScaleOf(row("model.layers.1.self_attn.o_proj.weight")));
  EXPECT_EQ(scale("model.layers.0.mlp.experts.0.gate_proj.weight"),
            ScaleOf(row("model.layers.0.mlp.experts.3.up_proj.weight")));
  EXPECT_EQ(scale("model.layers.0.mlp.experts.2.up_proj.weight"),
            ScaleOf(row("model.layers.0.mlp.experts.3.up_proj.weight")));
  EXPECT_EQ(scale("model.layers.1.mlp.experts.1.down_proj.weight"),
            ScaleOf(row("model.layers.1.mlp.experts.3.down_proj.weight")));
  EXPECT_EQ(weights->stored_input_scales[row(kQ)], ScaleOf(row(kQ)));  // As stored: the digest's.
  EXPECT_EQ(weights->matrices[row(kQ)].input, InputForm::kNvfp4Static);
}

TEST_F(StagingInputScales, TheDivisorOfCompressedTensorsDivides) {
  MakeStored(kSmallDense, StoredLayout::kCompressedTensors, WeightFormat::kNvfp4);
  const auto planned = Plan(model_->spec(), table_, kStatic);
  const auto staging = Stage(*planned->plan);
  ASSERT_EQ(PutStored(*staging, *planned->plan).message(), "");
  ASSERT_EQ(staging->Seal().message(), "");
  const auto weights = staging->Take();
  const auto gate = static_cast<size_t>(FindWeight(model_->spec(), kGate));
  EXPECT_EQ(weights->matrices[gate].input_scale, 1.0F / ScaleOf(gate));  // Up's divisor is larger.
}

TEST_F(StagingInputScales, OnesOfFp8TensorAreStaticWhereTheConfigurationSaysSo) {
  MakeStored(kSmallDense, StoredLayout::kDefault, WeightFormat::kFp8Tensor);
  const auto planned = Plan(model_->spec(), table_);
  const auto staging = Stage(*planned->plan);
  ASSERT_EQ(PutStored(*staging, *planned->plan).message(), "");
  ASSERT_EQ(staging->Seal().message(), "");
  const auto up = static_cast<size_t>(FindWeight(model_->spec(), kUp));
  const auto weights = staging->Take();
  EXPECT_EQ(weights->matrices[up].input, InputForm::kFp8Static);
  EXPECT_EQ(weights->matrices[up].input_scale, ScaleOf(up));

  table_.declares_input_scales = false;
  const auto dynamic = Plan(model_->spec(), table_);
  EXPECT_EQ(dynamic->plan->inputs[up], InputForm::kFp8Token);
}

TEST_F(StagingInputScales, AMissingStaticOneIsNamed) {
  MakeStored(kSmallDense, StoredLayout::kDefault, WeightFormat::kNvfp4);
  const auto planned = Plan(model_->spec(), table_, kStatic);
  const std::string missing = "model.layers.0.mlp.down_proj.input_scale";
  const auto staging = Stage(*planned->plan);
  ASSERT_EQ(PutStored(*staging, *planned->plan, missing).message(), "");
  const Status status = staging->Seal();
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("missing " + missing));

  const auto load =
      LoadWeights(model_->Open(), *planned->plan, *backend_);  // BF16 has none at all.
  ASSERT_FALSE(load.has_value());
  EXPECT_THAT(load.error().message(), HasSubstr("input_scale"));
}

TEST_F(StagingInputScales, AnUpdateCarriesThemOverWhenItBringsNone) {
  MakeStored(kSmallDense, StoredLayout::kDefault, WeightFormat::kNvfp4);
  const auto planned = Plan(model_->spec(), table_, kStatic);
  const auto staging = Stage(*planned->plan);
  ASSERT_EQ(PutStored(*staging, *planned->plan).message(), "");
  ASSERT_EQ(staging->Seal().message(), "");
  const auto live = staging->Take();

  const auto update = Stage(*planned->plan, LiveBaseOf(*live));
  ASSERT_EQ(PutAll(*update, model_->Open(), 3).message(), "");
  ASSERT_EQ(update->Seal().message(), "");
  EXPECT_EQ(Hex(table_, *live), Hex(table_, *update->Take()));
}

TEST_F(StagingTest, OneFlippedByteOfADerivedWeightIsFound) {
  const SmallModel model(Path("bf16"), kSmallMla);
  PolicyOptions policy;
  policy.format = WeightFormat::kFp8;
  const auto planned = Plan(model.spec(), model.Table(policy));
  const auto weights = std::move(*LoadWeights(model.Open(), *planned->plan, *backend_));
  ASSERT_FALSE(weights->derived.empty());
  EXPECT_EQ(CheckDerivedWeights(model.spec(), *weights, *backend_).message(), "");
  weights->derived.back().codes.data()[5] ^= std::byte{1};
  EXPECT_EQ(CheckDerivedWeights(model.spec(), *weights, *backend_).code(), StatusCode::kCorrupt);
}

// --- What may be left out, and what may come in another shape ------------------------------------

TEST_F(StagingTest, MtpWeightsMayBeLeftOutExactlyWhenTheyAreNotHeld) {
  const SmallModel with(Path("with"), kSmallMla);
  const SmallModel without(Path("without"), kSmallMla, 1, /*with_mtp=*/false);
  const auto planned = Plan(with.spec(), with.Table({}));
  const auto load = [&](const SmallModel& model) {
    auto weights = LoadWeights(model.Open(), *planned->plan, *backend_);
    CHECK(weights.error().message() == "");
    return std::move(weights).value();
  };
  const auto full = load(with);
  const auto bare = load(without);
  EXPECT_EQ(Hex(planned->table, *full), DigestCheckpoint(with.Open(), nullptr).hex);
  EXPECT_EQ(Hex(planned->table, *bare), DigestCheckpoint(without.Open(), nullptr).hex);

  const auto onto_bare = Stage(*planned->plan, LiveBaseOf(*bare));
  ASSERT_EQ(PutAll(*onto_bare, without.Open(), 1).message(), "");
  EXPECT_EQ(onto_bare->Seal().message(), "");
  const auto onto_full = Stage(*planned->plan, LiveBaseOf(*full));
  ASSERT_EQ(PutAll(*onto_full, without.Open(), 1).message(), "");
  EXPECT_THAT(onto_full->Seal().message(), HasSubstr("model.layers.2."));
}

TEST_F(StagingTest, TheRouterBiasStaysF32AndOtherVectorsDoNot) {
  const SmallModel model(Path("bf16"), kSmallMla);
  const auto planned = Plan(model.spec(), model.Table({}));
  const auto weights = std::move(*LoadWeights(model.Open(), *planned->plan, *backend_));
  for (size_t i = 0; i < planned->table.rows.size(); ++i) {
    const PackedMatrix& matrix = weights->matrices[i];
    const bool is_bias = planned->table.rows[i].role == Role::kRouterBias;
    EXPECT_EQ(matrix.vector_dtype, is_bias ? DType::kF32 : DType::kBf16);
    if (is_bias) {
      const TestTensor& source = model.tensors().at(planned->table.rows[i].name);
      EXPECT_EQ(std::memcmp(matrix.codes.data(), source.bytes.data(), source.bytes.size()), 0);
    }
  }
}

TEST_F(StagingTest, StackedExpertsAreTakenApart) {
  const SmallModel model(Path("bf16"), kSmallMoe);
  TestTensors tensors = model.tensors();
  for (const StackedSource& source : StackedSourcesOf(model.spec())) {
    TestTensor& stacked = tensors[source.name];
    stacked.shape = source.shape;
    for (const StackedSlice& slice : source.slices) {
      const auto node =
          tensors.extract(model.spec().weights[static_cast<size_t>(slice.weight)].name);
      const std::vector<std::byte>& bytes = node.mapped().bytes;
      stacked.bytes.insert(stacked.bytes.end(), bytes.begin(), bytes.end());
    }
  }
  WriteTestCheckpoint(Path("stacked"), tensors, 1, kSmallMoe);
  const auto planned = Plan(model.spec(), model.Table(Nvfp4All()));
  const auto stacked = LoadWeights(*Checkpoint::Open(Path("stacked")), *planned->plan, *backend_);
  ASSERT_TRUE(stacked.has_value()) << stacked.error().message();
  EXPECT_EQ(Hex(planned->table, **stacked), model.Convert(planned->table, Path("stored")));
}

// A text model inside a larger one: other names, and towers that are not served.
TEST_F(StagingTest, ATextModelInsideALargerOneIsLoadedByItsPrefix) {
  const SmallModel model(Path("bf16"), kSmallDense);
  TestTensors tensors;
  for (const auto& [name, tensor] : model.tensors()) {
    tensors["model.language_model" + name.substr(std::string("model").size())] = tensor;
  }
  tensors["model.visual.blocks.0.attn.proj.weight"] = RandomBf16({8, 8}, 5);
  const std::string config = R"({"architectures": ["LlavaForConditionalGeneration"],
    "model_type": "llava", "text_config": )" +
                             std::string(kSmallDense) + "}";
  WriteTestCheckpoint(Path("wrapped"), tensors, 1, config);
  const Checkpoint wrapped = std::move(*Checkpoint::Open(Path("wrapped")));
  const auto spec = MakeCheckpointSpec(wrapped);
  ASSERT_TRUE(spec.has_value()) << spec.error().message();
  const auto planned = Plan(*spec, std::move(*CompilePolicy(*spec, Nvfp4All())));
  const auto weights = LoadWeights(wrapped, *planned->plan, *backend_);
  ASSERT_TRUE(weights.has_value()) << weights.error().message();
  const auto digest = DigestLiveWeights(planned->table, **weights, *backend_, nullptr);
  EXPECT_EQ(digest->tensors.front().name, "model.language_model.embed_tokens.weight");
}

TEST_F(StagingTest, ATiedHeadMustBeTheEmbedding) {
  const SmallModel model(Path("bf16"), kSmallDense);
  const auto planned = Plan(model.spec(), model.Table({}));
  const ConstTensorView embedding = model.Open().Find("model.embed_tokens.weight")->view;
  TestTensor other = model.tensors().at("model.embed_tokens.weight");
  for (const bool head_first : {true, false}) {
    const auto staging = Stage(*planned->plan);
    const Checkpoint checkpoint = model.Open();
    const ConstTensorView head = checkpoint.Find("model.embed_tokens.weight")->view;
    if (head_first) {
      ASSERT_TRUE(staging->Put("lm_head.weight", head).ok());
    }
    ASSERT_EQ(PutAll(*staging, checkpoint, 1).message(), "");
    EXPECT_TRUE(staging->Put("lm_head.weight", head).ok());
    EXPECT_TRUE(staging->Seal().ok());
  }
  other.bytes[0] ^= std::byte{1};
  const auto staging = Stage(*planned->plan);
  ASSERT_TRUE(
      staging->Put("lm_head.weight", {DType::kBf16, embedding.shape, other.bytes.data()}).ok());
  ASSERT_EQ(PutAll(*staging, model.Open(), 1).message(), "");
  EXPECT_THAT(staging->Seal().message(), HasSubstr("tie_word_embeddings"));
}

TEST_F(StagingTest, AWeightThatTheConfigurationCallsQuantizedIsNotTakenAsBf16) {
  const SmallModel model(Path("bf16"), kSmallDense);
  const PrecisionTable table = model.Table(Nvfp4All());
  model.Convert(table, Path("stored"));
  const Checkpoint stored = std::move(*Checkpoint::Open(Path("stored")));
  TestTensors tensors;
  for (const StoredTensor& tensor : stored.tensors()) {
    const auto bytes = tensor.view.Bytes();
    tensors[tensor.name] = {tensor.view.dtype, tensor.view.shape, {bytes.begin(), bytes.end()}};
  }
  tensors[kUp] = model.tensors().at(kUp);
  WriteTestCheckpoint(Path("mixed"), tensors, 1, stored.config().config_json);
  const auto planned = Plan(model.spec(), table);
  const auto weights = LoadWeights(*Checkpoint::Open(Path("mixed")), *planned->plan, *backend_);
  ASSERT_FALSE(weights.has_value());
  EXPECT_THAT(weights.error().message(), HasSubstr(kUp));
  EXPECT_THAT(weights.error().message(), HasSubstr("expected U8, got BF16"));
}

}  // namespace
}  // namespace octavo
