// Method: groups over a collective that the test scripts call by call, for what is handed on, what
// is drained and what breaks a group; then the same over the loopback's sockets, with a rank 0 that
// breaks off, and joined again.

#include "octavo/sync/update_groups.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <deque>
#include <future>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/collective.h"
#include "octavo/sync/peer_socket.h"
#include "octavo/sync/scripted_peer_for_test.h"

namespace octavo {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

GroupJoin Place(const std::string& group) {
  return {.master = {.host = "127.0.0.1", .port = 1},
          .group_name = group,
          .backend = "loopback",
          .rank = 1,
          .world_size = 2};
}

// What rank 0 sends, one entry a broadcast, and what became of it.
struct Sender {
  std::deque<Result<std::string>> queue;
  int num_left = 0;                      // How often the group was left.
  std::atomic<bool> is_awaited = false;  // A call waits for what does not come.
};

class QueueCollective final : public Collective {
 public:
  explicit QueueCollective(Sender* sender) : sender_(sender) {}
  ~QueueCollective() override { ++sender_->num_left; }
  Status ReceiveBroadcast(std::span<std::byte> out, const WaitLimit& limit) override {
    if (sender_->queue.empty()) {
      sender_->is_awaited = true;
      return Pause(1000.0, limit);  // Nothing comes: until the deadline or somebody cancels.
    }
    const Result<std::string> next = std::move(sender_->queue.front());
    sender_->queue.pop_front();
    if (!next.has_value()) {
      return next.error();
    }
    if (next->size() != out.size()) {
      return InvalidArgument("expected {} bytes, got {}", out.size(), next->size());
    }
    std::memcpy(out.data(), next->data(), next->size());
    return OkStatus();
  }

 private:
  Sender* sender_;
};

// Keeps "name dtype shape bytes" of what it is handed; refuses the tensor called `bad`.
struct Taken {
  std::string bad = "";
  std::vector<std::string> seen = {};

  Status operator()(std::string_view name, const ConstTensorView& tensor) {
    if (name == bad) {
      return InvalidArgument("{}: not a weight of this model", name);
    }
    const std::string bytes(reinterpret_cast<const char*>(tensor.data),
                            static_cast<size_t>(tensor.NumBytes()));
    seen.push_back(fmt::format("{} {} {} {}", name, DTypeName(tensor.dtype),
                               ShapeString(tensor.shape), bytes));
    return OkStatus();
  }
};

class UpdateGroupsTest : public testing::Test {
 protected:
  UpdateGroupsOptions Options(double receive_timeout_s = 60.0) {
    UpdateGroupsOptions options;
    options.receive_timeout_s = receive_timeout_s;
    options.broadcast_bytes_max = 64;
    options.join = [this](const GroupJoin&, const WaitLimit&) {
      return Result<std::unique_ptr<Collective>>(std::make_unique<QueueCollective>(&sender_));
    };
    return options;
  }

  Sender sender_;
  const GroupBucket bucket_ = {.tensors = {{"a", DType::kBf16, {2}},
                                           {"scalar", DType::kU8, {}},
                                           {"none", DType::kF32, {0, 3}},
                                           {"b", DType::kF32, {1, 1}}}};
};

TEST_F(UpdateGroupsTest, ReceivesOneBroadcastATensorInOrder) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaaa"), std::string("s"), std::string(), std::string("bbbb")};
  Taken taken;
  ASSERT_TRUE(groups.Receive("g", bucket_, taken).ok());
  EXPECT_THAT(taken.seen, ElementsAre("a BF16 [2] aaaa", "scalar U8 [] s", "none F32 [0, 3] ",
                                      "b F32 [1, 1] bbbb"));
}

TEST_F(UpdateGroupsTest, ReceivesAFlattenedBucketWithoutAlignment) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  GroupBucket bucket = bucket_;
  bucket.is_flattened = true;
  sender_.queue = {std::string("aaaasbbbb")};  // "b" starts at byte 5.
  Taken taken;
  ASSERT_TRUE(groups.Receive("g", bucket, taken).ok());
  EXPECT_THAT(taken.seen, ElementsAre("a BF16 [2] aaaa", "scalar U8 [] s", "none F32 [0, 3] ",
                                      "b F32 [1, 1] bbbb"));
}

TEST_F(UpdateGroupsTest, AnEmptyBucketBringsNothing) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  for (const bool is_flattened : {false, true}) {
    Taken taken;
    EXPECT_TRUE(groups.Receive("g", {.tensors = {}, .is_flattened = is_flattened}, taken).ok());
    EXPECT_THAT(taken.seen, IsEmpty());
  }
}

TEST_F(UpdateGroupsTest, DrainsWhatFollowsARefusedTensorAndStaysInStep) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaaa"), std::string("s"), std::string(), std::string("bbbb")};
  Taken taken = {.bad = "scalar"};
  const Status status = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(status.message(), "scalar: not a weight of this model");
  EXPECT_THAT(taken.seen, ElementsAre("a BF16 [2] aaaa"));
  EXPECT_THAT(sender_.queue, IsEmpty());

  sender_.queue = {std::string("cccc")};
  EXPECT_TRUE(groups.Receive("g", {.tensors = {{"c", DType::kU8, {4}}}}, taken).ok());
  EXPECT_THAT(taken.seen, ElementsAre("a BF16 [2] aaaa", "c U8 [4] cccc"));
}

TEST_F(UpdateGroupsTest, DrainsAWholeBucketThatIsRefusedBeforehand) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaaa"), std::string("s"), std::string(), std::string("bbbb")};
  Taken taken;
  const Status status = groups.Receive("g", bucket_, taken, Unavailable("another update is open"));
  EXPECT_EQ(status.message(), "another update is open");
  EXPECT_THAT(taken.seen, IsEmpty());
  EXPECT_THAT(sender_.queue, IsEmpty());
  EXPECT_EQ(sender_.num_left, 0);
}

TEST_F(UpdateGroupsTest, AnErrorOfThePeersBreaksTheGroupWhichCanBeJoinedAgain) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaaa"), Unavailable("peer gone")};
  Taken taken;
  const Status status = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "scalar (U8 []): peer gone");
  EXPECT_EQ(sender_.num_left, 1);

  const Status later = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(later.code(), StatusCode::kUnavailable);
  EXPECT_THAT(later.message(),
              AllOf(HasSubstr("broken by an earlier error"), HasSubstr("peer gone")));

  ASSERT_TRUE(groups.Init(Place("g")).ok());  // Without a destroy in between.
  sender_.queue = {std::string("cccc")};
  EXPECT_TRUE(groups.Receive("g", {.tensors = {{"c", DType::kU8, {4}}}}, taken).ok());
}

TEST_F(UpdateGroupsTest, OtherBytesThanTheMetadataSaysBreakTheGroup) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaa")};
  Taken taken;
  const Status status = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(status.message(), "a (BF16 [2]): expected 4 bytes, got 3");
  EXPECT_THAT(taken.seen, IsEmpty());
  EXPECT_TRUE(groups.Destroy("g").ok());
}

TEST_F(UpdateGroupsTest, ShapesWithoutASizeBreakTheGroup) {
  constexpr int64_t kHuge = int64_t{1} << 40;
  for (const Shape& shape : {Shape{-1}, Shape{kHuge, kHuge}, Shape{kHuge}, Shape{65}}) {
    UpdateGroups groups(Options());
    ASSERT_TRUE(groups.Init(Place("g")).ok());
    Taken taken;
    for (const bool is_flattened : {false, true}) {
      const Status status = groups.Receive(
          "g", {.tensors = {{"huge", DType::kU8, shape}}, .is_flattened = is_flattened}, taken);
      EXPECT_FALSE(status.ok());
      EXPECT_THAT(status.message(), HasSubstr("huge: "));
      EXPECT_TRUE(groups.Init(Place("g")).ok());
    }
  }
}

TEST_F(UpdateGroupsTest, SmallTensorsOfALargeFlattenedBucketAreTooMuchTogether) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  GroupBucket bucket = {.tensors = {{"a", DType::kU8, {40}}, {"b", DType::kU8, {25}}}};
  bucket.is_flattened = true;
  Taken taken;
  const Status status = groups.Receive("g", bucket, taken);
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_EQ(status.message(),
            "b: a broadcast of more than 64 bytes: 25 of this tensor after 40 others");
}

// The largest broadcast of the bucket is what lies in memory at once.
TEST_F(UpdateGroupsTest, AsksBeforeItTakesMemory) {
  std::vector<int64_t> asked;
  UpdateGroupsOptions options = Options();
  options.admit = [&asked](int64_t num_bytes) {
    asked.push_back(num_bytes);
    return num_bytes > 8 ? Exhausted("{} bytes: there are 8", num_bytes) : OkStatus();
  };
  UpdateGroups groups(std::move(options));
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  sender_.queue = {std::string("aaaa"), std::string("s"), std::string(), std::string("bbbb")};
  Taken taken;
  ASSERT_TRUE(groups.Receive("g", bucket_, taken).ok());
  GroupBucket flat = bucket_;
  flat.is_flattened = true;
  const Status status = groups.Receive("g", flat, taken);
  EXPECT_EQ(status.code(), StatusCode::kExhausted);
  EXPECT_THAT(status.message(), HasSubstr("there are 8"));
  EXPECT_THAT(asked, ElementsAre(4, 9));
  // Nobody received it, so the group is out of step.
  EXPECT_EQ(groups.Receive("g", bucket_, taken).code(), StatusCode::kUnavailable);
  EXPECT_EQ(taken.seen.size(), 4U);
}

TEST_F(UpdateGroupsTest, APeerThatStallsEndsTheCallAtItsDeadline) {
  UpdateGroups groups(Options(/*receive_timeout_s=*/0.05));
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  Taken taken;
  const Status status = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(), "a (BF16 [2]): the deadline has passed");
}

TEST_F(UpdateGroupsTest, BreakLeavesTheGroup) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  const Status status = groups.Break("g", InvalidArgument("dtypes: \"float3\""));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), AllOf(HasSubstr("float3"), HasSubstr("join it again")));
  EXPECT_EQ(sender_.num_left, 1);
  EXPECT_TRUE(groups.Init(Place("g")).ok());
}

TEST_F(UpdateGroupsTest, NamesTheGroupsThatThereAre) {
  UpdateGroups groups(Options());
  Taken taken;
  EXPECT_EQ(groups.Destroy("g").message(), "group \"g\": no such update group; there is none");
  ASSERT_TRUE(groups.Init(Place("slime-pp_0")).ok());
  ASSERT_TRUE(groups.Init(Place("slime-pp_1")).ok());
  const Status status = groups.Receive("g", bucket_, taken);
  EXPECT_EQ(status.code(), StatusCode::kNotFound);
  EXPECT_THAT(status.message(), HasSubstr("there are \"slime-pp_0\", \"slime-pp_1\""));
  EXPECT_THAT(groups.List(), ElementsAre("group \"slime-pp_0\", rank 1 of 2",
                                         "group \"slime-pp_1\", rank 1 of 2"));
}

TEST_F(UpdateGroupsTest, AGroupIsJoinedOnce) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  const Status status = groups.Init(Place("g"));
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), HasSubstr("joined already; destroy it first"));
  ASSERT_TRUE(groups.Destroy("g").ok());
  EXPECT_EQ(sender_.num_left, 1);
  EXPECT_TRUE(groups.Init(Place("g")).ok());
}

TEST_F(UpdateGroupsTest, AFailedJoinLeavesNoGroup) {
  UpdateGroupsOptions options = Options();
  options.join = [](const GroupJoin&, const WaitLimit&) {
    return Result<std::unique_ptr<Collective>>(Unavailable("nobody there"));
  };
  UpdateGroups groups(options);
  EXPECT_EQ(groups.Init(Place("g")).message(), "nobody there");
  EXPECT_EQ(groups.Init(Place("g")).message(), "nobody there");
  EXPECT_THAT(groups.List(), IsEmpty());
}

// Calls that wait for a peer which never comes, on a thread of their own.
TEST_F(UpdateGroupsTest, DestroyEndsACallThatReceives) {
  UpdateGroups groups(Options());
  ASSERT_TRUE(groups.Init(Place("g")).ok());
  auto receiving = std::async(std::launch::async, [&] {
    Taken taken;
    return groups.Receive("g", bucket_, taken);
  });
  while (!sender_.is_awaited) {
    std::this_thread::yield();
  }
  Taken taken;  // A second call does not queue up behind it.
  EXPECT_THAT(groups.Receive("g", bucket_, taken).message(), HasSubstr("is running"));
  EXPECT_THAT(groups.Init(Place("g")).message(), HasSubstr("is running"));
  EXPECT_TRUE(groups.Destroy("g").ok());
  EXPECT_EQ(receiving.get().code(), StatusCode::kCancelled);
  EXPECT_EQ(sender_.num_left, 1);
}

TEST_F(UpdateGroupsTest, DestroyAndCancelAllEndACallThatJoins) {
  for (const bool all : {false, true}) {
    UpdateGroupsOptions options = Options();
    options.join = [](const GroupJoin&, const WaitLimit& limit) {
      return Result<std::unique_ptr<Collective>>(Pause(1000.0, limit));
    };
    UpdateGroups groups(options);
    auto joining = std::async(std::launch::async, [&] { return groups.Init(Place("g")); });
    while (groups.List().empty()) {
      std::this_thread::yield();
    }
    if (all) {
      groups.CancelAll();
    } else {
      EXPECT_TRUE(groups.Destroy("g").ok());
    }
    EXPECT_EQ(joining.get().code(), StatusCode::kCancelled);
    EXPECT_THAT(groups.List(), IsEmpty());
  }
}

// --- Over sockets ---

GroupJoin Place(const MapStore& store) {
  GroupJoin join = Place("g");
  join.master = store.address();
  return join;
}

TEST(UpdateGroupsOverLoopback, ReceivesADeepBucketAndIsJoinedAgain) {
  const std::string big(size_t{1} << 20, 'w');
  MapStore store;
  UpdateGroups groups;
  for (int round = 0; round < 3; ++round) {
    const LoopbackRoot root(&store, "g", 2, [&](const ScriptedConnection& connection) {
      connection.Write(LoopbackBroadcast(big) + LoopbackBroadcast("s"));
    });
    ASSERT_TRUE(groups.Init(Place(store)).ok());
    Taken taken;
    const Status status = groups.Receive(
        "g", {.tensors = {{"big", DType::kU8, {1 << 20}}, {"s", DType::kU8, {1}}}}, taken);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_THAT(taken.seen, ElementsAre("big U8 [1048576] " + big, "s U8 [1] s"));
    ASSERT_TRUE(groups.Destroy("g").ok());
  }
}

// The rank 0 of each round dies or stalls a few bytes later than that of the last.
TEST(UpdateGroupsOverLoopback, AfterEveryFaultTheGroupCanBeJoinedAgain) {
  const std::string sent = LoopbackBroadcast("aaaa") + LoopbackBroadcast("bb");
  const GroupBucket bucket = {.tensors = {{"a", DType::kU8, {4}}, {"b", DType::kU8, {2}}}};
  UpdateGroupsOptions options;
  options.receive_timeout_s = 0.05;
  MapStore store;
  UpdateGroups groups(options);
  Taken taken;
  for (size_t num_sent = 0; num_sent < sent.size(); ++num_sent) {
    for (const bool stalls : {false, true}) {
      const LoopbackRoot root(&store, "g", 2, [&](const ScriptedConnection& connection) {
        connection.Write(sent.substr(0, num_sent));
        if (!stalls) {
          connection.HangUp();
        }
      });
      const Status joined = groups.Init(Place(store));
      ASSERT_TRUE(joined.ok()) << joined.message();
      const Status status = groups.Receive("g", bucket, taken);
      EXPECT_EQ(status.code(), StatusCode::kUnavailable) << num_sent << " " << status.message();
    }
  }
  ASSERT_TRUE(groups.Destroy("g").ok());

  UpdateGroups patient;
  taken.seen.clear();
  const LoopbackRoot root(&store, "g", 2,
                          [&](const ScriptedConnection& connection) { connection.Write(sent); });
  ASSERT_TRUE(patient.Init(Place(store)).ok());
  EXPECT_TRUE(patient.Receive("g", bucket, taken).ok());
  EXPECT_THAT(taken.seen, ElementsAre("a U8 [4] aaaa", "b U8 [2] bb"));
}

}  // namespace
}  // namespace octavo
