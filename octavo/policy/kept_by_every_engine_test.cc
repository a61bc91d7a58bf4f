// Method: random policies on small models of every architecture, in every format and layout. The
// configuration that we write is read back in the dialect of every engine that reads its method,
// and each of them must build every module exactly as it is stored.

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/foreign_table.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/spec_for_test.h"

namespace octavo {
namespace {

constexpr uint64_t kNumPolicies = 400;

ModelSpec DenseSpec(const char* architecture, bool tied) {
  HfConfig config = TinyConfig(architecture);
  config.num_layers = 12;  // Layers 1, 10 and 11: names that begin alike.
  config.hidden_size = 64;
  config.head_dim = 16;
  config.intermediate_size = 96;
  config.tie_word_embeddings = tied;
  return MakeModelSpec(config).value();
}

std::vector<ModelSpec> Specs() {
  HfConfig nested = TinyQwen3Moe();
  nested.num_layers = 12;
  nested.hidden_size = 64;
  nested.head_dim = 16;
  nested.intermediate_size = 96;
  nested.moe.moe_intermediate_size = 32;
  return {DenseSpec("Qwen3ForCausalLM", true),  DenseSpec("LlamaForCausalLM", false),
          DenseSpec("Qwen2ForCausalLM", false), TestMoeSpec(),
          MakeModelSpec(nested).value(),        TestMlaSpec()};
}

class Choices {
 public:
  explicit Choices(uint64_t seed) : seed_(seed) {}
  // 0 to count - 1.
  uint32_t Below(uint32_t count) { return Philox(seed_, draw_++)[0] % count; }
  template <typename T, size_t kSize>
  const T& Of(const std::array<T, kSize>& values) {
    return values[Below(kSize)];
  }

 private:
  uint64_t seed_;
  uint64_t draw_ = 0;
};

PolicyOptions RandomOptions(const ModelSpec& spec, Choices& choices) {
  PolicyOptions options;
  options.format = choices.Of(std::array{
      WeightFormat::kFp8, WeightFormat::kFp8Ue8m0, WeightFormat::kFp8Channel,
      WeightFormat::kFp8Tensor, WeightFormat::kMxfp8, WeightFormat::kNvfp4, WeightFormat::kNvfp4});
  if (options.format == WeightFormat::kNvfp4 || options.format == WeightFormat::kFp8Channel) {
    options.layout =
        choices.Of(std::array{StoredLayout::kDefault, StoredLayout::kCompressedTensors});
  }
  options.scope = choices.Of(std::array<std::optional<QuantizeScope>, 4>{
      std::nullopt, QuantizeScope::kExperts, QuantizeScope::kMlp, QuantizeScope::kAll});
  const auto layers = static_cast<uint32_t>(spec.num_layers);
  options.keep_first = static_cast<int>(choices.Below(3) == 0 ? choices.Below(layers / 2) : 0);
  options.keep_last = static_cast<int>(choices.Below(3) == 0 ? choices.Below(layers / 2) : 0);
  options.keep_mtp = spec.num_mtp_layers > 0 && choices.Below(3) == 0;
  const std::string layer = fmt::format("{}", choices.Below(layers));
  const std::array<std::string, 9> patterns = {"o_proj",
                                               "mlp.experts",
                                               "mlp.shared_experts",
                                               "kv_b_proj",
                                               "model.layers." + layer,
                                               "layers." + layer + ".self_attn",
                                               "layers." + layer + ".mlp",
                                               "model.layers." + layer + ".mlp.*",
                                               "*.self_attn.kv_b_proj.*"};
  for (uint32_t i = choices.Below(3); i > 0; --i) {
    options.keep.push_back(choices.Of(patterns));
  }
  if (options.layout == StoredLayout::kCompressedTensors && choices.Below(2) == 0) {
    // Two formats side by side.
    const bool is_nvfp4 = options.format == WeightFormat::kNvfp4;
    options.rules.push_back(
        {.patterns = {"layers." + layer + ".*"},
         .roles = {Role::kAttentionO, Role::kMlpDown},
         .layers = {},
         .format = is_nvfp4 ? WeightFormat::kFp8Channel : WeightFormat::kNvfp4});
  }
  return options;
}

std::vector<StoredDType> StoredBy(const PrecisionTable& table) {
  std::vector<StoredDType> stored;
  for (const PrecisionRow& row : table.rows) {
    for (const StoredTensorSpec& tensor : StoredTensorsOf(row, table.layout)) {
      stored.push_back({tensor.name, tensor.dtype, tensor.shape});
    }
  }
  return stored;
}

std::string Described(const ModelSpec& spec, const PolicyOptions& options, uint64_t seed) {
  std::string keeps;
  for (const std::string& keep : options.keep) {
    keeps += " --keep " + keep;
  }
  return fmt::format("seed {}: {} --format {} --scope {} --keep-first {} --keep-last {}{}{}{}{}",
                     seed, spec.architecture, WeightFormatName(options.format),
                     options.scope ? QuantizeScopeName(*options.scope) : "none", options.keep_first,
                     options.keep_last, keeps, options.keep_mtp ? " --keep-mtp" : "",
                     options.layout == StoredLayout::kDefault ? "" : " --layout compressed-tensors",
                     options.rules.empty() ? "" : " and a rule of another format");
}

TEST(WrittenConfig, EveryEngineThatReadsItKeepsWhatWeKept) {
  const std::vector<ModelSpec> specs = Specs();
  int num_compiled = 0;
  std::array<int, 5> num_read = {};
  for (uint64_t seed = 0; seed < kNumPolicies; ++seed) {
    Choices choices(seed);
    const ModelSpec& spec = specs[choices.Below(static_cast<uint32_t>(specs.size()))];
    const PolicyOptions options = RandomOptions(spec, choices);
    const Result<PrecisionTable> table = CompilePolicy(spec, options);
    if (!table) {
      continue;
    }
    ++num_compiled;
    const std::string what = Described(spec, options, seed);
    const std::string config = QuantizationConfigJson(*table);
    const Result<PrecisionTable> foreign = TableFromForeignConfig(spec, config);
    ASSERT_TRUE(foreign.has_value()) << what << "\n" << foreign.error().message();
    EXPECT_EQ(foreign->Hash(), table->Hash()) << what << "\n" << config;
    const std::vector<StoredDType> stored = StoredBy(*table);
    for (const ForeignEngine engine : AllEngines()) {
      const Result<PlanAsReport> plan = PlanAs(
          {.spec = &spec, .quantization_config = config, .stored = stored, .engine = engine});
      if (!plan) {
        EXPECT_EQ(plan.error().code(), StatusCode::kUnsupported) << plan.error().message();
        continue;
      }
      ++num_read[static_cast<size_t>(engine)];
      for (const PolicyFinding& finding : plan->differences) {
        ADD_FAILURE() << what << "\n"
                      << EngineName(engine) << ": " << finding.code << " " << finding.message;
      }
    }
    if (::testing::Test::HasFailure()) {
      return;  // One is enough to look at.
    }
  }
  EXPECT_GT(num_compiled, 150);
  for (const ForeignEngine engine : AllEngines()) {
    EXPECT_GT(num_read[static_cast<size_t>(engine)], 20) << EngineName(engine);
  }
}

// What the file beside config.json says is the same.
TEST(WrittenConfig, TheFileOfModelOptMeansTheSame) {
  for (const ModelSpec& spec : Specs()) {
    for (const int keep_last : {0, 1}) {
      const PolicyOptions options = {.format = WeightFormat::kNvfp4, .keep_last = keep_last};
      const Result<PrecisionTable> compiled = CompilePolicy(spec, options);
      if (!compiled) {
        continue;  // The last layer is the only one with experts.
      }
      const PrecisionTable& table = *compiled;
      const Result<PrecisionTable> read = TableFromForeignConfig(spec, HfQuantConfigJson(table));
      ASSERT_TRUE(read.has_value()) << read.error().message();
      EXPECT_EQ(read->Hash(), table.Hash()) << Described(spec, options, 0);
    }
  }
}

}  // namespace
}  // namespace octavo
