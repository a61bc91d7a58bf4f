// Method: real engines over the trained checkpoints; one pulls from the other through a peer of the
// test's own, which hands out the canonical file and can change, spoil or stop it on the way.

#include "octavo/sync/join_weights.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/model/model.h"
#include "octavo/sync/canonical_file.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/test_util.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing_util::Fp8KeepLast;
using testing_util::kBase;
using testing_util::kTrained;
using testing_util::Serve;

std::unique_ptr<Serving> ServeNothing() {
  ServingOptions options;
  options.model_dir = kTrained;
  options.policy = Fp8KeepLast(2);
  options.num_threads = 1;
  options.load_format = LoadFormat::kNone;
  options.engine.max_total_tokens = 8192;
  auto serving = StartServing(options);
  CHECK(serving.error().message() == "");
  return std::move(serving).value();
}

class LocalPeer final : public WeightPeer {
 public:
  explicit LocalPeer(Serving* serving) : serving_(*serving) {}

  std::string Name() const override { return "the peer"; }
  Result<PeerVersion> Live() override {
    const EngineStats stats = serving_.engine->Stats();
    return PeerVersion{stats.weight_version, HashHex(*stats.weight_digest)};
  }
  Result<PeerWeights> List() override {
    ASSIGN_OR_RETURN(const ModelDigest digest, serving_.updater->LiveDigest());
    file_ = std::make_unique<CanonicalFile>(digest.tensors);
    ASSIGN_OR_RETURN(PeerVersion live, Live());
    PeerWeights weights{.live = std::move(live),
                        .weight_format = std::string(WeightFormatName(serving_.table.format)),
                        .policy_hash = serving_.table.Hash(),
                        .recipe = serving_.recipe,
                        .begin_bytes = file_->entries().front().begin_bytes,
                        .tensors = digest.tensors};
    if (on_list) {
      on_list(&weights);
    }
    return weights;
  }
  Status Read(const std::string& weight_digest, int64_t begin_bytes,
              std::span<std::byte> out) override {
    if (on_read) {
      RETURN_IF_ERROR(on_read());
    }
    LiveWeights& live = serving_.updater->live();
    RETURN_IF_ERROR(live.Read([&](const ModelWeights& weights) -> Status {
      if (HashHex(*weights.digest) != weight_digest) {
        return Cancelled("others are live");
      }
      return file_->Read(live.plan(), weights, live.backend(), begin_bytes, out);
    }));
    if (spoils) {
      out.back() ^= std::byte{1};
    }
    return OkStatus();
  }

  std::function<void(PeerWeights*)> on_list;
  std::function<Status()> on_read;
  bool spoils = false;

 private:
  Serving& serving_;
  std::unique_ptr<CanonicalFile> file_;
};

TEST(JoinWeights, GivesTheVersionAndTheDigestOfThePeer) {
  const auto healthy = Serve(kTrained);
  ASSERT_TRUE(healthy->updater->UpdateFromDisk(kBase, "41", InFlight::kRetract).has_value());
  const auto joined = ServeNothing();
  EXPECT_EQ(joined->engine->Stats().weight_version, "");
  EXPECT_EQ(joined->engine->Stats().weight_state, WeightState::kReleased);
  const std::atomic<bool> stop = false;
  LocalPeer peer(healthy.get());
  const auto report = JoinWeights(peer, joined.get(), stop);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->version, "41");
  EXPECT_EQ(joined->engine->Stats().weight_version, "41");
  EXPECT_EQ(joined->engine->Stats().weight_state, WeightState::kLive);
  EXPECT_EQ(joined->updater->LiveDigest()->hex, healthy->updater->LiveDigest()->hex);
}

TEST(JoinWeights, StartsOverWhenOtherWeightsGoLiveAndGivesUpWhenTheyAlwaysDo) {
  const auto healthy = Serve(kTrained);
  const auto joined = ServeNothing();
  const std::atomic<bool> stop = false;
  LocalPeer peer(healthy.get());
  int64_t num_commits = 0;
  int64_t commits_max = 2;
  peer.on_read = [&]() -> Status {
    if (num_commits < commits_max) {
      const char* dir = ++num_commits % 2 == 0 ? kTrained : kBase;
      return healthy->updater->UpdateFromDisk(dir, "", InFlight::kRetract).error();
    }
    return OkStatus();
  };
  ASSERT_TRUE(JoinWeights(peer, joined.get(), stop).has_value());
  EXPECT_EQ(joined->engine->Stats().weight_version, "2");
  EXPECT_EQ(joined->updater->LiveDigest()->hex, healthy->updater->LiveDigest()->hex);

  const auto unlucky = ServeNothing();
  commits_max = INT64_MAX;
  const auto report = JoinWeights(peer, unlucky.get(), stop);
  EXPECT_EQ(report.error().code(), StatusCode::kUnavailable) << report.error().message();
  EXPECT_EQ(unlucky->engine->Stats().weight_state, WeightState::kReleased);
}

TEST(JoinWeights, LeavesNothingLiveAfterAnErrorAndNamesIt) {
  const auto healthy = Serve(kTrained);
  const auto joined = ServeNothing();
  std::atomic<bool> stop = false;
  const auto refusal = [&](LocalPeer& peer) {
    const auto report = JoinWeights(peer, joined.get(), stop);
    EXPECT_FALSE(report.has_value());
    EXPECT_EQ(joined->engine->Stats().weight_state, WeightState::kReleased);
    EXPECT_THAT(report.error().message(), HasSubstr("the peer"));
    return report.error().message();
  };
  LocalPeer dead(healthy.get());
  dead.on_read = [] { return Unavailable("connection reset"); };
  EXPECT_THAT(refusal(dead), HasSubstr("connection reset"));
  LocalPeer spoilt(healthy.get());
  spoilt.spoils = true;  // The last byte of the file is of a BF16 vector: the digest alone sees it.
  EXPECT_THAT(refusal(spoilt), HasSubstr("the first that differs is model.norm.weight"));
  LocalPeer other(healthy.get());
  other.on_list = [](PeerWeights* weights) { weights->recipe = "other-recipe"; };
  EXPECT_THAT(refusal(other), HasSubstr("other-recipe"));
  other.on_list = [](PeerWeights* weights) { weights->policy_hash = "other-table"; };
  EXPECT_THAT(refusal(other), HasSubstr("other-table"));
  other.on_list = [](PeerWeights* weights) { weights->tensors.front().shape = {3}; };
  EXPECT_THAT(refusal(other), HasSubstr("as here, got [3]"));
  other.on_list = [](PeerWeights* weights) { weights->tensors.pop_back(); };
  EXPECT_THAT(refusal(other), HasSubstr("missing"));
  LocalPeer slow(healthy.get());
  slow.on_read = [&] {
    stop = true;
    return OkStatus();
  };
  (void)refusal(slow);
}

}  // namespace
}  // namespace octavo
