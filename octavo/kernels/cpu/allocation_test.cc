// Method: allocations are counted (allocation_counter_for_test.h); after Reserve every op runs at
// the reserved sizes and below, and the count must not move. The counter is seen to count first.

#include <fmt/core.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/allocation_counter_for_test.h"
#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/amx/amx.h"
#include "octavo/kernels/cpu/cpu_dispatch.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

// One layer's ops with everything they need, allocated before the count starts.
class LayerOps {
 public:
  LayerOps(Backend* backend, int64_t max_tokens)
      : backend_(*backend), expert_out_(DType::kBf16, max_tokens * kTopK, kWidth) {
    expert_out_.Fill(3);
    for (const WeightFormat format : AllWeightFormats()) {
      weights_.push_back(TestMatrix(format, 64, kWidth, 1).PackFor(backend_));
    }
    weights_.push_back(
        TestMatrix(WeightFormat::kNvfp4, InputForm::kNvfp4Batch, 64, kWidth, 1).PackFor(backend_));
    weights_.push_back(
        TestMatrix(WeightFormat::kNvfp4, InputForm::kNvfp4Static, 64, kWidth, 1).PackFor(backend_));
    bias_ = TestMatrix(WeightFormat::kBf16, 1, 64, 2).PackFor(backend_);
    norm_ = TestMatrix(WeightFormat::kBf16, 1, kWidth, 2).PackFor(backend_);
    page_bytes_ = backend_.KvPageBytes({2, 64});
    num_pages_ = max_tokens / kPageTokens + 2;
    pages_.resize(static_cast<size_t>(num_pages_ * page_bytes_));
    for (int32_t p = 0; p < num_pages_; ++p) {
      table_.push_back(p);
    }
    positions_.resize(static_cast<size_t>(max_tokens));
    tables_.assign(static_cast<size_t>(64), 0.5F);
    const auto max_slots = static_cast<size_t>(max_tokens * kTopK);
    experts_.resize(max_slots);
    source_rows_.resize(max_slots);
    row_of_slot_.resize(max_slots);
    route_weights_.resize(max_slots);
    segments_.reserve(static_cast<size_t>(max_tokens));
    stats_.resize(static_cast<size_t>(max_tokens));
  }

  // Buffers of at least `tokens` rows belong to the caller, so that only ops can allocate.
  void Run(int64_t tokens, const TestActivations& x, const TestActivations& y16,
           const TestActivations& q, const TestActivations& f32) {
    const auto rows = [&](const TestActivations& a) {
      Activations view = a.view();
      view.rows = tokens;
      return view;
    };
    for (const PackedMatrix& weight : weights_) {
      const LinearPart parts[] = {{&weight, rows(y16)}, {&weight, rows(f32), &bias_}};
      ASSERT_TRUE(backend_.Linear({rows(x), parts}).ok());
      // Two experts, of which each has half of the rows.
      const PackedMatrix* const experts[] = {&weight, &weight};
      const auto half = static_cast<int32_t>(tokens / 2);
      const int32_t offsets[] = {0, half, static_cast<int32_t>(tokens)};
      const GroupedPart grouped{experts, rows(y16)};
      ASSERT_TRUE(backend_
                      .GroupedLinear({rows(x),
                                      std::span(positions_).first(static_cast<size_t>(tokens)),
                                      offsets,
                                      {&grouped, 1}})
                      .ok());
    }
    ASSERT_TRUE(backend_.RmsNorm({rows(x), &norm_, 1e-6F, rows(x)}).ok());
    ASSERT_TRUE(backend_.Add({rows(x), rows(x)}).ok());
    ASSERT_TRUE(backend_.SiluMul({rows(x), rows(x), rows(x)}).ok());
    const std::span<const int32_t> positions =
        std::span(positions_).first(static_cast<size_t>(tokens));
    ASSERT_TRUE(backend_.Embed({positions, &weights_[0], rows(x)}).ok());
    ASSERT_TRUE(backend_.GatherRows({rows(x), positions, rows(x)}).ok());
    ASSERT_TRUE(backend_.Rope({rows(q), 4, 64, positions, tables_, tables_}).ok());
    const KvLayer kv{pages_.data(), page_bytes_, num_pages_, {2, 64}};
    const Segment segment{0, tokens, 0, table_};
    Activations kv_rows = rows(q);
    kv_rows.cols = 128;
    ASSERT_TRUE(backend_.KvStore({kv_rows, kv_rows, {&segment, 1}, kv}).ok());
    ASSERT_TRUE(backend_.Attention({rows(q), rows(q), {&segment, 1}, kv, 4, 0.125F}).ok());
    const std::span<float> stats = std::span(stats_).first(static_cast<size_t>(tokens));
    ASSERT_TRUE(backend_.SoftmaxStats({rows(f32), stats, stats}).ok());
  }

  // What else a layer of experts or of latent attention does.
  void RunExperts(int64_t tokens, const TestActivations& x, const TestActivations& q) {
    Activations in = q.view();
    in.rows = tokens;
    Activations logits = x.view();
    logits.rows = tokens;
    logits.cols = kExperts;
    const auto slots = static_cast<size_t>(tokens * kTopK);
    const std::span<int32_t> experts = std::span(experts_).first(slots);
    const std::span<int32_t> source_rows = std::span(source_rows_).first(slots);
    const std::span<int32_t> row_of_slot = std::span(row_of_slot_).first(slots);
    const std::span<float> weights = std::span(route_weights_).first(slots);
    ASSERT_TRUE(backend_
                    .Route({.logits = logits,
                            .scoring = RouteScoring::kSigmoid,
                            .bias = std::span(tables_).first(kExperts),
                            .num_groups = 4,
                            .top_groups = 2,
                            .top_k = kTopK,
                            .experts = experts,
                            .weights = weights})
                    .ok());
    ASSERT_TRUE(backend_.SortByExpert({experts, kTopK, source_rows, row_of_slot, offsets_}).ok());
    Activations expert_rows = expert_out_.view();
    expert_rows.rows = tokens * kTopK;
    Activations y = logits;
    y.cols = expert_rows.cols;
    ASSERT_TRUE(backend_.Combine({expert_rows, row_of_slot, weights, kTopK, y, y}).ok());
    ASSERT_TRUE(backend_.Copy({in, in}).ok());
    const std::span<const int32_t> positions =
        std::span(positions_).first(static_cast<size_t>(tokens));
    ASSERT_TRUE(backend_.Rope({in, 2, 64, positions, tables_, tables_, 128, true}).ok());
  }

  // Samples of one prompt, a token each, over a latent cache of either type.
  void RunSamples(int64_t tokens, const TestActivations& q) {
    segments_.clear();
    for (int64_t i = 0; i < tokens; ++i) {
      segments_.push_back({i, 1, kPageTokens + i, table_});
    }
    for (const DType dtype : {DType::kBf16, DType::kF8E4m3}) {
      const KvShape shape{1, 64, 32, dtype};
      const int64_t page_bytes = backend_.KvPageBytes(shape);
      ASSERT_LE(page_bytes, page_bytes_);
      const KvLayer kv{pages_.data(), page_bytes, num_pages_, shape};
      Activations in = q.view();
      in.rows = tokens;
      Activations k = in;
      k.cols = 64;
      Activations v = in;
      v.cols = 32;
      Activations y = in;
      y.cols = 128;
      ASSERT_TRUE(backend_.KvStore({k, v, segments_, kv}).ok());
      ASSERT_TRUE(backend_.Attention({in, y, segments_, kv, 4, 0.125F}).ok());
    }
  }

  static constexpr int64_t kWidth = 320;
  static constexpr size_t kExperts = 64;
  static constexpr int64_t kTopK = 3;

 private:
  Backend& backend_;
  std::vector<PackedMatrix> weights_;
  PackedMatrix norm_, bias_;
  int64_t page_bytes_ = 0;
  int64_t num_pages_ = 0;
  std::vector<std::byte> pages_;
  std::vector<int32_t> table_, positions_;
  std::vector<float> tables_, stats_;
  std::vector<int32_t> experts_, source_rows_, row_of_slot_;
  std::vector<int32_t> offsets_ = std::vector<int32_t>(kExperts + 1);
  std::vector<float> route_weights_;
  std::vector<Segment> segments_;
  TestActivations expert_out_;
};

TEST(CpuBackendAllocations, StopAfterReserve) {
  ASSERT_GT(CountAllocations([] { return fmt::format("{:64}", 1); }), 0);
  ASSERT_GT(CountAllocations([] { const auto some = Buffer::AllocateHost(100); }), 0);
  ASSERT_EQ(CountAllocations([] { const auto some = Buffer::AllocateHost(4 << 20); }) > 0,
            kCountsMappings);

  std::vector<cpu::CpuPath> paths;
  for (const auto target :
       {cpu::VectorTarget::kAvx2, cpu::VectorTarget::kAvx512, cpu::VectorTarget::kAvx512Vbmi}) {
    if (Result<cpu::CpuPath> path = cpu::FindVectorPath(target); path.has_value()) {
      paths.push_back(*path);
    }
  }
  if (Result<cpu::CpuPath> path = cpu::FindDotPath(); path.has_value()) {
    paths.push_back(*path);
  }
  if (!paths.empty()) {
    paths.push_back(paths.back());
    paths.back().matmul = cpu::AmxModelMatMulKernel();
    paths.back().wide = paths.back().matmul;
  }
  constexpr int64_t kTokens = 150;
  for (const cpu::CpuPath& path : paths) {
    const auto backend = cpu::MakeBackendOfPath(path, 2);
    LayerOps ops(backend.get(), kTokens);
    TestActivations x(DType::kBf16, kTokens, LayerOps::kWidth);
    const TestActivations y16(DType::kBf16, kTokens, 64);
    TestActivations q(DType::kBf16, kTokens, 256);
    const TestActivations f32(DType::kF32, kTokens, 64);
    x.Fill(1);
    q.Fill(2);
    ASSERT_TRUE(backend
                    ->Reserve({.max_tokens = kTokens,
                               .max_context = kTokens,
                               .max_width = LayerOps::kWidth,
                               .max_heads = 4,
                               .max_head_dim = 64,
                               .max_grouped_rows = kTokens})
                    .ok());
    const int64_t counted = CountAllocations([&] {
      for (const int64_t tokens : {int64_t{1}, int64_t{17}, kTokens}) {
        ops.Run(tokens, x, y16, q, f32);
        ops.RunExperts(tokens, x, q);
        ops.RunSamples(tokens - tokens / 3, q);
      }
    });
    EXPECT_EQ(counted, 0) << path.name;
  }
}

}  // namespace
}  // namespace octavo
