// Method: fleets against a server whose every reply the test writes: what is sent, in which order,
// how many at once, and how each kind of failure ends.

#include "octavo/client/http_fleet.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <thread>
#include <vector>

#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class Recorder final : public FleetScript {
 public:
  double SendAfter(int64_t call_idx) override { return gap_s * static_cast<double>(call_idx); }
  std::string Body(int64_t call_idx) override { return fmt::format("[{}]", call_idx); }
  void OnSend(int64_t call_idx) override { sent.push_back(call_idx); }
  void OnPiece(int64_t call_idx, std::string_view piece) override { bodies[call_idx] += piece; }
  void OnEnd(int64_t call_idx, const Status& status) override {
    EXPECT_TRUE(ends.emplace(call_idx, status).second) << "a second end of " << call_idx;
  }

  double gap_s = 0.0;
  std::vector<int64_t> sent;
  std::map<int64_t, std::string> bodies;
  std::map<int64_t, Status> ends;
};

HttpUrl UrlOf(const ScriptedServer& server) { return ParseHttpUrl(server.url()).value(); }

TEST(RunFleet, SendsEveryCallOnceOnAConnectionOfItsOwn) {
  ScriptedServer server(
      [](const ScriptedRequest& request) { return RawReply(200, "reply to " + request.body); });
  Recorder script;
  ASSERT_TRUE(RunFleet(UrlOf(server), "/generate", {.num_calls = 40}, script).ok());
  EXPECT_EQ(script.sent.size(), 40u);
  EXPECT_TRUE(std::is_sorted(script.sent.begin(), script.sent.end()));
  ASSERT_EQ(script.ends.size(), 40u);
  for (const auto& [call_idx, status] : script.ends) {
    EXPECT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(script.bodies[call_idx], fmt::format("reply to [{}]", call_idx));
  }
  std::vector<int> connections;
  for (const ScriptedRequest& request : server.requests()) {
    EXPECT_EQ(request.line, "POST /generate");
    connections.push_back(request.connection_idx);
  }
  std::sort(connections.begin(), connections.end());
  EXPECT_EQ(std::unique(connections.begin(), connections.end()), connections.end());
}

TEST(RunFleet, SendsTheKeyOfTheServer) {
  ScriptedServer server([](const ScriptedRequest&) { return RawReply(200, ""); });
  HttpUrl url = UrlOf(server);
  url.api_key = "k";
  Recorder script;
  ASSERT_TRUE(RunFleet(url, "/", {.num_calls = 2}, script).ok());
  for (const ScriptedRequest& request : server.requests()) {
    EXPECT_EQ(request.authorization, "Bearer k");
  }
}

TEST(RunFleet, KeepsNoMoreInFlightThanAskedFor) {
  std::atomic<int> num_now = 0;
  std::atomic<int> num_most = 0;
  ScriptedServer server([&](const ScriptedRequest&) {
    const int now = ++num_now;
    int most = num_most;
    while (now > most && !num_most.compare_exchange_weak(most, now)) {
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
    --num_now;
    return RawReply(200, "x");
  });
  Recorder script;
  ASSERT_TRUE(RunFleet(UrlOf(server), "/", {.num_calls = 20, .in_flight_max = 3}, script).ok());
  EXPECT_EQ(script.ends.size(), 20u);
  EXPECT_LE(num_most, 3);
}

TEST(RunFleet, WaitsUntilACallIsDue) {
  ScriptedServer server([](const ScriptedRequest&) { return RawReply(200, "x"); });
  Recorder script;
  script.gap_s = 0.05;
  const auto start = std::chrono::steady_clock::now();
  ASSERT_TRUE(RunFleet(UrlOf(server), "/", {.num_calls = 4}, script).ok());
  // The last is due after 3 gaps: never earlier, however slow the machine.
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(150));
  EXPECT_THAT(script.sent, ElementsAre(0, 1, 2, 3));
}

TEST(RunFleet, OneFailureIsNobodyElses) {
  ScriptedServer server([](const ScriptedRequest& request) {
    if (request.body == "[1]") {
      return RawReply(503, R"({"message":"queue full"})");
    }
    if (request.body == "[2]") {
      return std::string();  // Closes the connection.
    }
    if (request.body == "[3]") {
      return std::string("HTTP/1.1 200 x\r\nContent-Length: 10\r\n\r\nhalf");
    }
    return RawReply(200, "x");
  });
  Recorder script;
  const FleetOptions options = {.num_calls = 5, .timeouts = {.connect_s = 10, .idle_s = 0.5}};
  ASSERT_TRUE(RunFleet(UrlOf(server), "/g", options, script).ok());
  ASSERT_EQ(script.ends.size(), 5u);
  EXPECT_TRUE(script.ends[0].ok());
  EXPECT_EQ(script.ends[1].code(), StatusCode::kUnavailable);
  EXPECT_THAT(script.ends[1].message(), HasSubstr("status 503: queue full"));
  EXPECT_TRUE(script.bodies[1].empty());  // Bodies of refusals are no pieces.
  EXPECT_EQ(script.ends[2].code(), StatusCode::kUnavailable);
  EXPECT_THAT(script.ends[3].message(), HasSubstr("timed out while waiting for the reply"));
  EXPECT_TRUE(script.ends[4].ok());
}

TEST(RunFleet, SaysWhyNobodyIsThere) {
  HttpUrl url;
  {
    ScriptedServer server([](const ScriptedRequest&) { return std::string(); });
    url = UrlOf(server);
  }
  Recorder script;
  ASSERT_TRUE(RunFleet(url, "/", {.num_calls = 2}, script).ok());
  EXPECT_EQ(script.ends[0].code(), StatusCode::kUnavailable);
  EXPECT_THAT(script.ends[1].message(), HasSubstr("refused while connecting"));
  EXPECT_TRUE(RunFleet(url, "/", {.num_calls = 0}, script).ok());
}

}  // namespace
}  // namespace octavo
