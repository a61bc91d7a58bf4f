// Method: Route, Combine and Rope of every path against the reference's serving recipe, bit for
// bit, over odd numbers of experts, groups, dims and rows, with one to three threads; ties and bad
// tokens are planted. And each op on one row alone against the same row in company.

#include <gtest/gtest.h>

#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <numeric>
#include <span>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

class MoeOps : public PathTest {};

INSTANTIATE_TEST_SUITE_P(Paths, MoeOps, ::testing::ValuesIn(AllPaths()),
                         [](const auto& info) { return info.param.name; });
// A processor without any vector path has nothing to compare.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(MoeOps);

// --- Route --------------------------------------------------------------------------------------

struct RouteCase {
  RouteScoring scoring;
  int64_t num_experts;
  int64_t num_groups;
  int64_t top_groups;
  int64_t top_k;
  bool norm_topk_prob;
  bool has_bias;
};

constexpr std::array kRouteCases = {
    RouteCase{RouteScoring::kSoftmax, 128, 1, 1, 8, true, false},
    RouteCase{RouteScoring::kSoftmax, 128, 1, 1, 8, false, false},
    RouteCase{RouteScoring::kSoftmax, 7, 1, 1, 3, true, false},
    RouteCase{RouteScoring::kSoftmax, 1, 1, 1, 1, true, false},
    RouteCase{RouteScoring::kSoftmax, 60, 4, 2, 30, false, false},
    RouteCase{RouteScoring::kSigmoid, 256, 8, 4, 8, true, true},
    RouteCase{RouteScoring::kSigmoid, 256, 8, 4, 8, false, true},
    RouteCase{RouteScoring::kSigmoid, 24, 3, 3, 5, true, false},
    RouteCase{RouteScoring::kSigmoid, 5, 5, 3, 3, true, true},
    RouteCase{RouteScoring::kSigmoid, 33, 1, 1, 33, true, true},
    RouteCase{RouteScoring::kSigmoid, 1024, 16, 2, 9, true, true},
};

struct Routing {
  std::vector<int32_t> experts;
  std::vector<float> weights;
};

Routing RunRoute(Backend* backend, const RouteCase& c, const Activations& logits) {
  std::vector<float> bias(c.has_bias ? static_cast<size_t>(c.num_experts) : 0);
  for (size_t e = 0; e < bias.size(); ++e) {
    bias[e] = e % 3 == 0 ? -0.5F : 0.25F * TestValue(4, e);
  }
  const auto num_slots = static_cast<size_t>(logits.rows * c.top_k);
  Routing routing{std::vector<int32_t>(num_slots, -1), std::vector<float>(num_slots, -1.0F)};
  const Status status = backend->Route({.logits = logits,
                                        .scoring = c.scoring,
                                        .bias = bias,
                                        .num_groups = c.num_groups,
                                        .top_groups = c.top_groups,
                                        .norm_topk_prob = c.norm_topk_prob,
                                        .sum_eps = 1e-20F,
                                        .scale = 2.5F,
                                        .top_k = c.top_k,
                                        .experts = routing.experts,
                                        .weights = routing.weights});
  EXPECT_TRUE(status.ok()) << status.message();
  return routing;
}

void ExpectSame(const Routing& expected, const Routing& actual) {
  ASSERT_EQ(expected.experts, actual.experts);
  for (size_t i = 0; i < expected.weights.size(); ++i) {
    ASSERT_TRUE(std::bit_cast<uint32_t>(expected.weights[i]) ==
                    std::bit_cast<uint32_t>(actual.weights[i]) ||
                (std::isnan(expected.weights[i]) && std::isnan(actual.weights[i])))
        << "slot " << i << ": expected " << expected.weights[i] << ", got " << actual.weights[i];
  }
}

// Logits with ties (values rounded to eighths) and bad tokens.
void FillLogits(TestActivations* logits) {
  for (int64_t t = 0; t < logits->view().rows; ++t) {
    for (int64_t e = 0; e < logits->view().cols; ++e) {
      const float value = 3.0F * TestValue(static_cast<uint64_t>(t), static_cast<uint64_t>(e));
      logits->Set(t, e, t % 3 == 1 ? std::round(value * 8.0F) / 8.0F : value);
    }
  }
  const auto set = [&](int64_t row, int64_t col, float value) {
    if (row < logits->view().rows) {
      logits->Set(row, col % logits->view().cols, value);
    }
  };
  set(3, 17, std::numeric_limits<float>::quiet_NaN());
  set(4, 2, std::numeric_limits<float>::infinity());
  set(5, 1, -std::numeric_limits<float>::infinity());
  set(6, 0, 200.0F);
  set(7, 0, -200.0F);
}

TEST_P(MoeOps, RouteEqualsTheReference) {
  for (const int num_threads : {1, 2, 3}) {
    const auto backend = Make(num_threads);
    for (const RouteCase& c : kRouteCases) {
      for (const DType dtype : {DType::kF32, DType::kBf16}) {
        for (const int64_t rows : {1, 3, 17, 130}) {
          SCOPED_TRACE(fmt::format("experts {} groups {} top {} rows {} threads {}", c.num_experts,
                                   c.num_groups, c.top_k, rows, num_threads));
          TestActivations logits(dtype, rows, c.num_experts);
          FillLogits(&logits);
          ExpectSame(RunRoute(reference_.get(), c, logits.view()),
                     RunRoute(backend.get(), c, logits.view()));
        }
      }
    }
  }
}

TEST_P(MoeOps, RouteDoesNotDependOnCompany) {
  const auto backend = Make(2);
  for (const RouteCase& c : kRouteCases) {
    TestActivations logits(DType::kF32, 257, c.num_experts);
    FillLogits(&logits);
    const Routing all = RunRoute(backend.get(), c, logits.view());
    for (const int64_t t : {0, 3, 100, 256}) {
      Activations row = logits.view();
      row.data += t * row.stride * int64_t{sizeof(float)};
      row.rows = 1;
      const Routing alone = RunRoute(backend.get(), c, row);
      const auto first = static_cast<std::ptrdiff_t>(t * c.top_k);
      const auto last = first + static_cast<std::ptrdiff_t>(c.top_k);
      ExpectSame({{all.experts.begin() + first, all.experts.begin() + last},
                  {all.weights.begin() + first, all.weights.begin() + last}},
                 alone);
    }
  }
}

TEST_P(MoeOps, RouteRefusesMoreExpertsThanItsScratchByName) {
  const auto backend = Make(1);
  const TestActivations logits(DType::kF32, 1, 1025);
  std::vector<int32_t> experts(1);
  std::vector<float> weights(1);
  const Status status = backend->Route(
      {.logits = logits.view(), .bias = {}, .top_k = 1, .experts = experts, .weights = weights});
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("1025 experts"), std::string::npos) << status.message();
}

// --- Combine ------------------------------------------------------------------------------------

TEST_P(MoeOps, CombineEqualsTheReference) {
  for (const int num_threads : {1, 3}) {
    const auto backend = Make(num_threads);
    for (const int64_t tokens : {1, 2, 17, 129}) {
      for (const int64_t hidden : {1, 15, 16, 17, 333, 1024}) {
        for (const int64_t top_k : {1, 3, 8}) {
          SCOPED_TRACE(fmt::format("tokens {} hidden {} top_k {}", tokens, hidden, top_k));
          const int64_t num_rows = tokens * top_k;
          TestActivations x(DType::kBf16, num_rows, hidden);
          x.Fill(1);
          TestActivations shared(DType::kBf16, tokens, hidden, 0);
          shared.Fill(2);
          std::vector<int32_t> row_of_slot(static_cast<size_t>(num_rows));
          std::vector<float> weights(row_of_slot.size());
          for (int64_t i = 0; i < num_rows; ++i) {
            row_of_slot[static_cast<size_t>(i)] = static_cast<int32_t>(num_rows - 1 - i);
            weights[static_cast<size_t>(i)] = UniformFloat(3, static_cast<uint64_t>(i));
          }
          TestActivations expected(DType::kBf16, tokens, hidden);
          TestActivations actual(DType::kBf16, tokens, hidden, 1);
          for (const bool has_shared : {false, true}) {
            CombineArgs args{.x = x.view(),
                             .row_of_slot = row_of_slot,
                             .weights = weights,
                             .top_k = top_k,
                             .shared = has_shared ? shared.view() : Activations{},
                             .y = expected.view()};
            ASSERT_TRUE(reference_->Combine(args).ok());
            args.y = actual.view();
            ASSERT_TRUE(backend->Combine(args).ok());
            ASSERT_TRUE(SameBits(expected, actual));
          }
          // In place over the shared expert's rows.
          ASSERT_TRUE(backend
                          ->Combine({.x = x.view(),
                                     .row_of_slot = row_of_slot,
                                     .weights = weights,
                                     .top_k = top_k,
                                     .shared = shared.view(),
                                     .y = shared.view()})
                          .ok());
          ASSERT_TRUE(SameBits(expected, shared));
        }
      }
    }
  }
}

TEST_P(MoeOps, ATokenIsCombinedAndRotatedAloneAsInCompany) {
  constexpr int64_t kTokens = 257;
  constexpr int64_t kHidden = 664;
  constexpr int64_t kTopK = 4;
  const auto backend = Make(2);
  TestActivations x(DType::kBf16, kTokens * kTopK, kHidden);
  x.Fill(1);
  std::vector<int32_t> row_of_slot(static_cast<size_t>(kTokens * kTopK));
  std::iota(row_of_slot.rbegin(), row_of_slot.rend(), 0);
  std::vector<float> weights(row_of_slot.size());
  for (size_t i = 0; i < weights.size(); ++i) {
    weights[i] = UniformFloat(2, i);
  }
  std::vector<int32_t> positions(static_cast<size_t>(kTokens));
  std::iota(positions.begin(), positions.end(), 0);
  std::vector<float> table(static_cast<size_t>(kTokens * kHidden / 4));
  for (size_t i = 0; i < table.size(); ++i) {
    table[i] = UniformFloat(3, i);
  }
  const auto run = [&](int64_t first, int64_t num) {
    TestActivations y(DType::kBf16, num, kHidden);
    const auto slots = [&](auto& all) {
      return std::span(all).subspan(static_cast<size_t>(first * kTopK),
                                    static_cast<size_t>(num * kTopK));
    };
    // The rows that these slots point at, renumbered.
    TestActivations rows(DType::kBf16, num * kTopK, kHidden);
    std::vector<int32_t> renumbered(static_cast<size_t>(num * kTopK));
    std::iota(renumbered.begin(), renumbered.end(), 0);
    EXPECT_TRUE(backend->GatherRows({x.view(), slots(row_of_slot), rows.view()}).ok());
    EXPECT_TRUE(
        backend->Combine({rows.view(), renumbered, slots(weights), kTopK, {}, y.view()}).ok());
    EXPECT_TRUE(backend
                    ->Rope({.x = y.view(),
                            .num_heads = 1,
                            .head_dim = kHidden / 2,
                            .positions = std::span(positions).subspan(static_cast<size_t>(first),
                                                                      static_cast<size_t>(num)),
                            .cos = table,
                            .sin = table,
                            .head_stride = kHidden,
                            .is_interleaved = true})
                    .ok());
    return y;
  };
  const TestActivations all = run(0, kTokens);
  for (const int64_t t : {0, 1, 100, 256}) {
    const TestActivations alone = run(t, 1);
    for (int64_t c = 0; c < kHidden; ++c) {
      ASSERT_EQ(all.At(t, c), alone.At(0, c)) << "token " << t;
    }
  }
}

// --- Rope ---------------------------------------------------------------------------------------

TEST_P(MoeOps, RopeOfStridedAndInterleavedHeadsEqualsTheReference) {
  const auto backend = Make(2);
  constexpr int64_t kMaxPositions = 50;
  for (const int64_t head_dim : {2, 4, 30, 64, 128, 512}) {
    for (const int64_t tail : {0, 6, 128}) {
      for (const bool is_interleaved : {false, true}) {
        SCOPED_TRACE(fmt::format("dim {} tail {} interleaved {}", head_dim, tail, is_interleaved));
        std::vector<float> cos(static_cast<size_t>(kMaxPositions * head_dim / 2));
        std::vector<float> sin(cos.size());
        for (size_t i = 0; i < cos.size(); ++i) {
          cos[i] = std::cos(static_cast<float>(i) * 0.37F);
          sin[i] = std::sin(static_cast<float>(i) * 0.37F);
        }
        for (const int64_t rows : {1, 3, 40}) {
          std::vector<int32_t> positions(static_cast<size_t>(rows));
          for (size_t t = 0; t < positions.size(); ++t) {
            positions[t] = static_cast<int32_t>(t * 7 % kMaxPositions);
          }
          TestActivations expected(DType::kBf16, rows, 3 * (head_dim + tail));
          expected.Fill(2);
          TestActivations actual(expected);
          RopeArgs args{.x = expected.view(),
                        .num_heads = 3,
                        .head_dim = head_dim,
                        .positions = positions,
                        .cos = cos,
                        .sin = sin,
                        .head_stride = head_dim + tail,
                        .is_interleaved = is_interleaved};
          ASSERT_TRUE(reference_->Rope(args).ok());
          args.x = actual.view();
          ASSERT_TRUE(backend->Rope(args).ok());
          ASSERT_TRUE(SameBits(expected, actual));
        }
      }
    }
  }
}

TEST_P(MoeOps, RopeRefusesWideInterleavedHeadsByName) {
  const auto backend = Make(1);
  constexpr int64_t kDim = cpu::kMaxInterleavedDim + 2;
  TestActivations x(DType::kBf16, 1, kDim);
  const std::vector<int32_t> positions = {0};
  const std::vector<float> table(static_cast<size_t>(kDim / 2), 1.0F);
  RopeArgs args{.x = x.view(),
                .num_heads = 1,
                .head_dim = kDim,
                .positions = positions,
                .cos = table,
                .sin = table};
  EXPECT_TRUE(backend->Rope(args).ok());
  args.is_interleaved = true;
  const Status status = backend->Rope(args);
  EXPECT_EQ(status.code(), StatusCode::kUnsupported);
  EXPECT_NE(status.message().find("514 dims"), std::string::npos) << status.message();
}

}  // namespace
}  // namespace octavo
