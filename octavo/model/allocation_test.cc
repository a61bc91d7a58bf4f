// Method: allocations are counted (allocation_counter_for_test.h) over the first Forward and Logits
// of a model that was just built, at its largest batch and at one token, for every architecture on
// the vector backend, in every format with every form of input, and with a KV cache in FP8.

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/allocation_counter_for_test.h"
#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr int64_t kMaxTokens = 100;

// Allocations of the first pass over `tokens` tokens, with the logits of the last one.
int64_t CountPass(const ModelSpec& spec, TestFormat format, int64_t tokens) {
  Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(BestIsa(), 2);
  EXPECT_TRUE(backend.has_value()) << backend.error().message();
  ModelWeights weights;
  weights.matrices.reserve(spec.weights.size());
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& row = spec.weights[i];
    weights.matrices.push_back(PackWeight(row, RandomValues(row, i), format, **backend));
  }
  EXPECT_TRUE(DeriveWeights(spec, **backend, &weights).ok());
  const KvShape shape = KvShapeOf(spec, format.kv_dtype);
  const int64_t page_bytes = (*backend)->KvPageBytes(shape);
  const int64_t num_pages = (kMaxTokens + kPageTokens - 1) / kPageTokens;
  Buffer pages = Buffer::AllocateHost(spec.num_layers * num_pages * page_bytes).value();
  std::vector<KvLayer> kv;
  kv.reserve(static_cast<size_t>(spec.num_layers));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    kv.push_back({.pages = pages.data() + layer * num_pages * page_bytes,
                  .page_bytes = page_bytes,
                  .num_pages = num_pages,
                  .shape = shape});
  }
  std::vector<int32_t> page_table(static_cast<size_t>(num_pages));
  std::iota(page_table.begin(), page_table.end(), 0);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  const Segment segments[] = {{.num_rows = tokens, .page_table = page_table}};
  const int32_t rows[] = {static_cast<int32_t>(tokens - 1)};
  std::vector<float> logits(static_cast<size_t>(spec.vocab_size));
  Result<std::unique_ptr<Model>> model =
      MakeModel(spec, backend->get(),
                {.max_tokens = kMaxTokens, .max_logit_rows = 4, .max_context = kMaxTokens});
  EXPECT_TRUE(model.has_value()) << model.error().message();

  Status ran;
  Status headed;
  const int64_t counted = CountAllocations([&] {
    ran =
        (*model)->Forward({.token_ids = ids, .positions = ids, .segments = segments}, weights, kv);
    headed = (*model)->Logits(rows, weights, logits);
  });
  EXPECT_TRUE(ran.ok()) << ran.message();
  EXPECT_TRUE(headed.ok()) << headed.message();
  return counted;
}

std::vector<NamedTestFormat> Formats() {
  std::vector<NamedTestFormat> formats(std::begin(kTestQuantizedFormats),
                                       std::end(kTestQuantizedFormats));
  formats.push_back({"Bf16", kTestBf16});
  formats.push_back({"Fp8", kTestFp8});
  formats.push_back({"Nvfp4Batch", {WeightFormat::kNvfp4, InputForm::kNvfp4Batch}});
  formats.push_back({"Fp8Cache", {.kv_dtype = DType::kF8E4m3}});
  formats.push_back({"Mxfp8Fp8Cache", {WeightFormat::kMxfp8, InputForm::kMxfp8, DType::kF8E4m3}});
  return formats;
}

TEST(ModelAllocations, AreAllMadeWhenAModelIsBuilt) {
  ASSERT_GT(CountAllocations([] { return fmt::format("{:64}", 1); }), 0);
  ASSERT_GT(CountAllocations([] { const Buffer some = Buffer::AllocateHost(64).value(); }), 0);
  for (const char* architecture :
       {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "LlamaForCausalLM"}) {
    for (const auto& [name, format] : Formats()) {
      const ModelSpec spec = RandomSpec(architecture);
      EXPECT_EQ(CountPass(spec, format, kMaxTokens), 0) << architecture << " " << name;
      EXPECT_EQ(CountPass(spec, format, 1), 0) << architecture << " " << name;
    }
  }
}

}  // namespace
}  // namespace octavo
