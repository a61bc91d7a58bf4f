// Method: one or two scripted servers play the receiving side; what they were asked, in which
// order, is compared with the transaction's law (nothing commits before everything is sealed, every
// failure aborts everywhere).

#include "octavo/client/update_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>

#include "octavo/base/hash.h"
#include "octavo/client/bucket_stream.h"
#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

// Six bytes each, so that buckets of 12 bytes hold two.
constexpr std::array<uint16_t, 3> kBytes = {0x3F80, 0x4000, 0x4040};

std::vector<PushTensor> ThreeTensors() {
  std::vector<PushTensor> tensors;
  for (const char* name : {"a", "b", "c"}) {
    tensors.push_back({name,
                       {.dtype = DType::kBf16,
                        .shape = {3},
                        .data = reinterpret_cast<const std::byte*>(kBytes.data())}});
  }
  return tensors;
}

// Answers every call of a transaction well, but `failing` with 400.
std::string Answer(const ScriptedRequest& request, std::string_view failing,
                   std::string_view digest) {
  const std::string_view line = request.line;
  if (!failing.empty() && line.find(failing) != std::string_view::npos) {
    return RawReply(400, R"({"success":false,"message":"refused on purpose"})");
  }
  if (line.ends_with("/begin")) {
    return RawReply(200, R"({"update_id":"u1"})");
  }
  if (line.ends_with("/commit")) {
    return RawReply(200, R"({"version":"7","pause_ms":1.5,"in_flight":4,"retracted":4})");
  }
  if (line.ends_with("/v1/loads")) {
    return RawReply(200, R"({"loads":[{"num_running_reqs":4,"num_waiting_reqs":1}]})");
  }
  if (line.ends_with("/digest")) {
    return RawReply(200, fmt::format(R"({{"digest":"{}"}})", digest));
  }
  if (line.ends_with("/get_model_info")) {
    return RawReply(200, R"({"recipe":"serving-1/mxfp8","emulated":true})");
  }
  return RawReply(200, "{}");
}

// The paths that a server was asked for, without what is the same in all.
std::vector<std::string> Steps(const ScriptedServer& server) {
  std::vector<std::string> steps;
  for (const ScriptedRequest& request : server.requests()) {
    const size_t query = request.line.find('?');
    steps.push_back(request.line.substr(0, query).substr(request.line.rfind('/', query) + 1));
  }
  return steps;
}

TEST(PushCheckpoint, RunsTheTransactionInOrderAndReportsIt) {
  ScriptedServer server([](const ScriptedRequest& r) { return Answer(r, "", "d1"); });
  PushOptions options;
  options.bucket_bytes = 12;
  options.weight_version = "7";
  std::vector<int64_t> sent;
  options.on_progress = [&](int64_t bytes, int64_t total) {
    EXPECT_EQ(total, 18);
    sent.push_back(bytes);
  };
  const std::string urls[] = {server.url()};
  const auto tensors = ThreeTensors();
  const auto report = PushCheckpoint(tensors, urls, options);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_THAT(Steps(server), ElementsAre("loads", "begin", "server_info", "put", "put", "seal",
                                         "commit", "loads", "get_model_info", "digest"));
  const auto requests = server.requests();
  EXPECT_THAT(requests[1].body, StartsWith(R"({"weight_version":"7","request_key":")"));
  EXPECT_EQ(requests[3].line, "POST /octavo/v1/update/put?update_id=u1&sequence=0&checksum=" +
                                  HashHex(HashText(requests[3].body)));
  EXPECT_EQ(requests[3].body, SafetensorsBuffer(std::span(tensors).first(2)));
  EXPECT_THAT(requests[4].line,
              StartsWith("POST /octavo/v1/update/put?update_id=u1&sequence=1&checksum="));
  EXPECT_EQ(requests[6].body, R"({"update_id":"u1","in_flight":"retract","digest":false})");
  EXPECT_THAT(sent, ElementsAre(12, 18));
  EXPECT_EQ(report->version, "7");
  EXPECT_EQ(report->bytes, 18);
  EXPECT_EQ(report->digest, "d1");
  EXPECT_EQ(report->pause_ms, 1.5);
  EXPECT_EQ(report->in_flight, 4);
  EXPECT_EQ(report->retracted, 4);
  EXPECT_EQ(report->lost, 0);
  EXPECT_EQ(report->servers[0].load_before, 5);
  EXPECT_THAT(PushReportJson(*report), HasSubstr(R"("in_flight":4,"retracted":4,"lost":0)"));
  EXPECT_THAT(PushReportJson(*report),
              HasSubstr(R"("digest":"d1","recipe":"serving-1/mxfp8","emulated":true}])"));
}

TEST(PushCheckpoint, AsksForTheServersNextVersionWithNull) {
  ScriptedServer server([](const ScriptedRequest& r) { return Answer(r, "", "d1"); });
  const std::string urls[] = {server.url()};
  ASSERT_TRUE(PushCheckpoint(ThreeTensors(), urls, {}).has_value());
  EXPECT_THAT(server.requests()[1].body, StartsWith(R"({"weight_version":null,"request_key":")"));
}

TEST(PushCheckpoint, AnyFailureAbortsOnAllAndCommitsNowhere) {
  struct Case {
    const char* failing;
    const char* message;
  };
  const Case cases[] = {{"sequence=1", "bucket 1, c: "}, {"/seal", "/octavo/v1/update/seal"}};
  for (const Case& c : cases) {
    ScriptedServer good([](const ScriptedRequest& r) { return Answer(r, "", "d1"); });
    ScriptedServer bad([&](const ScriptedRequest& r) { return Answer(r, c.failing, "d1"); });
    PushOptions options;
    options.bucket_bytes = 12;
    const std::string urls[] = {good.url(), bad.url()};
    const auto report = PushCheckpoint(ThreeTensors(), urls, options);
    ASSERT_FALSE(report.has_value());
    EXPECT_THAT(report.error().message(), HasSubstr(c.message));
    EXPECT_THAT(report.error().message(), HasSubstr(bad.url()));
    EXPECT_THAT(report.error().message(), HasSubstr("refused on purpose"));
    EXPECT_EQ(Steps(good).back(), "abort");
    EXPECT_EQ(Steps(bad).back(), "abort");
    EXPECT_THAT(Steps(good), testing::Not(testing::Contains("commit")));
  }
}

TEST(PushCheckpoint, SaysWhichServersChangedWhenACommitFails) {
  ScriptedServer good([](const ScriptedRequest& r) { return Answer(r, "", "d1"); });
  ScriptedServer bad([](const ScriptedRequest& r) { return Answer(r, "/commit", "d1"); });
  const std::string urls[] = {good.url(), bad.url()};
  const auto report = PushCheckpoint(ThreeTensors(), urls, {});
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(), HasSubstr("new weights are live on " + good.url()));
  EXPECT_THAT(Steps(good), testing::Not(testing::Contains("abort")));
  EXPECT_EQ(Steps(bad).back(), "abort");
}

TEST(PushCheckpoint, RefusesServersThatEndUpDifferent) {
  ScriptedServer one([](const ScriptedRequest& r) { return Answer(r, "", "d1"); });
  ScriptedServer two([](const ScriptedRequest& r) { return Answer(r, "", "d2"); });
  const std::string urls[] = {one.url(), two.url()};
  const auto report = PushCheckpoint(ThreeTensors(), urls, {});
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().code(), StatusCode::kInternal);
  EXPECT_THAT(report.error().message(), HasSubstr("digests differ"));
}

TEST(PushCheckpoint, CountsWhatASwapLost) {
  const auto reply = [](std::string_view commit) {
    return [commit](const ScriptedRequest& r) {
      return r.line.ends_with("/commit") ? RawReply(200, commit) : Answer(r, "", "d");
    };
  };
  struct Case {
    const char* mode;
    const char* commit;
    int64_t lost;
  };
  const Case cases[] = {
      {"retract", R"({"version":"1","in_flight":5,"retracted":3})", 2},
      {"retract", R"({"version":"1","in_flight":5,"retracted":5,"aborted":1})", 1},
      {"in_place", R"({"version":"1","in_flight":5})", 0},
      {"abort", R"({"version":"1","in_flight":5,"aborted":5})", 0},
      {"abort", R"({"version":"1","in_flight":5,"aborted":4})", 1},
      {"drain", R"({"version":"1","in_flight":0})", 0},
  };
  for (const Case& c : cases) {
    ScriptedServer server(reply(c.commit));
    PushOptions options;
    options.in_flight = c.mode;
    const std::string urls[] = {server.url()};
    EXPECT_EQ(PushCheckpoint(ThreeTensors(), urls, options).value().lost, c.lost) << c.commit;
  }
}

TEST(PushCheckpoint, RefusesEmptyCalls) {
  const std::string urls[] = {"http://127.0.0.1:1"};
  EXPECT_EQ(PushCheckpoint({}, urls, {}).error().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(PushCheckpoint(ThreeTensors(), {}, {}).error().code(), StatusCode::kInvalidArgument);
  PushOptions options;
  options.bucket_bytes = 0;
  EXPECT_EQ(PushCheckpoint(ThreeTensors(), urls, options).error().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace octavo
