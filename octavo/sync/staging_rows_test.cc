// Method: small random models in every format, each tensor of more than 128 rows cut into slices
// that come shuffled among all others; what staging holds is compared, digest for digest, with the
// files that the converter writes. Each fault of a slice, and each rule of what may stay, once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <initializer_list>
#include <iterator>
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
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/spec/stacked_experts.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/row_slices.h"
#include "octavo/sync/small_model_for_test.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/staging_budget.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

constexpr const char* kUp = "model.layers.0.mlp.up_proj.weight";      // [288, 160]
constexpr const char* kGate = "model.layers.0.mlp.gate_proj.weight";  // The same, and its set.

PolicyOptions AllOf(WeightFormat format) {
  PolicyOptions policy;
  policy.format = format;
  if (format != WeightFormat::kBf16) {
    policy.scope = QuantizeScope::kAll;
  }
  return policy;
}

// A tensor, or rows of it.
struct Piece {
  std::string name;
  ConstTensorView view;
};

std::vector<Piece> Cut(const std::string& name, const ConstTensorView& view, int64_t step) {
  if (view.shape.size() < 2 || view.shape[0] <= step) {
    return {{name, view}};
  }
  std::vector<Piece> pieces;
  const int64_t row_bytes = view.NumBytes() / view.shape[0];
  for (int64_t begin = 0; begin < view.shape[0]; begin += step) {
    const int64_t end = std::min(begin + step, view.shape[0]);
    Piece piece{NameOfSlice(name, {begin, end}), view};
    piece.view.shape[0] = end - begin;
    piece.view.data += begin * row_bytes;
    pieces.push_back(std::move(piece));
  }
  return pieces;
}

class RowsTest : public testing::Test {
 protected:
  void Make(const char* config, WeightFormat format) {
    model_ = std::make_unique<SmallModel>(folder_.Path("bf16"), config);
    table_ = model_->Table(AllOf(format));
    auto plan = MakeWeightPlan(model_->spec(), table_, {});
    ASSERT_TRUE(plan.has_value());
    plan_ = std::move(*plan);
    opened_.emplace(model_->Open());
  }
  std::unique_ptr<Staging> Stage(std::vector<bool> may_stay = {},
                                 int64_t waiting_bytes_max = int64_t{1} << 30) {
    return std::make_unique<Staging>(StagingOptions{.plan = plan_.get(),
                                                    .backend = backend_.get(),
                                                    .may_stay = std::move(may_stay),
                                                    .waiting_bytes_max = waiting_bytes_max});
  }
  Status PutShuffled(Staging& staging, const Checkpoint& checkpoint, uint32_t seed) {
    std::vector<Piece> pieces;
    for (const StoredTensor& tensor : checkpoint.tensors()) {
      std::ranges::move(Cut(tensor.name, tensor.view, kSliceRows), std::back_inserter(pieces));
    }
    std::ranges::shuffle(pieces, std::mt19937(seed));
    for (const Piece& piece : pieces) {
      RETURN_IF_ERROR(staging.Put(piece.name, piece.view));
    }
    return OkStatus();
  }
  std::string Hex(const ModelWeights& weights) {
    return DigestLiveWeights(table_, weights, *backend_, nullptr)->hex;
  }
  ConstTensorView View(const std::string& name) { return opened_->Find(name)->view; }
  std::vector<Piece> Rows(const std::string& name) { return Cut(name, View(name), kSliceRows); }

  TestFolder folder_;
  std::unique_ptr<Backend> backend_ = MakeReferenceBackend(Recipe::kServing, 1);
  std::unique_ptr<SmallModel> model_;
  PrecisionTable table_;
  std::unique_ptr<const WeightPlan> plan_;
  std::optional<Checkpoint> opened_;
};

TEST_F(RowsTest, InAnyOrderAndFormGiveWhatTheConverterWrites) {
  for (const WeightFormat format : AllWeightFormats()) {
    for (const char* config : {kSmallDense, kSmallMla}) {
      SCOPED_TRACE(WeightFormatName(format));
      Make(config, format);
      const std::string stored_dir = folder_.Path("stored");
      const std::string offline = model_->Convert(table_, stored_dir);
      const Checkpoint stored = std::move(*Checkpoint::Open(stored_dir));
      for (const Checkpoint* checkpoint :
           std::initializer_list<const Checkpoint*>{&*opened_, &stored}) {
        const auto staging = Stage();
        ASSERT_EQ(PutShuffled(*staging, *checkpoint, 5).message(), "");
        EXPECT_EQ(staging->waiting_bytes(), 0);
        ASSERT_EQ(staging->Seal().message(), "");
        EXPECT_EQ(Hex(staging->sealed()), offline);
      }
      std::filesystem::remove_all(stored_dir);
    }
  }
}

TEST_F(RowsTest, StackedExpertsAreCutBetweenExperts) {
  Make(kSmallMoe, WeightFormat::kNvfp4);
  const auto staging = Stage();
  TestTensors tensors = model_->tensors();
  for (const StackedSource& source : StackedSourcesOf(model_->spec())) {
    std::vector<std::byte> bytes;
    for (const StackedSlice& slice : source.slices) {
      const auto node =
          tensors.extract(model_->spec().weights[static_cast<size_t>(slice.weight)].name);
      bytes.insert(bytes.end(), node.mapped().bytes.begin(), node.mapped().bytes.end());
    }
    const std::vector<Piece> pieces =
        Cut(source.name, {DType::kBf16, source.shape, bytes.data()}, 3);
    ASSERT_EQ(pieces.size(), 2U);  // Of four experts.
    for (const Piece& piece : {pieces[1], pieces[0], pieces[1]}) {
      ASSERT_EQ(staging->Put(piece.name, piece.view).message(), "");
    }
  }
  for (const auto& [name, tensor] : tensors) {
    ASSERT_TRUE(staging->Put(name, {tensor.dtype, tensor.shape, tensor.bytes.data()}).ok());
  }
  ASSERT_EQ(staging->Seal().message(), "");
  EXPECT_EQ(Hex(staging->sealed()), model_->Convert(table_, folder_.Path("stored")));
}

TEST_F(RowsTest, EachFaultOfASliceIsNamedAndChangesNothing) {
  Make(kSmallDense, WeightFormat::kFp8);
  const auto staging = Stage();
  const std::string up = kUp;
  const std::vector<Piece> rows = Rows(kUp);
  ASSERT_EQ(rows.size(), 3U);
  const std::vector<Piece> halves = Cut(kUp, View(kUp), 256);
  ASSERT_TRUE(staging->Put(rows[1].name, rows[1].view).ok());
  ASSERT_TRUE(staging->Put(rows[1].name, rows[1].view).ok());  // The same again.
  struct Case {
    std::string name;
    ConstTensorView view;
    const char* message;
  };
  ConstTensorView other = rows[1].view;  // Another value.
  other.data = rows[0].view.data;
  ConstTensorView short_view = rows[0].view;
  short_view.shape[0] -= 1;
  const Case cases[] = {
      {rows[1].name, other, "another value"},
      {halves[0].name, halves[0].view, "overlaps"},
      {kUp, View(kUp), "overlaps"},
      {up + "[0:100]", rows[0].view, "multiples of 128"},
      {up + "[64:192]", rows[0].view, "multiples of 128"},
      {up + "[256:384]", rows[0].view, "expected rows of [288, 160]"},
      {up + "[0:128]", short_view, "expected [128, 160], got [127, 160]"},
      {up + "[128:0]", rows[0].view, "0 <= begin < end"},
      {up + "[:128]", rows[0].view, "0 <= begin < end"},
      {"model.norm.weight[0:128]", View("model.norm.weight"), "not cut into rows"},
      {"model.nope[0:128]", rows[0].view, "model.nope[0:128]: the served model has no such"},
  };
  for (const Case& c : cases) {
    const Status status = staging->Put(c.name, c.view);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.name;
    EXPECT_THAT(status.message(), HasSubstr(c.message));
    EXPECT_THAT(status.message(), HasSubstr(c.name.substr(0, c.name.find('['))));
  }
  for (const StoredTensor& tensor : opened_->tensors()) {
    if (tensor.name != up) {
      ASSERT_TRUE(staging->Put(tensor.name, tensor.view).ok());
    }
  }
  EXPECT_THAT(staging->Seal().message(), HasSubstr(up + "[0:128], " + up + "[256:288]"));
  EXPECT_GT(staging->waiting_bytes(), 0);
  ASSERT_EQ(PutShuffled(*staging, *opened_, 3).message(), "");
  ASSERT_EQ(staging->Seal().message(), "");
  EXPECT_EQ(Hex(staging->sealed()), model_->Convert(table_, folder_.Path("stored")));
}

TEST_F(RowsTest, NotANumberIsRefusedInItsSliceWhichMayComeAgain) {
  for (const WeightFormat format : {WeightFormat::kMxfp8, WeightFormat::kNvfp4}) {
    Make(kSmallDense, format);
    const auto staging = Stage();
    std::vector<Piece> rows = Rows(kUp);
    std::vector<std::byte> bytes(rows[2].view.Bytes().begin(), rows[2].view.Bytes().end());
    bytes[0] = std::byte{0x80};  // 0x7F80: infinity.
    bytes[1] = std::byte{0x7F};
    ConstTensorView infinite = rows[2].view;
    infinite.data = bytes.data();
    EXPECT_THAT(staging->Put(rows[2].name, infinite).message(), HasSubstr(rows[2].name));
    ASSERT_EQ(PutShuffled(*staging, *opened_, 1).message(), "");
    EXPECT_TRUE(staging->Seal().ok());
  }
}

TEST_F(RowsTest, WhatWaitsForItsOtherRowsIsCountedAndBounded) {
  Make(kSmallDense, WeightFormat::kNvfp4);
  constexpr int64_t kBytes = int64_t{2} * 288 * 160;
  const auto staging = Stage({}, kBytes);
  const std::vector<Piece> up = Rows(kUp);
  const std::vector<Piece> gate = Rows(kGate);
  ASSERT_TRUE(staging->Put(up[0].name, up[0].view).ok());
  EXPECT_EQ(staging->waiting_bytes(), kBytes);
  const Status status = staging->Put(gate[0].name, gate[0].view);
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr(kGate));
  const auto roomy = Stage({}, 2 * kBytes);
  for (const Piece& piece : up) {
    ASSERT_TRUE(roomy->Put(piece.name, piece.view).ok());
  }
  EXPECT_EQ(roomy->waiting_bytes(), kBytes);  // For its set.
  for (const Piece& piece : gate) {
    ASSERT_TRUE(roomy->Put(piece.name, piece.view).ok());
  }
  EXPECT_EQ(roomy->waiting_bytes(), 0);
}

TEST_F(RowsTest, AnUpdatePlansTheRoomOfItsLargestWeight) {
  Make(kSmallDense, WeightFormat::kFp8);
  const auto budget = PlanStaging({.plan = plan_.get(),
                                   .packed_bytes = 10,
                                   .waiting_bytes_max = int64_t{4} << 30,
                                   .bucket_bytes = 0,
                                   .available_bytes = int64_t{1} << 30});
  EXPECT_EQ(budget->waiting_bytes, int64_t{2} * 288 * 160);
}

TEST_F(RowsTest, ATiedHeadInRowsIsHeldAgainstTheEmbedding) {
  Make(kSmallDense, WeightFormat::kBf16);
  const ConstTensorView embedding = View("model.embed_tokens.weight");
  const auto staging = Stage();
  std::vector<std::byte> bytes(embedding.Bytes().begin(), embedding.Bytes().end());
  ASSERT_TRUE(staging->Put("lm_head.weight[0:40]", embedding).ok());
  ASSERT_TRUE(PutShuffled(*staging, *opened_, 1).ok());
  bytes[7] ^= std::byte{1};
  EXPECT_FALSE(staging->Put("lm_head.weight", {DType::kBf16, embedding.shape, bytes.data()}).ok());
  EXPECT_TRUE(staging->Seal().ok());
}

// --- What an update leaves as it is --------------------------------------------------------------

class StayTest : public RowsTest {
 protected:
  // A staging over the weights of `model_` as the live ones, which may all stay.
  void Live(WeightFormat format) {
    Make(kSmallDense, format);
    live_ = std::move(*LoadWeights(*opened_, *plan_, *backend_));
    other_ = std::make_unique<SmallModel>(folder_.Path("other"), kSmallDense, 77);
    options_ = {.plan = plan_.get(),
                .backend = backend_.get(),
                .base = LiveBaseOf(*live_),
                .may_stay = std::vector<bool>(table_.rows.size(), true)};
  }
  Status PutOther(Staging& staging, const std::string& name) {
    const TestTensor& tensor = other_->tensors().at(name);
    return staging.Put(name, {tensor.dtype, tensor.shape, tensor.bytes.data()});
  }

  std::unique_ptr<ModelWeights> live_;
  std::unique_ptr<SmallModel> other_;
  StagingOptions options_;
};

TEST_F(StayTest, PartOfAnUpdateIsAColdLoadOfTheMergedCheckpoint) {
  for (const WeightFormat format : AllWeightFormats()) {
    SCOPED_TRACE(WeightFormatName(format));
    Live(format);
    const std::vector<std::string> brought = {kUp, kGate, "model.norm.weight",
                                              "model.layers.1.mlp.down_proj.weight"};
    TestTensors merged = model_->tensors();
    Staging staging(options_);
    for (const std::string& name : brought) {
      merged[name] = other_->tensors().at(name);
      ASSERT_EQ(PutOther(staging, name).message(), "");
    }
    WriteTestCheckpoint(folder_.Path("merged"), merged, 1, kSmallDense);
    const auto cold = LoadWeights(*Checkpoint::Open(folder_.Path("merged")), *plan_, *backend_);
    ASSERT_EQ(staging.Seal(live_.get()).message(), "");
    EXPECT_EQ(staging.carried_over().size(), table_.rows.size() - brought.size());
    EXPECT_EQ(staging.num_staged(), 4);
    EXPECT_EQ(Hex(staging.sealed()), Hex(**cold));
    EXPECT_NE(Hex(staging.sealed()), Hex(*live_));
    // In place what stays lies there already.
    Staging in_place(options_, std::move(live_));
    for (const std::string& name : brought) {
      ASSERT_EQ(PutOther(in_place, name).message(), "");
    }
    ASSERT_EQ(in_place.Seal().message(), "");
    EXPECT_EQ(Hex(in_place.sealed()), Hex(**cold));
  }
}

TEST_F(StayTest, ASetThatSharesAScaleChangesAsAWhole) {
  Live(WeightFormat::kNvfp4);
  Staging staging(options_);
  ASSERT_TRUE(PutOther(staging, kUp).ok());
  EXPECT_THAT(staging.Seal(live_.get()).message(), HasSubstr(kGate));
  ASSERT_TRUE(PutOther(staging, kGate).ok());
  EXPECT_TRUE(staging.Seal(live_.get()).ok());
}

TEST_F(StayTest, AllMustComeWhereNothingMayStayOrNothingIsLive) {
  Live(WeightFormat::kFp8);
  Staging staging(options_);
  ASSERT_TRUE(PutOther(staging, kUp).ok());
  EXPECT_THAT(staging.Seal().message(), HasSubstr("no live weights"));
  options_.may_stay.clear();
  Staging strict(options_);
  ASSERT_TRUE(PutOther(strict, kUp).ok());
  EXPECT_THAT(strict.Seal(live_.get()).message(), HasSubstr("incomplete: expected"));
}

TEST(RowLedger, KnowsItsGaps) {
  RowLedger ledger;
  const std::vector<Hash128> one(1);
  ledger.Add(128, 500, one);
  const std::vector<RowSlice> gaps = ledger.Gaps();
  ASSERT_EQ(gaps.size(), 2U);
  EXPECT_THAT((std::vector{gaps[0].begin, gaps[0].end, gaps[1].begin, gaps[1].end}),
              ElementsAre(0, 128, 256, 500));
  EXPECT_FALSE(ledger.IsComplete());
}

}  // namespace
}  // namespace octavo
