// Method: engines over the trained checkpoints, in BF16 and quantized, give their weights away and
// get them back: from the file that keeps a copy, from an update, or from noise. Digests and a
// greedy request's tokens and logprobs tell whether they are the same.

#include "octavo/sync/live_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/engine.h"
#include "octavo/model/model.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/stored_values.h"
#include "octavo/sync/test_util.h"
#include "octavo/sync/weight_checker.h"
#include "octavo/sync/weight_file.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing_util::Generate;
using testing_util::kBase;
using testing_util::kTrained;
using testing_util::Serve;
using testing_util::TemporaryFolder;

constexpr MemoryParts kAll = {.kv_cache = true, .weights = true};

std::unique_ptr<Serving> ServeWithBackup(const std::string& model_dir) {
  ServingOptions options;
  options.model_dir = model_dir;
  options.num_threads = 1;
  options.keep_weights_backup = true;
  options.engine.max_total_tokens = 4096;
  auto serving = StartServing(options);
  CHECK(serving.error().message() == "");
  return std::move(serving).value();
}

std::vector<uint32_t> Fingerprint(Serving& serving) {
  const auto sink = Generate(*serving.engine, "fingerprint", 12);
  CHECK(sink->Wait().finish.type == FinishType::kLength);
  std::vector<uint32_t> bits(sink->ids().begin(), sink->ids().end());
  for (const float logprob : sink->logprobs()) {
    bits.push_back(std::bit_cast<uint32_t>(logprob));
  }
  return bits;
}

std::string Hex(Serving& serving) {
  const auto digest = serving.updater->LiveDigest();
  CHECK(digest.error().message() == "");
  return digest->hex;
}

// The MLA model has weights that are derived from others.
TEST(LiveWeights, ComeBackFromTheirCopyBitForBit) {
  for (const char* model : {kTrained, "models/abacus-mla"}) {
    const auto serving = ServeWithBackup(model);
    LiveWeights& live = serving->updater->live();
    const std::vector<uint32_t> bits = Fingerprint(*serving);
    const std::string digest = Hex(*serving);
    for (int cycle = 0; cycle < 3; ++cycle) {
      ASSERT_TRUE(live.Release(kAll).ok());
      EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kReleased);
      EXPECT_EQ(live.Digest().error().code(), StatusCode::kUnavailable);
      ASSERT_TRUE(live.Resume(kAll).ok());
      EXPECT_EQ(Hex(*serving), digest);
    }
    EXPECT_EQ(Fingerprint(*serving), bits);
    EXPECT_EQ(serving->engine->Stats().weight_version, "0");
  }
}

TEST(LiveWeights, StayLiveWhenTheirCopyCannotBeWritten) {
  const auto serving = Serve(kTrained);
  LiveWeights live(serving->engine.get(), &serving->updater->live().backend(), serving->plan.get(),
                   {.keep_backup = true, .backup_dir = "/proc/none"});
  const std::vector<uint32_t> bits = Fingerprint(*serving);
  const Status status = live.Release(kAll);
  EXPECT_EQ(status.code(), StatusCode::kInternal);
  EXPECT_THAT(status.message(), HasSubstr("/proc/none"));
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kLive);
  EXPECT_FALSE(serving->engine->Stats().kv_released);
  EXPECT_EQ(Fingerprint(*serving), bits);
}

TEST(LiveWeights, WithoutACopyAnUpdateBringsThemBack) {
  const auto serving = Serve(kTrained);  // FP8 with BF16 layers.
  LiveWeights& live = serving->updater->live();
  const std::vector<uint32_t> bits = Fingerprint(*serving);
  const std::string digest = Hex(*serving);
  ASSERT_TRUE(live.Release(kAll).ok());
  ASSERT_TRUE(live.Resume(kAll).ok());
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kVoid);
  ASSERT_TRUE(serving->updater->UpdateFromDisk(kTrained, "1", InFlight::kDrain).has_value());
  EXPECT_EQ(Hex(*serving), digest);
  EXPECT_EQ(Fingerprint(*serving), bits);
  const UpdateTotals totals = serving->updater->Totals();
  EXPECT_EQ(totals.num_committed, 1);
  EXPECT_GT(totals.last_disk_seconds, 0.0);
  EXPECT_EQ(totals.last_push_seconds, 0.0);
}

TEST(WeightFile, ReadsWhatWasWrittenAndNamesTheFolderThatFails) {
  const auto serving = Serve(kTrained);
  const TemporaryFolder folder;
  const Status status = serving->updater->live().Read([&](const ModelWeights& weights) -> Status {
    ASSIGN_OR_RETURN(const WeightFile file, WeightFile::Write(weights, folder.path()));
    EXPECT_GT(file.num_bytes(), 1 << 20);
    ASSIGN_OR_RETURN(const std::unique_ptr<ModelWeights> copy, file.Read());
    EXPECT_EQ(copy->matrices.size(), weights.matrices.size());
    for (size_t i = 0; i < weights.matrices.size(); ++i) {
      EXPECT_TRUE(
          std::ranges::equal(copy->matrices[i].codes.bytes(), weights.matrices[i].codes.bytes()));
      EXPECT_TRUE(
          std::ranges::equal(copy->matrices[i].scales.bytes(), weights.matrices[i].scales.bytes()));
      EXPECT_EQ(copy->matrices[i].input, weights.matrices[i].input);
    }
    EXPECT_EQ(copy->digest, weights.digest);
    EXPECT_TRUE(std::filesystem::is_empty(folder.path()));  // It has no name.
    return OkStatus();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_THAT(WeightFile::Write({}, "/none/of/this").error().message(), HasSubstr("/none/of/this"));
}

TEST(WeightChecker, FindsWhatAnUpdateDidNotBringBack) {
  const auto serving = Serve(kTrained);
  WeightChecker checker(&serving->updater->live());
  EXPECT_EQ(checker.Compare({}).code(), StatusCode::kUnavailable);
  ASSERT_TRUE(checker.Snapshot().ok());
  EXPECT_TRUE(checker.Compare({}).ok());
  ASSERT_TRUE(checker.ResetTensors({}).ok());
  EXPECT_EQ(serving->engine->Stats().weight_state, WeightState::kVoid);
  EXPECT_THAT(checker.Compare({}).message(), HasSubstr("90 of 90 weights differ"));
  ASSERT_TRUE(serving->updater->UpdateFromDisk(kTrained, "1", InFlight::kDrain).has_value());
  EXPECT_TRUE(checker.Compare({}).ok());
  ASSERT_TRUE(serving->updater->UpdateFromDisk(kBase, "2", InFlight::kDrain).has_value());
  EXPECT_EQ(checker.Compare({.allow_quant_error = true}).code(), StatusCode::kCorrupt);
}

TEST(WeightChecker, SkipsByPartsOfNames) {
  const auto serving = Serve(kTrained);
  WeightChecker checker(&serving->updater->live());
  ASSERT_TRUE(checker.Snapshot().ok());
  ASSERT_TRUE(checker.ResetTensors({.skip = {"mlp"}}).ok());
  EXPECT_FALSE(checker.Compare({.skip = {"mlp"}}).ok());
  EXPECT_TRUE(checker.Compare({.skip = {"self_attn", "norm", "embed_tokens"}}).ok());
}

TEST(StoredValues, AreTheElementsOfEachStoredTensor) {
  const auto serving = Serve(kTrained);
  LiveWeights& live = serving->updater->live();
  const auto read = [&](const std::string& name, int64_t num_rows) {
    Result<StoredValues> values = Internal("not read");
    EXPECT_TRUE(live.Read([&](const ModelWeights& weights) {
                      values =
                          ReadStoredValues(live.plan(), weights, live.backend(), name, num_rows);
                      return OkStatus();
                    })
                    .ok());
    return values;
  };
  const std::string module = "model.layers.0.mlp.up_proj.";
  const auto codes = read(module + "weight", 3);
  ASSERT_TRUE(codes.has_value()) << codes.error().message();
  EXPECT_EQ(codes->shape, Shape({3, 256}));
  float largest = 0.0F;
  for (const float value : codes->values) {
    largest = std::max(largest, std::abs(value));
  }
  EXPECT_GT(largest, 100.0F);  // Codes of E4M3, not weights.
  EXPECT_LE(largest, 448.0F);
  const auto scales = read(module + "weight_scale_inv", 100);
  ASSERT_TRUE(scales.has_value()) << scales.error().message();
  EXPECT_EQ(scales->shape, Shape({6, 2}));  // 768 x 256 in blocks of 128.
  EXPECT_EQ(read(module + "weight", 0)->values.size(), 0U);
  EXPECT_THAT(read("model.layers.0.none", 1).error().message(), HasSubstr("model.layers.0.none"));
}

}  // namespace
}  // namespace octavo
