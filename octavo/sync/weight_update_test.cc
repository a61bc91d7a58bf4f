// Method: a real engine over the trained checkpoints. What is live after any way of updating it is
// compared, digest for digest, with a cold load and with the transform alone; each fault is made
// once, and afterwards the digest and a greedy request's tokens and logprobs must be those of
// before, bit for bit.

#include "octavo/sync/weight_update.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <future>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/digest.h"
#include "octavo/convert/transform.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/test_util.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing_util::Generate;
using testing_util::kBase;
using testing_util::kTrained;
using testing_util::Serve;
using testing_util::TemporaryFolder;

Checkpoint Open(const std::string& dir) {
  auto checkpoint = Checkpoint::Open(dir);
  CHECK(checkpoint.error().message() == "");
  return std::move(checkpoint).value();
}

// The digest that an offline conversion would have: the transform over each tensor, no engine.
ModelDigest OfflineDigest(const std::string& dir, const PrecisionTable& table) {
  const Checkpoint checkpoint = Open(dir);
  std::vector<TensorDigestLine> lines;
  for (const PrecisionRow& row : table.rows) {
    const auto stored = TransformWeight(row, checkpoint.Find(row.name)->view, {});
    CHECK(stored.has_value());
    for (const OwnedTensor& tensor : *stored) {
      lines.push_back(
          {tensor.name, tensor.dtype, tensor.shape, HashHex(TensorDigest(tensor.bytes.bytes()))});
    }
  }
  return ModelDigestOf(std::move(lines));
}

std::string LiveHex(Serving& serving) {
  const auto digest = serving.updater->LiveDigest();
  CHECK(digest.has_value());
  return digest->hex;
}

// Tokens and logprob bits of one greedy request.
std::vector<uint32_t> Fingerprint(Serving& serving) {
  const auto sink = Generate(*serving.engine, "fingerprint", 24);
  CHECK(sink->Wait().finish.type == FinishType::kLength);
  std::vector<uint32_t> bits(sink->ids().begin(), sink->ids().end());
  for (const float logprob : sink->logprobs()) {
    bits.push_back(std::bit_cast<uint32_t>(logprob));
  }
  return bits;
}

Status PutAll(WeightUpdater& updater, const std::string& id, const Checkpoint& checkpoint,
              uint32_t shuffle_seed = 0) {
  std::vector<const StoredTensor*> tensors;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    tensors.push_back(&tensor);
  }
  std::ranges::shuffle(tensors, std::mt19937(shuffle_seed));
  for (const StoredTensor* tensor : tensors) {
    RETURN_IF_ERROR(updater.Put(id, tensor->name, tensor->view));
  }
  return OkStatus();
}

TEST(WeightUpdater, WarmIsColdInAnyOrderOfArrival) {
  const auto serving = Serve(kBase);
  const std::string base = LiveHex(*serving);
  const std::string trained = OfflineDigest(kTrained, serving->table).hex;
  EXPECT_EQ(base, OfflineDigest(kBase, serving->table).hex);
  EXPECT_EQ(trained, LiveHex(*Serve(kTrained)));

  const std::vector<uint32_t> before = Fingerprint(*serving);
  for (const uint32_t seed : {1U, 2U, 3U}) {
    for (const auto& [dir, digest] : {std::pair{kTrained, trained}, std::pair{kBase, base}}) {
      const auto id = serving->updater->Begin("");
      ASSERT_TRUE(id.has_value());
      ASSERT_TRUE(PutAll(*serving->updater, *id, Open(dir), seed).ok());
      ASSERT_TRUE(serving->updater->Seal(*id).ok());
      ASSERT_TRUE(serving->updater->Commit(*id, InFlight::kRetract).has_value());
      EXPECT_EQ(LiveHex(*serving), digest);
    }
  }
  EXPECT_EQ(serving->engine->Stats().weight_version, "6");
  EXPECT_EQ(Fingerprint(*serving), before);
}

TEST(WeightUpdaterInPlace, WarmIsColdAndHoldsRequestsMeanwhile) {
  const auto serving = Serve(kBase);
  WeightUpdater& updater = *serving->updater;
  const auto id = updater.Begin("5", StagingMode::kInPlace);
  ASSERT_TRUE(id.has_value()) << id.error().message();
  EXPECT_EQ(updater.BudgetOf(*id)->staged_bytes, 0);
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kReleased);
  const auto held = Generate(*serving->engine, "held", 8);
  ASSERT_TRUE(PutAll(updater, *id, Open(kTrained)).ok());
  ASSERT_TRUE(updater.Seal(*id).ok());
  EXPECT_EQ(serving->engine->Stats().num_running, 0);
  ASSERT_TRUE(updater.Commit(*id, InFlight::kRetract).has_value());
  EXPECT_EQ(held->Wait().finish.type, FinishType::kLength);
  EXPECT_EQ(LiveHex(*serving), OfflineDigest(kTrained, serving->table).hex);
  EXPECT_EQ(Fingerprint(*serving), Fingerprint(*Serve(kTrained)));
  EXPECT_EQ(serving->engine->Stats().weight_version, "5");
}

TEST(WeightUpdaterInPlace, AnAbortBeforeTheFirstWeightChangesNothing) {
  const auto serving = Serve(kBase);
  const std::string digest = LiveHex(*serving);
  const std::vector<uint32_t> before = Fingerprint(*serving);
  const auto id = serving->updater->Begin("5", StagingMode::kInPlace);
  ASSERT_TRUE(id.has_value());
  EXPECT_FALSE(serving->updater->Put(*id, "model.nope", Open(kTrained).tensors()[0].view).ok());
  serving->updater->Abort(*id);
  EXPECT_EQ(LiveHex(*serving), digest);
  EXPECT_EQ(Fingerprint(*serving), before);
  EXPECT_EQ(serving->engine->Stats().weight_version, "0");
}

TEST(WeightUpdaterInPlace, AnAbortInTheMiddlePoisonsUntilAllWeightsCome) {
  const auto serving = Serve(kBase);
  WeightUpdater& updater = *serving->updater;
  const auto held_before = Fingerprint(*serving);
  const auto id = updater.Begin("5", StagingMode::kInPlace);
  ASSERT_TRUE(id.has_value());
  const Checkpoint trained = Open(kTrained);
  ASSERT_TRUE(updater.Put(*id, trained.tensors()[0].name, trained.tensors()[0].view).ok());
  const auto held = Generate(*serving->engine, "held", 8);
  updater.Abort(*id);
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kPoisoned);
  EXPECT_EQ(updater.LiveDigest().error().code(), StatusCode::kUnavailable);
  const Status refused = serving->engine->Submit(testing_util::GreedyRequest("late", 8));
  EXPECT_EQ(refused.code(), StatusCode::kUnavailable);
  EXPECT_THAT(refused.message(), HasSubstr("poisoned"));
  // An incomplete update is no cure, a complete one is.
  const auto partial = updater.Begin("6");
  ASSERT_TRUE(partial.has_value());
  EXPECT_FALSE(updater.Seal(*partial).ok());
  updater.Abort(*partial);
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kPoisoned);
  ASSERT_TRUE(updater.UpdateFromDisk(kBase, "7", InFlight::kRetract).has_value());
  EXPECT_EQ(held->Wait().finish.type, FinishType::kLength);  // No request was lost.
  EXPECT_EQ(Fingerprint(*serving), held_before);
}

TEST(WeightUpdaterInPlace, WaitsForNobodyWhoHoldsPages) {
  const auto serving = Serve(kBase);
  const auto running = Generate(*serving->engine, "running", 2000);
  while (serving->engine->Stats().num_running == 0) {
    std::this_thread::yield();
  }
  const auto id = serving->updater->Begin("5", StagingMode::kInPlace);
  ASSERT_FALSE(id.has_value());
  EXPECT_EQ(id.error().code(), StatusCode::kUnavailable);
  serving->engine->AbortAll();
  running->Wait();
  EXPECT_TRUE(serving->updater->Begin("5").has_value());  // The place is free again.
}

TEST(WeightUpdater, UpdatesFromDiskLikeAColdLoad) {
  const auto serving = Serve(kBase);
  const auto report = serving->updater->UpdateFromDisk(kTrained, "step-7", InFlight::kRetract);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->version, "step-7");
  EXPECT_EQ(report->num_tensors, static_cast<int64_t>(serving->table.rows.size()));
  EXPECT_EQ(LiveHex(*serving), LiveHex(*Serve(kTrained)));
  EXPECT_EQ(Fingerprint(*serving), Fingerprint(*Serve(kTrained)));
}

TEST(LiveDigest, ChangesWithOneFlippedLiveByte) {
  const auto serving = Serve(kTrained);
  const std::string before = LiveHex(*serving);
  const auto flip = [&](size_t matrix_idx, bool scale) {
    std::promise<void> done;
    serving->engine->RunBetweenSteps([&](const ModelWeights& live, Backend&) {
      const PackedMatrix& matrix = live.matrices[matrix_idx];
      const Buffer& buffer = scale ? matrix.scales : matrix.codes;
      const_cast<std::byte*>(buffer.data())[0] ^= std::byte{1};
      done.set_value();
    });
    done.get_future().wait();
  };
  for (size_t i = 0; i < serving->table.rows.size(); i += 9) {
    flip(i, false);
    EXPECT_NE(LiveHex(*serving), before) << serving->table.rows[i].name;
    flip(i, false);
    EXPECT_EQ(LiveHex(*serving), before);
  }
  const int q_proj = FindWeight(serving->spec, "model.layers.0.self_attn.q_proj.weight");
  flip(static_cast<size_t>(q_proj), true);
  EXPECT_NE(LiveHex(*serving), before);
}

// Each fault once; whatever it was, the old version serves on, bit for bit.
class WeightUpdaterFaults : public testing::Test {
 protected:
  WeightUpdaterFaults()
      : serving_(Serve(kBase)), digest_(LiveHex(*serving_)), bits_(Fingerprint(*serving_)) {}
  ~WeightUpdaterFaults() override {
    EXPECT_EQ(LiveHex(*serving_), digest_);
    EXPECT_EQ(Fingerprint(*serving_), bits_);
    EXPECT_EQ(serving_->engine->Stats().weight_version, "0");
  }

  WeightUpdater& updater() { return *serving_->updater; }
  std::string Begin() { return updater().Begin("9").value(); }

  std::unique_ptr<Serving> serving_;
  std::string digest_;
  std::vector<uint32_t> bits_;
  Checkpoint trained_ = Open(kTrained);
};

constexpr const char* kUp = "model.layers.3.mlp.up_proj.weight";

TEST_F(WeightUpdaterFaults, MissingTensorsAreNamedAtTheSeal) {
  const std::string id = Begin();
  for (const StoredTensor& tensor : trained_.tensors()) {
    if (tensor.name != kUp) {
      ASSERT_TRUE(updater().Put(id, tensor.name, tensor.view).ok());
    }
  }
  const Status status = updater().Seal(id);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(kUp));
  const auto commit = updater().Commit(id, InFlight::kRetract);
  ASSERT_FALSE(commit.has_value());
  EXPECT_THAT(commit.error().message(), HasSubstr("seal"));
  updater().Abort(id);
}

TEST_F(WeightUpdaterFaults, WrongShapeDTypeAndNameAreRefusedByName) {
  const std::string id = Begin();
  ConstTensorView view = trained_.Find(kUp)->view;
  std::swap(view.shape[0], view.shape[1]);
  Status status = updater().Put(id, kUp, view);
  EXPECT_THAT(status.message(), HasSubstr(std::string(kUp) + ": expected [768, 256]"));
  EXPECT_THAT(status.message(), HasSubstr("got [256, 768] BF16"));

  view = trained_.Find(kUp)->view;
  view.dtype = DType::kI16;
  status = updater().Put(id, kUp, view);
  EXPECT_THAT(status.message(), HasSubstr("got [768, 256] I16"));

  status = updater().Put(id, "model.layers.3.mlp.up_proj.bias", trained_.Find(kUp)->view);
  EXPECT_THAT(status.message(), HasSubstr("no such tensor"));
  updater().Abort(id);
}

TEST_F(WeightUpdaterFaults, NotANumberIsRefusedWithItsIndex) {
  const std::string id = Begin();
  const StoredTensor* source = trained_.Find(kUp);
  std::vector<std::byte> bytes(source->view.Bytes().begin(), source->view.Bytes().end());
  constexpr uint16_t kNan = 0x7FC0;
  std::memcpy(bytes.data() + size_t{2} * (5 * 256 + 17), &kNan, sizeof(kNan));
  const Status status = updater().Put(id, kUp, {DType::kBf16, source->view.shape, bytes.data()});
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr(kUp));
  EXPECT_THAT(status.message(), HasSubstr("[5, 17]"));
  updater().Abort(id);
}

TEST_F(WeightUpdaterFaults, ASecondValueIsRefusedAndTheSameOneIsNot) {
  const std::string id = Begin();
  const ConstTensorView view = trained_.Find(kUp)->view;
  ASSERT_TRUE(updater().Put(id, kUp, view).ok());
  EXPECT_TRUE(updater().Put(id, kUp, view).ok());
  std::vector<std::byte> other(view.Bytes().begin(), view.Bytes().end());
  other[0] ^= std::byte{1};
  const Status status = updater().Put(id, kUp, {DType::kBf16, view.shape, other.data()});
  EXPECT_THAT(status.message(), HasSubstr("another value"));
  updater().Abort(id);
}

TEST_F(WeightUpdaterFaults, OnlyOneUpdateIsOpen) {
  const std::string id = Begin();
  const auto second = updater().Begin("10");
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(second.error().message(), HasSubstr(id));
  EXPECT_EQ(updater().Put("update-77", kUp, trained_.Find(kUp)->view).code(),
            StatusCode::kNotFound);
  updater().Abort(id);
  EXPECT_EQ(updater().Seal(id).code(), StatusCode::kNotFound);
}

TEST_F(WeightUpdaterFaults, AForgottenUpdateIsDisplaced) {
  WeightUpdater impatient(serving_->engine.get(), &updater().live().backend(), serving_->plan.get(),
                          WeightUpdater::Options{.idle_timeout_s = 0.0});
  const auto first = impatient.Begin("1");
  ASSERT_TRUE(first.has_value());
  const auto second = impatient.Begin("2");
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(impatient.Seal(*first).code(), StatusCode::kNotFound);
}

TEST_F(WeightUpdaterFaults, DisksWithAnotherModelOrNothingAreRefused) {
  for (const char* dir : {"models/abacus-moe", "models", "models/none"}) {
    const auto report = updater().UpdateFromDisk(dir, "1", InFlight::kRetract);
    ASSERT_FALSE(report.has_value()) << dir;
    EXPECT_THAT(report.error().message(), HasSubstr(dir));
  }
}

TEST(WeightUpdater, RequestsInFlightKeepTheirTokensAndKnowTheirVersions) {
  const auto serving = Serve(kBase);
  std::vector<std::shared_ptr<testing_util::WaitingSink>> sinks;
  sinks.reserve(8);
  sinks.reserve(8);
  for (int i = 0; i < 8; ++i) {
    sinks.push_back(Generate(*serving->engine, fmt::format("r{}", i), 600, true));
  }
  sinks[0]->WaitForTokens(20);
  const auto report = serving->updater->UpdateFromDisk(kTrained, "1", InFlight::kRetract);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->swap.in_flight, 8);
  EXPECT_EQ(report->swap.retracted, 8);
  for (const auto& sink : sinks) {
    const RequestOutput output = sink->Wait();
    EXPECT_EQ(output.completion_tokens, 600);
    EXPECT_EQ(sink->ids().size(), 600U);
    EXPECT_EQ(sink->logprobs().size(), 600U);
    ASSERT_EQ(output.versions.size(), 2U);
    EXPECT_EQ(output.versions[0].version, "0");
    EXPECT_EQ(output.versions[1].version, "1");
    EXPECT_EQ(output.versions[0].num_tokens + output.versions[1].num_tokens, 600);
    EXPECT_EQ(output.num_retractions, 1);
  }
}

TEST(LoadWeights, DummyWeightsAreReproducible) {
  ServingOptions options;
  options.model_dir = kTrained;
  options.load_format = LoadFormat::kDummy;
  options.num_threads = 1;
  options.engine.max_total_tokens = 1024;
  const auto one = StartServing(options);
  options.num_threads = 3;
  const auto three = StartServing(options);
  ASSERT_TRUE(one.has_value() && three.has_value());
  EXPECT_EQ(LiveHex(**one), LiveHex(**three));
}

TEST(StartServing, RefusesWhatItCannotServeByName) {
  const auto error = [](const char* dir, const ArithmeticOptions& arithmetic) {
    ServingOptions options;
    options.model_dir = dir;
    options.arithmetic = arithmetic;
    const auto serving = StartServing(options);
    CHECK(!serving.has_value());
    return serving.error().message();
  };
  EXPECT_THAT(error("models/none", {}), HasSubstr("models/none"));
  EXPECT_THAT(error(kTrained, {.nvfp4_input_scale = Nvfp4InputScale::kPow2}),
              HasSubstr("--nvfp4-input-scale pow2"));
  EXPECT_THAT(error(kTrained, {.weight_only = WeightOnly::kW8A16}), HasSubstr("--format w8a16"));
}

}  // namespace
}  // namespace octavo
