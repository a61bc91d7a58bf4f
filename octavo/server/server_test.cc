// Method: a real server on a port of its own choosing serves models/abacus-dense to a client that
// writes bytes by hand, so that framing is tested as it stands on the wire: keep-alive, chunks both
// ways, what is slow, cut short, too large or no HTTP at all, and peers that leave. What endpoints
// answer in full is tests/server/test_api.py's business.

#include "octavo/server/server.h"

#include <asm-generic/socket.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/types.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/server/json.h"
#include "octavo/server/raw_client_for_test.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::EndsWith;
using testing::HasSubstr;
using testing::StartsWith;

class ServerTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::Load("models/abacus-dense/tokenizer.json");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
    ServingOptions options;
    options.model_dir = "models/abacus-dense";
    options.num_threads = 1;
    options.engine.max_total_tokens = 32768;
    Result<std::unique_ptr<Serving>> serving = StartServing(options);
    ASSERT_TRUE(serving.has_value()) << serving.error().message();
    serving_ = std::move(*serving);
  }
  static void TearDownTestSuite() {
    serving_.reset();
    tokenizer_.reset();
  }

  void SetUp() override { server_ = StartServer({.port = 0}); }

  static std::unique_ptr<Server> StartServer(const ServerOptions& options) {
    Result<std::unique_ptr<Server>> server =
        Server::Start(options, serving_.get(), {.tokenizer = &*tokenizer_});
    EXPECT_TRUE(server.has_value()) << server.error().message();
    return server.has_value() ? std::move(*server) : nullptr;
  }
  int port() const { return server_->port(); }

  // Running and waiting requests, once `wanted` or after five seconds.
  int64_t AwaitLoad(int64_t wanted) {
    int64_t total = -1;
    for (int i = 0; i < 500 && total != wanted; ++i) {
      const EngineStats stats = serving_->engine->Stats();
      total = stats.num_running + stats.num_queued;
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return total;
  }

  static constexpr std::string_view kShort =
      R"({"input_ids":[5,6,7],"sampling_params":{"max_new_tokens":4,"ignore_eos":true}})";
  static constexpr std::string_view kEndless =
      R"({"input_ids":[5,6,7],"sampling_params":{"max_new_tokens":4000,"ignore_eos":true}})";
  static constexpr std::string_view kEndlessStream =
      R"({"input_ids":[5,6,7],"stream":true,"sampling_params":{"max_new_tokens":4000,)"
      R"("ignore_eos":true}})";

  static inline std::optional<Tokenizer> tokenizer_;
  static inline std::unique_ptr<Serving> serving_;
  std::unique_ptr<Server> server_;
};

TEST_F(ServerTest, AnswersManyRequestsOnOneConnection) {
  Client client(port());
  for (int i = 0; i < 3; ++i) {
    const Reply health = client.Call("GET", "/health");
    EXPECT_EQ(health.status, 200);
    EXPECT_EQ(health.body, "");
    const Reply reply = client.Call("POST", "/generate", kShort);
    ASSERT_EQ(reply.status, 200) << reply.body;
    const Result<JsonValue> json = ParseJson(reply.body);
    ASSERT_TRUE(json.has_value());
    EXPECT_EQ(json->Find("output_ids")->array()->size(), 4U);
  }
}

TEST_F(ServerTest, ServesPipelinedRequestsInOrder) {
  Client client(port());
  client.SendRequest("GET", "/get_weight_version", "");
  client.SendRequest("POST", "/generate", kShort);
  client.SendRequest("GET", "/nope", "");
  EXPECT_EQ(client.Read().body, R"({"weight_version":"0"})");
  EXPECT_THAT(client.Read().body, HasSubstr("output_ids"));
  EXPECT_EQ(client.Read().status, 404);
}

TEST_F(ServerTest, ClosesWhenAsked) {
  Client client(port());
  const Reply reply = client.Call("GET", "/health", "", "Connection: close\r\n");
  EXPECT_THAT(reply.head, HasSubstr("Connection: close"));
  EXPECT_TRUE(client.AtEnd());
  Client old(port());
  old.Send("GET /ping HTTP/1.0\r\n\r\n");
  EXPECT_EQ(old.Read().status, 200);
  EXPECT_TRUE(old.AtEnd());
}

TEST_F(ServerTest, TakesAGetWithABody) {
  Client client(port());
  EXPECT_EQ(client.Call("GET", "/health", "{}").status, 200);
  EXPECT_EQ(client.Call("GET", "/flush_cache", "{}").status, 200);
}

TEST_F(ServerTest, TakesAChunkedBodyAndExpect100) {
  Client client(port());
  client.Send("POST /generate HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  client.Send(fmt::format("{:x}\r\n{}\r\n", 20, kShort.substr(0, 20)));
  client.Send(fmt::format("{:x}\r\n{}\r\n0\r\n\r\n", kShort.size() - 20, kShort.substr(20)));
  EXPECT_EQ(client.Read().status, 200);

  client.Send(
      fmt::format("POST /generate HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n"
                  "Content-Length: {}\r\n\r\n",
                  kShort.size()));
  EXPECT_EQ(client.Read().status, 100);
  client.Send(kShort);
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, WaitsForASlowSender) {
  Client client(port());
  const std::string request = fmt::format(
      "POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{}", kShort.size(), kShort);
  for (size_t i = 0; i < request.size(); i += 7) {
    client.Send(std::string_view(request).substr(i, 7));
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    if (i == 70) {  // Others are served meanwhile.
      EXPECT_EQ(Client(port()).Call("GET", "/health").status, 200);
    }
  }
  EXPECT_EQ(client.Read().status, 200);
}

TEST_F(ServerTest, ATruncatedBodyIsNeverHandled) {
  {
    Client client(port());
    client.Send(fmt::format("POST /update_weight_version HTTP/1.1\r\nContent-Length: 100\r\n\r\n{}",
                            R"({"new_version":"9"})"));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  EXPECT_EQ(Client(port()).Call("GET", "/weight_version").body, R"({"weight_version":"0"})");
}

TEST_F(ServerTest, RefusesWhatIsNoHttpAndWhatIsTooLarge) {
  {
    Client client(port());
    client.Send("\x16\x03\x01 hello\r\n\r\n");
    EXPECT_EQ(client.Read().status, 400);
    EXPECT_TRUE(client.AtEnd());
  }
  {
    Client client(port());
    client.Send(fmt::format("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", std::string(70000, 'a')));
    EXPECT_EQ(client.Read().status, 431);
  }
  {
    Client client(port());
    client.Send("POST /generate HTTP/1.1\r\nContent-Length: 268435457\r\n\r\n");  // 256 MiB + 1
    EXPECT_EQ(client.Read().status, 413);
  }
  EXPECT_EQ(Client(port()).Call("GET", "/health").status, 200);
}

TEST_F(ServerTest, Takes10MiBBodies) {
  Client client(port());
  const std::string body =
      fmt::format(R"({{"ignored":"{}",{})", std::string(10 << 20, 'a'), kShort.substr(1));
  EXPECT_EQ(client.Call("POST", "/generate", body).status, 200);
}

TEST_F(ServerTest, StreamsEventsAndEndsWithDone) {
  Client client(port());
  const Reply reply = client.Call(
      "POST", "/generate",
      R"({"input_ids":[5],"stream":true,"sampling_params":{"max_new_tokens":3,"ignore_eos":true}})");
  EXPECT_EQ(reply.status, 200);
  EXPECT_THAT(reply.head, HasSubstr("Content-Type: text/event-stream"));
  EXPECT_THAT(reply.body, StartsWith("data: {\"text\":"));
  EXPECT_THAT(reply.body, EndsWith("\n\ndata: [DONE]\n\n"));
  EXPECT_EQ(client.Call("GET", "/health").status, 200);  // The connection lives on.
}

TEST_F(ServerTest, AStreamOverHttp10EndsWithTheConnection) {
  Client client(port());
  const std::string_view body =
      R"({"input_ids":[5],"stream":true,"sampling_params":{"max_new_tokens":2}})";
  client.Send(
      fmt::format("POST /generate HTTP/1.0\r\nConnection: keep-alive\r\n"
                  "Content-Length: {}\r\n\r\n{}",
                  body.size(), body));
  while (client.Fill()) {
  }
  EXPECT_THAT(client.buffer(), EndsWith("data: [DONE]\n\n"));
  EXPECT_THAT(client.buffer(), testing::Not(HasSubstr("chunked")));
}

TEST_F(ServerTest, APeerThatLeavesAbortsItsRequest) {
  for (const std::string_view body : {kEndless, kEndlessStream}) {
    Client client(port());
    client.SendRequest("POST", "/generate", body);
    EXPECT_EQ(AwaitLoad(1), 1);
    client.Close();
    EXPECT_EQ(AwaitLoad(0), 0);
  }
}

TEST_F(ServerTest, AnAbortReturnsThePartialOutput) {
  Client client(port());
  client.SendRequest("POST", "/generate",
                     R"({"input_ids":[5,6,7],"rid":"mine","return_logprob":true,)"
                     R"("sampling_params":{"max_new_tokens":4000,"ignore_eos":true}})");
  EXPECT_EQ(AwaitLoad(1), 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  Client control(port());
  EXPECT_EQ(control.Call("POST", "/abort_request", R"({"rid":"min"})").status, 200);  // Exact only.
  EXPECT_EQ(AwaitLoad(1), 1);
  const Reply aborted = control.Call("POST", "/abort_request", R"({"rid":"mine"})");
  EXPECT_EQ(aborted.status, 200);
  EXPECT_EQ(aborted.body, "");
  const Reply reply = client.Read();
  ASSERT_EQ(reply.status, 200);
  const Result<JsonValue> json = ParseJson(reply.body);
  ASSERT_TRUE(json.has_value());
  const JsonValue& meta = *json->Find("meta_info");
  EXPECT_EQ(*meta.Find("finish_reason")->Find("type")->string(), "abort");
  const size_t num_ids = json->Find("output_ids")->array()->size();
  EXPECT_GT(num_ids, 0U);
  EXPECT_LT(num_ids, 4000U);
  EXPECT_EQ(meta.Find("output_token_logprobs")->array()->size(), num_ids);
}

TEST_F(ServerTest, ABatchIsAbortedByItsOneRid) {
  Client client(port());
  client.SendRequest("POST", "/generate",
                     R"({"input_ids":[[5],[6]],"rid":"pair","sampling_params":)"
                     R"({"max_new_tokens":4000,"ignore_eos":true}})");
  EXPECT_EQ(AwaitLoad(2), 2);
  Client(port()).Call("POST", "/abort_request", R"({"rid":"pair"})");
  EXPECT_EQ(client.Read().status, 200);
  EXPECT_EQ(AwaitLoad(0), 0);
}

TEST_F(ServerTest, RefusesADuplicateRidInFlight) {
  Client first(port());
  const std::string body = fmt::format(R"({{"rid":"twin",{})", kEndless.substr(1));
  first.SendRequest("POST", "/generate", body);
  EXPECT_EQ(AwaitLoad(1), 1);
  const Reply reply = Client(port()).Call("POST", "/generate", body);
  EXPECT_EQ(reply.status, 400);
  EXPECT_THAT(reply.body, StartsWith(R"({"error":{"message":)"));
  first.Close();
  EXPECT_EQ(AwaitLoad(0), 0);
}

TEST_F(ServerTest, ServesThreeHundredConnectionsAtOnce) {
  std::vector<std::unique_ptr<Client>> clients;
  for (int i = 0; i < 300; ++i) {
    clients.push_back(std::make_unique<Client>(port()));
    clients.back()->SendRequest("POST", "/generate", kShort);
  }
  for (const std::unique_ptr<Client>& client : clients) {
    EXPECT_EQ(client->Read().status, 200);
  }
}

TEST_F(ServerTest, ABusyPortIsOneClearLine) {
  const Result<std::unique_ptr<Server>> second =
      Server::Start({.port = port()}, serving_.get(), {.tokenizer = &*tokenizer_});
  ASSERT_FALSE(second.has_value());
  EXPECT_EQ(second.error().code(), StatusCode::kUnavailable);
  EXPECT_EQ(second.error().message(),
            fmt::format("port {} on 127.0.0.1 is in use by another process", port()));
  EXPECT_FALSE(
      Server::Start({.host = "no.such.host.invalid", .port = 0}, serving_.get(), {}).has_value());
  EXPECT_FALSE(Server::Start({.port = 70000}, serving_.get(), {}).has_value());
}

TEST_F(ServerTest, AsksForTheKeysThatAreSet) {
  server_ = StartServer({.port = 0, .api_key = "user", .admin_api_key = "admin"});
  Client client(port());
  EXPECT_EQ(client.Call("GET", "/health").status, 200);
  const Reply refused = client.Call("GET", "/model_info");
  EXPECT_EQ(refused.status, 401);
  EXPECT_EQ(refused.body, R"({"error":"Unauthorized"})");
  EXPECT_EQ(client.Call("GET", "/nope").status, 401);
  EXPECT_EQ(client.Call("GET", "/model_info", "", "Authorization: Bearer user\r\n").status, 200);
  EXPECT_EQ(client.Call("POST", "/abort_request", "{}", "Authorization: Bearer user\r\n").status,
            401);
  EXPECT_EQ(client.Call("POST", "/abort_request", "{}", "Authorization: Bearer admin\r\n").status,
            200);
}

TEST_F(ServerTest, DropsAnUpdateWhoseSenderIsGone) {
  server_ = StartServer({.port = 0, .update_idle_seconds = 0.2});
  Client client(port());
  const std::string begun = client.Call("POST", "/octavo/v1/update/begin", "{}").body;
  const Result<JsonValue> reply = ParseJson(begun);
  ASSERT_TRUE(reply.has_value());
  const std::string id = *reply->Find("update_id")->string();
  EXPECT_THAT(client.Call("GET", "/octavo/v1/update").body, HasSubstr("\"open\":true"));
  const Reply refused = client.Call("POST", "/octavo/v1/update/begin", "{}");
  EXPECT_EQ(refused.status, 409);
  EXPECT_THAT(refused.body, HasSubstr(id));
  std::string status;
  for (int i = 0; i < 200 && status.find("\"open\":false") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    status = client.Call("GET", "/octavo/v1/update").body;
  }
  EXPECT_THAT(status, HasSubstr("\"open\":false"));
  EXPECT_EQ(
      client.Call("POST", "/octavo/v1/update/seal", fmt::format(R"({{"update_id":"{}"}})", id))
          .status,
      404);
  const Reply again = client.Call("POST", "/octavo/v1/update/begin", "{}");
  ASSERT_EQ(again.status, 200);
  const std::string again_id = *ParseJson(again.body)->Find("update_id")->string();
  client.Call("POST", "/octavo/v1/update/abort", fmt::format(R"({{"update_id":"{}"}})", again_id));
}

TEST_F(ServerTest, HealthIsNotBlockedByAnUpdateFromDisk) {
  Client updating(port());
  updating.SendRequest("POST", "/update_weights_from_disk",
                       R"({"model_path":"models/abacus-dense","weight_version":"0"})");
  Client client(port());
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(client.Call("GET", "/health").status, 200);
  }
  EXPECT_THAT(updating.Read().body, StartsWith(R"({"success":true)"));
}

TEST_F(ServerTest, APeerThatLeavesWhileAnUpdateRunsDoesNotStopIt) {
  {
    Client updating(port());
    updating.SendRequest("POST", "/update_weights_from_disk",
                         R"({"model_path":"models/abacus-dense","weight_version":"left"})");
  }
  Client client(port());
  std::string version;
  for (int i = 0; i < 500 && version.find("left") == std::string::npos; ++i) {
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
    version = client.Call("GET", "/weight_version").body;
  }
  EXPECT_THAT(version, HasSubstr("left"));
  client.Call("POST", "/update_weight_version", R"({"new_version":"0"})");
}

TEST_F(ServerTest, StoppingAtOnceAbortsWhatRuns) {
  Client client(port());
  client.SendRequest("POST", "/generate", kEndless);
  EXPECT_EQ(AwaitLoad(1), 1);
  server_.reset();
  EXPECT_EQ(AwaitLoad(0), 0);
}

// Last of its suite: an engine that has drained takes no further request.
TEST_F(ServerTest, ZDrainFinishesWhatRunsAndRefusesWhatComes) {
  Client idle(port());
  EXPECT_EQ(idle.Call("GET", "/health").status, 200);
  Client client(port());
  client.SendRequest("POST", "/generate",
                     R"({"input_ids":[5],"sampling_params":{"max_new_tokens":300,)"
                     R"("ignore_eos":true}})");
  EXPECT_EQ(AwaitLoad(1), 1);
  server_->Drain();
  const Reply reply = client.Read();
  EXPECT_EQ(reply.status, 200);
  EXPECT_THAT(reply.body, HasSubstr("\"completion_tokens\":300"));
  server_->WaitStopped();
  EXPECT_TRUE(idle.AtEnd());
  EXPECT_FALSE(Client(port()).connected());
}

}  // namespace
}  // namespace octavo
