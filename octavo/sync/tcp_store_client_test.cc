// Method: the exchange that torch 2.11 was recorded in, byte for byte; a store with a map behind it
// for what the calls mean; and servers that break off, stall or lie at every place of the exchange,
// where what counts is that an error comes and what it says.

#include "octavo/sync/tcp_store_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/sync/peer_socket.h"
#include "octavo/sync/scripted_peer_for_test.h"

namespace octavo {
namespace {

using testing::HasSubstr;

// Enough for what must succeed, and short for what must not.
constexpr double kLongS = 60.0;
constexpr double kShortS = 0.05;

constexpr std::string_view kGroup = "weight_update_group";
const std::string kIdKey = "/weight_update_group/weight_update_group//cuda//0";

std::string Text(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
std::span<const std::byte> Bytes(std::string_view text) { return std::as_bytes(std::span(text)); }

std::string UniqueId() {
  std::string id(128, '\0');
  for (size_t i = 0; i < id.size(); ++i) {
    id[i] = static_cast<char>(255 - i);
  }
  return id;
}

TEST(StoreKey, NestsPrefixesAsTorchDoes) {
  const std::string group(kGroup);
  EXPECT_EQ(StoreKey({group, group, "/cuda/"}, "0"), kIdKey);
  EXPECT_EQ(StoreKey({}, "key"), "/key");
}

TEST(TcpStoreClient, HasTheExchangeThatWasRecorded) {
  // Right sides: octets as recorded, the nonce and the id apart.
  std::string opening;
  std::string joining;
  std::string waiting;
  std::string getting;
  ScriptedPeer server([&](const ScriptedConnection& connection) {
    opening = connection.Read(6);
    connection.Write(connection.Read(4));  // The nonce.
    joining = connection.Read(1 + 8 + 5 + 8);
    connection.Write(RawBytes(int64_t{2}));
    waiting = connection.Read(1 + 8 + 8 + 49);
    connection.Write(std::string(1, '\0'));
    getting = connection.Read(1 + 8 + 49);
    connection.Write(RawBytes(uint64_t{128}) + UniqueId());
    connection.AwaitGone();
  });
  const WaitLimit limit = LimitAfter(kLongS);
  auto client = TcpStoreClient::Connect(server.address(), limit);
  ASSERT_TRUE(client.has_value()) << client.error().message();
  EXPECT_EQ(client->num_workers(), 2);
  const auto id = client->Get(kIdKey, limit);
  ASSERT_TRUE(id.has_value()) << id.error().message();
  EXPECT_EQ(Text(*id), UniqueId());
  client = Unavailable("let go");  // Closes, so that the script ends.
  server.Stop();

  using namespace std::string_literals;
  EXPECT_EQ(opening, "\x00\xce\xf7\x85\x3c\x0d"s);
  EXPECT_EQ(joining,
            "\x04\x05\x00\x00\x00\x00\x00\x00\x00"
            "init/\x01\x00\x00\x00\x00\x00\x00\x00"s);
  EXPECT_EQ(waiting,
            "\x06\x01\x00\x00\x00\x00\x00\x00\x00\x31\x00\x00\x00\x00\x00\x00\x00"s + kIdKey);
  EXPECT_EQ(getting, "\x03\x31\x00\x00\x00\x00\x00\x00\x00"s + kIdKey);
}

// --- What the calls mean ---

class TcpStoreClientTest : public testing::Test {
 protected:
  void SetUp() override {
    auto connected = TcpStoreClient::Connect(store_.address(), limit_);
    ASSERT_TRUE(connected.has_value()) << connected.error().message();
    client_ = std::move(connected).value();
  }

  const WaitLimit limit_ = LimitAfter(kLongS);
  MapStore store_;
  TcpStoreClient client_;
};

TEST_F(TcpStoreClientTest, CountsItselfWithoutALeadingSlash) {
  EXPECT_EQ(client_.num_workers(), 1);
  EXPECT_EQ(store_.Get("init/"), "1");
  const auto second = TcpStoreClient::Connect(store_.address(), limit_);
  EXPECT_EQ(second->num_workers(), 2);
}

TEST_F(TcpStoreClientTest, SetsGetsAndDeletes) {
  ASSERT_TRUE(client_.Set("/a", Bytes("one"), limit_).ok());
  EXPECT_EQ(Text(*client_.Get("/a", limit_)), "one");
  ASSERT_TRUE(client_.Set("/a", Bytes(""), limit_).ok());
  EXPECT_EQ(Text(*client_.Get("/a", limit_)), "");
  EXPECT_EQ(*client_.NumKeys(limit_), 2);  // "/a" and "init/".
  EXPECT_TRUE(*client_.Delete("/a", limit_));
  EXPECT_FALSE(*client_.Delete("/a", limit_));
}

TEST_F(TcpStoreClientTest, AddsAndSwaps) {
  EXPECT_EQ(*client_.Add("/n", 5, limit_), 5);
  EXPECT_EQ(*client_.Add("/n", -7, limit_), -2);
  const auto swap = [&](std::string_view expected, std::string_view desired) {
    return Text(*client_.CompareSet("/c", {.expected = Bytes(expected), .desired = Bytes(desired)},
                                    limit_));
  };
  EXPECT_EQ(swap("x", "y"), "x");  // There is none, and none is expected: nothing changes.
  EXPECT_EQ(swap("", "a"), "a");
  EXPECT_EQ(swap("b", "c"), "a");
  EXPECT_EQ(swap("a", "c"), "c");
}

TEST_F(TcpStoreClientTest, ChecksAndWaitsForAllOfTheKeys) {
  const std::vector<std::string> keys = {"/a", "/b"};
  store_.Set("/a", "");
  EXPECT_FALSE(*client_.Check(keys, limit_));
  std::thread later([&] { store_.Set("/b", ""); });
  EXPECT_TRUE(client_.Wait(keys, limit_).ok());
  later.join();
  EXPECT_TRUE(*client_.Check(keys, limit_));
}

TEST_F(TcpStoreClientTest, FindsTheKeyThatAPeerUses) {
  const std::vector<std::string> candidates = {"/old", kIdKey};
  store_.Set(kIdKey, "id");
  EXPECT_EQ(*client_.WaitForAny(candidates, limit_), kIdKey);
}

TEST_F(TcpStoreClientTest, NamesEveryCandidateWhenNoneComes) {
  const std::vector<std::string> candidates = {"/old", kIdKey};
  const auto found = client_.WaitForAny(candidates, LimitAfter(kShortS));
  EXPECT_EQ(found.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(found.error().message(), HasSubstr("\"/old\", \"" + kIdKey + "\""));
  EXPECT_THAT(found.error().message(), HasSubstr(store_.address().ToString()));
}

TEST_F(TcpStoreClientTest, AWaitEndsAtItsDeadlineAndTheClientIsClosed) {
  const std::string key = "/never";
  const Status status = client_.Wait(std::span(&key, 1), LimitAfter(kShortS));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_EQ(status.message(),
            fmt::format("TCPStore: WAIT \"/never\": {}: received 0 of 1 bytes: the deadline has "
                        "passed",
                        store_.address().ToString()));
  EXPECT_FALSE(client_.is_open());
  const auto later = client_.Add("/n", 1, limit_);
  EXPECT_EQ(later.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(later.error().message(), HasSubstr("the connection is closed"));
}

TEST_F(TcpStoreClientTest, AWaitEndsWhenItIsCancelled) {
  Cancellation cancel;
  std::thread canceller([&] { cancel.Cancel(); });
  const Result<std::vector<std::byte>> value = client_.Get("/never", LimitAfter(kLongS, &cancel));
  canceller.join();
  EXPECT_EQ(value.error().code(), StatusCode::kCancelled);
}

// --- Servers that fail ---

TEST(TcpStoreClientConnect, TriesAgainUntilTheServerListens) {
  const int listener = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address = {};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t length = sizeof(address);
  auto* raw = reinterpret_cast<sockaddr*>(&address);
  ASSERT_EQ(bind(listener, raw, length), 0);  // Refuses until it listens.
  ASSERT_EQ(getsockname(listener, raw, &length), 0);
  std::thread server([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    listen(listener, 1);
    const int fd = accept(listener, nullptr, nullptr);
    const ScriptedConnection connection(fd);
    connection.Read(6);
    connection.Write(connection.Read(4));
    connection.Read(1 + 8 + 5 + 8);
    connection.Write(RawBytes(int64_t{1}));
    close(fd);
  });
  const auto client =
      TcpStoreClient::Connect({"127.0.0.1", ntohs(address.sin_port)}, LimitAfter(kLongS));
  EXPECT_TRUE(client.has_value()) << client.error().message();
  server.join();
  close(listener);
}

TEST(TcpStoreClientConnect, SaysWhereNobodyListens) {
  PeerAddress gone;
  {
    const ScriptedPeer peer([](const ScriptedConnection&) {});
    gone = peer.address();
  }
  const auto client = TcpStoreClient::Connect(gone, LimitAfter(kShortS));
  EXPECT_EQ(client.error().code(), StatusCode::kUnavailable);
  EXPECT_EQ(client.error().message(),
            fmt::format("TCPStore: VALIDATE and PING: {}: cannot connect: the deadline has passed "
                        "(Connection refused)",
                        gone.ToString()));
}

TEST(TcpStoreClientConnect, RefusesAnAddressThatIsNone) {
  for (const PeerAddress& address :
       {PeerAddress{"", 1}, PeerAddress{"h", 0}, PeerAddress{"h", 65536}}) {
    EXPECT_EQ(TcpStoreClient::Connect(address, LimitAfter(kLongS)).error().code(),
              StatusCode::kInvalidArgument);
  }
}

TEST(TcpStoreClientConnect, StopsTryingWhenItIsCancelled) {
  PeerAddress gone;
  {
    const ScriptedPeer peer([](const ScriptedConnection&) {});
    gone = peer.address();
  }
  Cancellation cancel;
  std::thread canceller([&] { cancel.Cancel(); });
  EXPECT_EQ(TcpStoreClient::Connect(gone, LimitAfter(kLongS, &cancel)).error().code(),
            StatusCode::kCancelled);
  canceller.join();
}

// Everything that a server answers a rank that joins: the nonce, the sum, the end of WAIT, the id.
constexpr size_t kAnswerBytes = 4 + 8 + 1 + (8 + 128);

// Reads each request, and answers as long as `num_bytes` last.
void AnswerUpTo(size_t num_bytes, const ScriptedConnection& connection) {
  connection.Read(6);
  const std::array<std::string, 4> answers = {connection.Read(4), RawBytes(int64_t{2}),
                                              std::string(1, '\0'), RawBlob(UniqueId())};
  const std::array<size_t, 4> next_request_bytes = {1 + 8 + 5 + 8, 1 + 8 + 8 + 49, 1 + 8 + 49, 0};
  for (size_t i = 0; i < answers.size() && num_bytes > 0; ++i) {
    const size_t num_now = std::min(num_bytes, answers[i].size());
    connection.Write(answers[i].substr(0, num_now));
    num_bytes -= num_now;
    connection.Read(num_bytes > 0 ? next_request_bytes[i] : 0);
  }
}

std::string AllAnswers(const std::string& nonce) {
  return nonce + RawBytes(int64_t{2}) + std::string(1, '\0') + RawBlob(UniqueId());
}

// The first error of a rank that joins.
Status JoinAndGet(const PeerAddress& address, const WaitLimit& limit) {
  ASSIGN_OR_RETURN(TcpStoreClient client, TcpStoreClient::Connect(address, limit));
  ASSIGN_OR_RETURN(const std::vector<std::byte> id, client.Get(kIdKey, limit));
  return Text(id) == UniqueId() ? OkStatus() : Internal("another id");
}

TEST(TcpStoreClientFaults, AServerThatDiesIsAnErrorAtEveryByte) {
  std::atomic<size_t> num_sent = 0;
  const ScriptedPeer server([&](const ScriptedConnection& connection) {
    AnswerUpTo(num_sent, connection);
    if (num_sent == kAnswerBytes) {
      connection.AwaitGone();
    }
  });
  for (num_sent = 0; num_sent < kAnswerBytes; ++num_sent) {
    const Status status = JoinAndGet(server.address(), LimitAfter(kLongS));
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << num_sent;
    EXPECT_THAT(status.message(), HasSubstr(server.address().ToString())) << num_sent;
    EXPECT_THAT(status.message(), HasSubstr(num_sent < 4    ? "PING"
                                            : num_sent < 12 ? "ADD \"init/\""
                                            : num_sent < 13 ? "WAIT"
                                                            : "GET"));
  }
  num_sent = kAnswerBytes;
  EXPECT_TRUE(JoinAndGet(server.address(), LimitAfter(kLongS)).ok());
}

TEST(TcpStoreClientFaults, AServerThatStallsIsAnErrorInEveryMessage) {
  std::atomic<size_t> num_sent = 0;
  const ScriptedPeer server([&](const ScriptedConnection& connection) {
    AnswerUpTo(num_sent, connection);
    connection.AwaitGone();
  });
  // Before and inside each of the five answers.
  for (const size_t stop : std::vector<size_t>{0, 2, 4, 8, 12, 13, 20, 21, 148}) {
    num_sent = stop;
    const Status status = JoinAndGet(server.address(), LimitAfter(kShortS));
    EXPECT_EQ(status.code(), StatusCode::kUnavailable) << stop;
    EXPECT_THAT(status.message(), HasSubstr("the deadline has passed")) << stop;
  }
}

TEST(TcpStoreClientFaults, AServerThatTricklesDoesNotOutlastTheDeadline) {
  const ScriptedPeer server([&](const ScriptedConnection& connection) {
    connection.Read(6);
    for (const char byte : AllAnswers(connection.Read(4))) {
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
      if (!connection.Write(std::string(1, byte))) {
        return;
      }
    }
  });
  // Whole, it would take 149 * 5 ms.
  const Status status = JoinAndGet(server.address(), LimitAfter(0.2));
  EXPECT_EQ(status.code(), StatusCode::kUnavailable);
  EXPECT_THAT(status.message(), HasSubstr("the deadline has passed"));
}

struct Lie {
  size_t offset;      // In AllAnswers.
  std::string bytes;  // Instead of what belongs there.
  std::string message;
};

TEST(TcpStoreClientFaults, AServerThatLiesIsCorrupt) {
  const std::vector<Lie> lies = {
      {0, std::string(4, '\x5a'), "expected our nonce"},
      {12, "\x01", "expected 0 (stop waiting), got 1"},
      {12, "\x07", "expected 0 (stop waiting), got 7"},
      {13, RawBytes(TcpStoreClient::kValueBytesMax + 1), "got a length of 1048577"},
      {13, RawBytes(~uint64_t{0}), "got a length of 18446744073709551615"},
  };
  for (const Lie& lie : lies) {
    const ScriptedPeer server([&](const ScriptedConnection& connection) {
      connection.Read(6);
      std::string answers = AllAnswers(connection.Read(4));
      connection.Write(answers.replace(lie.offset, lie.bytes.size(), lie.bytes));
      connection.AwaitGone();
    });
    const Status status = JoinAndGet(server.address(), LimitAfter(kLongS));
    EXPECT_EQ(status.code(), StatusCode::kCorrupt) << lie.message;
    EXPECT_THAT(status.message(), HasSubstr(lie.message));
    EXPECT_THAT(status.message(), HasSubstr(server.address().ToString()));
  }
}

TEST(TcpStoreClientFaults, ACheckHasTwoAnswers) {
  const ScriptedPeer server([&](const ScriptedConnection& connection) {
    connection.Read(6);
    connection.Write(connection.Read(4) + RawBytes(int64_t{1}) + "\x02");
    connection.AwaitGone();
  });
  auto client = TcpStoreClient::Connect(server.address(), LimitAfter(kLongS));
  ASSERT_TRUE(client.has_value());
  const auto answer = client->Check(std::span(&kIdKey, 1), LimitAfter(kLongS));
  EXPECT_EQ(answer.error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(answer.error().message(), HasSubstr("got 2"));
}

TEST(PeerAddress, ReadsBackWhatItWrites) {
  for (const char* text : {"127.0.0.1:29500", "node-3:1", "[::1]:65535"}) {
    const auto address = ParsePeerAddress(text);
    ASSERT_TRUE(address.has_value()) << text;
    EXPECT_EQ(address->ToString(), text);
  }
  for (const char* text :
       {"", ":1", "host", "host:", "host:0", "host:65536", "host:1x", "host:-1"}) {
    EXPECT_EQ(ParsePeerAddress(text).error().code(), StatusCode::kCorrupt) << text;
  }
}

}  // namespace
}  // namespace octavo
