// Method: the slices of tiny models worked out by hand; then, for larger ones, that the slices of
// each tensor cover it once and that every expert row of the table has one.

#include "octavo/model/spec/stacked_experts.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/spec_for_test.h"

namespace octavo {
namespace {

using ::testing::IsEmpty;

// "NAME SHAPE" and a line a slice.
std::string SourceText(const ModelSpec& spec, const StackedSource& source) {
  std::string text = source.name + " " + ShapeString(source.shape) + "\n";
  for (const StackedSlice& slice : source.slices) {
    text += fmt::format("  {} {}+{} {}\n", slice.expert, slice.row_begin, slice.num_rows,
                        spec.weights[static_cast<size_t>(slice.weight)].name);
  }
  return text;
}

TEST(StackedSources, SliceGateRowsThenUpRowsOfEachExpert) {
  HfConfig config = TinyQwen3Moe();
  config.moe.mlp_only_layers = {0, 1, 3};
  const auto spec = MakeModelSpec(config, "model.language_model.");
  ASSERT_TRUE(spec.has_value());
  const std::vector<StackedSource> sources = StackedSourcesOf(*spec);
  ASSERT_EQ(sources.size(), 2U);
  EXPECT_EQ(sources[0].layer, 2);
  EXPECT_EQ(SourceText(*spec, sources[0]),
            R"(model.language_model.layers.2.mlp.experts.gate_up_proj [3, 10, 8]
  0 0+5 model.language_model.layers.2.mlp.experts.0.gate_proj.weight
  0 5+5 model.language_model.layers.2.mlp.experts.0.up_proj.weight
  1 0+5 model.language_model.layers.2.mlp.experts.1.gate_proj.weight
  1 5+5 model.language_model.layers.2.mlp.experts.1.up_proj.weight
  2 0+5 model.language_model.layers.2.mlp.experts.2.gate_proj.weight
  2 5+5 model.language_model.layers.2.mlp.experts.2.up_proj.weight
)");
  EXPECT_EQ(SourceText(*spec, sources[1]),
            R"(model.language_model.layers.2.mlp.experts.down_proj [3, 8, 5]
  0 0+8 model.language_model.layers.2.mlp.experts.0.down_proj.weight
  1 0+8 model.language_model.layers.2.mlp.experts.1.down_proj.weight
  2 0+8 model.language_model.layers.2.mlp.experts.2.down_proj.weight
)");
}

TEST(StackedSources, CoverEachTensorOnceAndEveryExpertRow) {
  for (const HfConfig& config : {TinyQwen3Moe(), TinyDeepseek()}) {
    const auto spec = MakeModelSpec(config);
    ASSERT_TRUE(spec.has_value());
    std::vector<int> seen(spec->weights.size(), 0);
    for (const StackedSource& source : StackedSourcesOf(*spec)) {
      int64_t next_row = 0;  // Along the flattened first two axes.
      for (const StackedSlice& slice : source.slices) {
        const WeightSpec& weight = spec->weights[static_cast<size_t>(slice.weight)];
        ++seen[static_cast<size_t>(slice.weight)];
        EXPECT_EQ(slice.expert * source.shape[1] + slice.row_begin, next_row) << weight.name;
        next_row += slice.num_rows;
        EXPECT_EQ(weight.shape, (Shape{slice.num_rows, source.shape[2]})) << weight.name;
        EXPECT_EQ(weight.expert, slice.expert);
        EXPECT_EQ(weight.layer, source.layer);
      }
      EXPECT_EQ(next_row, source.shape[0] * source.shape[1]) << source.name;
    }
    for (size_t i = 0; i < seen.size(); ++i) {
      EXPECT_EQ(seen[i], IsExpertRole(spec->weights[i].role) ? 1 : 0) << spec->weights[i].name;
    }
  }
}

TEST(StackedSources, AreNoneForADenseModel) {
  EXPECT_THAT(StackedSourcesOf(MakeModelSpec(TinyConfig("LlamaForCausalLM")).value()), IsEmpty());
}

TEST(CheckStackedShape, RefusesInputsFirstByName) {
  const StackedSource source{.name = "mlp.experts.down_proj", .shape = {3, 8, 5}, .slices = {}};
  EXPECT_TRUE(CheckStackedShape(source, {3, 8, 5}).ok());
  const Status input_first = CheckStackedShape(source, {3, 5, 8});
  EXPECT_EQ(input_first.code(), StatusCode::kUnsupported);
  EXPECT_EQ(input_first.message(),
            "mlp.experts.down_proj: expected [3, 8, 5] (experts, outputs, inputs), got [3, 5, 8]: "
            "stacked experts with inputs first, as Llama-4 and gpt-oss store them");
  for (const Shape& shape : {Shape{3, 8}, Shape{2, 8, 5}, Shape{}}) {
    EXPECT_EQ(CheckStackedShape(source, shape).code(), StatusCode::kInvalidArgument);
  }
}

}  // namespace
}  // namespace octavo
