// Method: a rank 0 that the test writes out, over real sockets: broadcasts that arrive, groups that
// must be refused, and a rank 0 that dies, stalls or lies at every byte of what it sends.

#include "octavo/sync/loopback_collective.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/peer_socket.h"
#include "octavo/sync/scripted_peer_for_test.h"

namespace octavo {
namespace {

using testing::AllOf;
using testing::HasSubstr;

constexpr double kLongS = 60.0;

GroupJoin Place(const MapStore& store, int rank, int world_size) {
  return {.master = store.address(),
          .group_name = "g",
          .backend = "loopback",
          .rank = rank,
          .world_size = world_size};
}

Result<std::string> ReceiveText(Collective& group, size_t num_bytes, const WaitLimit& limit) {
  std::string text(num_bytes, '\0');
  RETURN_IF_ERROR(group.ReceiveBroadcast(std::as_writable_bytes(std::span(text)), limit));
  return text;
}

TEST(JoinCollective, SaysWhichBackendsThisBuildHas) {
  const MapStore store;
  GroupJoin join = Place(store, 1, 2);
  join.backend = "nccl";
  const auto nccl = JoinCollective(join, LimitAfter(kLongS));
  EXPECT_EQ(nccl.error().code(), StatusCode::kUnsupported);
  EXPECT_EQ(nccl.error().message(),
            "group \"g\", rank 1 of 2: backend \"nccl\": this build has no NCCL; it has "
            "\"loopback\"");
  join.backend = "gloo";
  const auto gloo = JoinCollective(join, LimitAfter(kLongS));
  EXPECT_EQ(gloo.error().code(), StatusCode::kUnsupported);
  EXPECT_THAT(gloo.error().message(), HasSubstr("\"gloo\""));
}

TEST(JoinCollective, RefusesPlacesThatCannotBe) {
  const MapStore store;
  for (const auto& [rank, world_size] :
       {std::pair(0, 2), {2, 2}, {-1, 2}, {1, 1}, {1, 0}, {1, -3}, {1, 1 << 20}}) {
    const auto joined = JoinCollective(Place(store, rank, world_size), LimitAfter(kLongS));
    EXPECT_EQ(joined.error().code(), StatusCode::kInvalidArgument) << rank << " " << world_size;
  }
}

TEST(LoopbackCollective, ReceivesInOrderOnEveryRank) {
  const std::string big(size_t{3} << 20, 'b');
  MapStore store;
  LoopbackRoot root(&store, "g", 3, [&](const ScriptedConnection& connection) {
    connection.Write(LoopbackBroadcast("first") + LoopbackBroadcast("") + LoopbackBroadcast(big));
  });
  std::array<std::future<std::string>, 2> ranks;
  for (int rank = 1; rank <= 2; ++rank) {
    ranks[static_cast<size_t>(rank) - 1] = std::async(std::launch::async, [&, rank] {
      const auto group = JoinCollective(Place(store, rank, 3), LimitAfter(kLongS));
      if (!group.has_value()) {
        return group.error().message();
      }
      std::string all;
      for (const size_t num_bytes : {size_t{5}, size_t{0}, big.size()}) {
        const auto text = ReceiveText(**group, num_bytes, LimitAfter(kLongS));
        all += text.has_value() ? *text : text.error().message();
      }
      return all;
    });
  }
  EXPECT_EQ(ranks[0].get(), "first" + big);
  EXPECT_EQ(ranks[1].get(), "first" + big);
}

TEST(LoopbackCollective, WaitsForTheAddressOfRankZero) {
  MapStore store;
  auto joined = std::async(std::launch::async,
                           [&] { return JoinCollective(Place(store, 1, 2), LimitAfter(kLongS)); });
  const LoopbackRoot root(&store, "g", 2, [](const ScriptedConnection&) {});
  EXPECT_TRUE(joined.get().has_value());
}

TEST(LoopbackCollective, LooksAgainWhenAnEarlierGroupLeftItsAddress) {
  MapStore store;
  {
    const ScriptedPeer gone([](const ScriptedConnection&) {});
    store.Set(LoopbackKey("g"), gone.address().ToString());
  }
  auto joined = std::async(std::launch::async,
                           [&] { return JoinCollective(Place(store, 1, 2), LimitAfter(kLongS)); });
  const LoopbackRoot root(&store, "g", 2, [](const ScriptedConnection&) {});
  EXPECT_TRUE(joined.get().has_value());
}

TEST(LoopbackCollective, SaysThatTheWorldSizeDiffers) {
  MapStore store;
  const LoopbackRoot root(&store, "g", 2, [](const ScriptedConnection&) {});
  const auto joined = JoinCollective(Place(store, 1, 3), LimitAfter(kLongS));
  EXPECT_EQ(joined.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(joined.error().message(), AllOf(HasSubstr("group \"g\", rank 1 of 3"),
                                              HasSubstr("expected world size 3, rank 0 has 2")));
}

TEST(LoopbackCollective, SaysThatARankIsTakenAndTakesItWhenItIsFree) {
  MapStore store;
  const LoopbackRoot root(&store, "g", 2, [](const ScriptedConnection&) {});
  auto first = JoinCollective(Place(store, 1, 2), LimitAfter(kLongS));
  ASSERT_TRUE(first.has_value());
  const auto second = JoinCollective(Place(store, 1, 2), LimitAfter(kLongS));
  EXPECT_EQ(second.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(second.error().message(), HasSubstr("rank 1 is taken by another peer"));
  first->reset();
  // Rank 0 sees that it is free when it sees the end of the connection.
  Result<std::unique_ptr<Collective>> again = Unavailable("not tried");
  for (int i = 0; i < 1000 && !again.has_value(); ++i) {
    again = JoinCollective(Place(store, 1, 2), LimitAfter(kLongS));
  }
  EXPECT_TRUE(again.has_value()) << again.error().message();
}

TEST(LoopbackCollective, NamesThoseWhoHadJoinedWhenTheGroupDoesNotFill) {
  MapStore store;
  const ScriptedPeer root([](const ScriptedConnection& connection) {
    connection.Read(12);
    connection.Write(LoopbackAccepted(4) + LoopbackJoined(3) + LoopbackJoined(1));
    connection.Write(LoopbackAbort("too late"));
    connection.AwaitGone();
  });
  store.Set(LoopbackKey("g"), root.address().ToString());
  const auto joined = JoinCollective(Place(store, 1, 4), LimitAfter(kLongS));
  EXPECT_EQ(joined.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(joined.error().message(),
              AllOf(HasSubstr("rank 0 gave the group up: too late"),
                    HasSubstr("of 4 ranks 0, 1, 3 had joined, 2 had not")));
}

// --- A rank 0 that fails ---

// What rank 0 sends a rank of a group of two that then receives "weights".
std::string WholeStream() {
  return LoopbackAccepted(2) + LoopbackJoined(1) + LoopbackReady() + LoopbackBroadcast("weights");
}

Status JoinAndReceive(const MapStore& store, double limit_s) {
  const WaitLimit limit = LimitAfter(limit_s);
  ASSIGN_OR_RETURN(const std::unique_ptr<Collective> group,
                   JoinCollective(Place(store, 1, 2), limit));
  ASSIGN_OR_RETURN(const std::string text, ReceiveText(*group, 7, limit));
  return text == "weights" ? OkStatus() : Internal("other bytes: {}", text);
}

// Sends `stream` whatever comes, then hangs up or stalls.
struct StreamRoot {
  StreamRoot(MapStore* store, std::string bytes, bool stalls)
      : stream(std::move(bytes)), peer([this, stalls](const ScriptedConnection& connection) {
          connection.Read(12);
          connection.Write(stream);
          if (stalls) {
            connection.AwaitGone();
          }
        }) {
    store->Set(LoopbackKey("g"), peer.address().ToString());
  }
  const std::string stream;
  ScriptedPeer peer;
};

TEST(LoopbackFaults, ARankZeroThatDiesIsAnErrorAtEveryByte) {
  MapStore store;
  const std::string whole = WholeStream();
  for (size_t num_sent = 0; num_sent <= whole.size(); ++num_sent) {
    const StreamRoot root(&store, whole.substr(0, num_sent), /*stalls=*/false);
    const Status status = JoinAndReceive(store, kLongS);
    EXPECT_EQ(status.code(), num_sent < whole.size() ? StatusCode::kUnavailable : StatusCode::kOk)
        << num_sent << " " << status.message();
  }
}

TEST(LoopbackFaults, ARankZeroThatStallsIsAnErrorAtEveryByte) {
  MapStore store;
  const std::string whole = WholeStream();
  for (size_t num_sent = 0; num_sent < whole.size(); ++num_sent) {
    const StreamRoot root(&store, whole.substr(0, num_sent), /*stalls=*/true);
    const Status status = JoinAndReceive(store, 0.03);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << num_sent << " " << status.message();
    EXPECT_THAT(status.message(), HasSubstr("the deadline has passed")) << num_sent;
  }
}

TEST(LoopbackFaults, WhatNoRankZeroSendsIsCorrupt) {
  const std::string accepted = LoopbackAccepted(2);
  const std::string ready = accepted + LoopbackReady();
  const std::vector<std::pair<std::string, std::string>> streams = {
      {std::string("\x04") + RawBytes(uint32_t{2}), "expected an answer of 0 to 3, got 4"},
      {accepted + '\0', "expected a record of kind 1 to 4, got 0"},
      {accepted + "\x05", "expected a record of kind 1 to 4, got 5"},
      {accepted + LoopbackJoined(2), "expected a rank below 2, got 2"},
      {accepted + LoopbackBroadcast("weights"), "expected JOINED or READY"},
      {ready + LoopbackReady(), "expected a BROADCAST, got a record of kind 2"},
      {ready + RawBytes(LoopbackRecord::kAbort) + RawBytes(~uint32_t{0}),
       "got a length of 4294967295"},
  };
  MapStore store;
  for (const auto& [stream, message] : streams) {
    const StreamRoot root(&store, stream, /*stalls=*/true);
    const Status status = JoinAndReceive(store, kLongS);
    EXPECT_EQ(status.code(), StatusCode::kCorrupt) << message;
    EXPECT_THAT(status.message(), HasSubstr(message));
  }
}

TEST(LoopbackFaults, AnAddressThatIsNoneIsCorrupt) {
  MapStore store;
  store.Set(LoopbackKey("g"), "nowhere");
  const Status status = JoinAndReceive(store, kLongS);
  EXPECT_EQ(status.code(), StatusCode::kCorrupt);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("\"/g/g//loopback//0\""), HasSubstr("nowhere")));
}

TEST(LoopbackFaults, AnotherNumberOfBytesIsSaidAndPutsTheRankOutOfStep) {
  MapStore store;
  const StreamRoot root(&store, LoopbackAccepted(2) + LoopbackReady() + LoopbackBroadcast("weight"),
                        /*stalls=*/true);
  const auto group = JoinCollective(Place(store, 1, 2), LimitAfter(kLongS));
  ASSERT_TRUE(group.has_value()) << group.error().message();
  const auto first = ReceiveText(**group, 7, LimitAfter(kLongS));
  EXPECT_EQ(first.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(first.error().message(),
              HasSubstr("expected a broadcast of 7 bytes, rank 0 sends 6"));
  const auto second = ReceiveText(**group, 6, LimitAfter(kLongS));
  EXPECT_EQ(second.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(second.error().message(),
              AllOf(HasSubstr("out of step"), HasSubstr("rank 0 sends 6")));
}

TEST(LoopbackFaults, ARankZeroThatGivesUpSaysWhy) {
  MapStore store;
  for (const std::string& before : {LoopbackAccepted(2), LoopbackAccepted(2) + LoopbackReady()}) {
    const StreamRoot root(&store, before + LoopbackAbort("out of memory"), /*stalls=*/true);
    const Status status = JoinAndReceive(store, kLongS);
    EXPECT_EQ(status.code(), StatusCode::kUnavailable);
    EXPECT_THAT(status.message(), HasSubstr("rank 0 gave the group up: out of memory"));
  }
}

TEST(LoopbackFaults, AWaitForABroadcastEndsWhenItIsCancelled) {
  MapStore store;
  const LoopbackRoot root(&store, "g", 2, [](const ScriptedConnection&) {});
  const auto group = JoinCollective(Place(store, 1, 2), LimitAfter(kLongS));
  ASSERT_TRUE(group.has_value());
  Cancellation cancel;
  std::thread canceller([&] { cancel.Cancel(); });
  const auto text = ReceiveText(**group, 1, LimitAfter(kLongS, &cancel));
  canceller.join();
  EXPECT_EQ(text.error().code(), StatusCode::kCancelled);
}

}  // namespace
}  // namespace octavo
