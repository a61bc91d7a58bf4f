// Method: a server of this process answers with raw bytes written out here, so that every failure
// of a connection happens on purpose; url texts are checked one rule at a time.

#include "octavo/client/http_client.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <thread>

#include "octavo/client/scripted_server.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing::Not;

HttpClient ClientOf(const ScriptedServer& server, double idle_s = 5.0) {
  return HttpClient(ParseHttpUrl(server.url()).value(), {.connect_s = 5.0, .idle_s = idle_s});
}

TEST(ParseHttpUrl, TakesHostPortAndPrefixApart) {
  const HttpUrl url = ParseHttpUrl("http://host.example:30000/a/b/").value();
  EXPECT_EQ(url.host, "host.example");
  EXPECT_EQ(url.port, "30000");
  EXPECT_EQ(url.prefix, "/a/b");
  EXPECT_EQ(ParseHttpUrl("http://h").value().port, "80");
  EXPECT_EQ(ParseHttpUrl("http://h/").value().prefix, "");
  const HttpUrl v6 = ParseHttpUrl("http://[::1]:8000").value();
  EXPECT_EQ(v6.host, "::1");
  EXPECT_EQ(v6.ToString(), "http://[::1]:8000");
}

TEST(ParseHttpUrl, RefusesByName) {
  for (const char* text : {"", "host:30000", "http://", "http://:80", "http://h:", "http://h:x",
                           "http://h:0", "http://h:65536", "http://[::1", "http://[::1]80"}) {
    const auto url = ParseHttpUrl(text);
    ASSERT_FALSE(url.has_value()) << text;
    EXPECT_EQ(url.error().code(), StatusCode::kInvalidArgument) << text;
    EXPECT_THAT(url.error().message(), HasSubstr(fmt::format("'{}'", text)));
  }
  EXPECT_EQ(ParseHttpUrl("https://h").error().code(), StatusCode::kUnsupported);
}

TEST(HttpClient, KeepsOneConnectionForSeveralCalls) {
  ScriptedServer server([](const ScriptedRequest& r) { return RawReply(200, r.line + r.body); });
  HttpClient client = ClientOf(server);
  EXPECT_EQ(GetText(client, "/a?b=1").value(), "GET /a?b=1");
  EXPECT_EQ(PostJson(client, "/c", "{}").value(), "POST /c{}");
  EXPECT_EQ(server.requests().back().connection_idx, 0);
  client.Close();
  EXPECT_EQ(GetText(client, "/d").value(), "GET /d");
  EXPECT_EQ(server.requests().back().connection_idx, 1);
}

TEST(HttpClient, ReplacesAConnectionThatTheServerCloses) {
  ScriptedServer server(
      [](const ScriptedRequest&) { return RawReply(200, "x", "Connection: close\r\n"); });
  HttpClient client = ClientOf(server);
  EXPECT_TRUE(GetText(client, "/").has_value());
  EXPECT_TRUE(GetText(client, "/").has_value());
  EXPECT_EQ(server.requests().back().connection_idx, 1);
}

TEST(HttpClient, SendsALargeBodyWhole) {
  ScriptedServer server(
      [](const ScriptedRequest& r) { return RawReply(200, std::to_string(r.body.size())); });
  HttpClient client = ClientOf(server);
  EXPECT_EQ(PostJson(client, "/", std::string(10'000'000, 'x')).value(), "10000000");
}

TEST(HttpClient, SaysThatNobodyListens) {
  std::string url;
  {
    ScriptedServer server([](const ScriptedRequest&) { return ""; });
    url = server.url();
  }
  HttpClient client(ParseHttpUrl(url).value());
  const auto reply = GetText(client, "/health");
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(reply.error().message(), HasSubstr("GET " + url + "/health: Connection refused"));
}

TEST(HttpClient, SaysThatTheReplyDoesNotCome) {
  ScriptedServer server([](const ScriptedRequest&) {
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    return RawReply(200, "late");
  });
  HttpClient client = ClientOf(server, /*idle_s=*/0.05);
  const auto reply = GetText(client, "/slow");
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code(), StatusCode::kUnavailable);
  EXPECT_THAT(reply.error().message(), HasSubstr("timed out while waiting for the reply"));
}

TEST(HttpClient, SaysThatTheConnectionWasClosed) {
  ScriptedServer server([](const ScriptedRequest&) { return ""; });
  HttpClient client = ClientOf(server);
  const auto reply = GetText(client, "/");
  ASSERT_FALSE(reply.has_value());
  EXPECT_EQ(reply.error().code(), StatusCode::kUnavailable);
}

TEST(HttpClient, SaysThatABodyWasCutShort) {
  ScriptedServer server([](const ScriptedRequest&) {
    return "HTTP/1.1 200 x\r\nContent-Length: 5\r\nConnection: close\r\n\r\nab";
  });
  HttpClient client = ClientOf(server, /*idle_s=*/0.2);
  EXPECT_EQ(GetText(client, "/").error().code(), StatusCode::kUnavailable);
}

TEST(HttpClient, RefusesWhatIsNotHttp) {
  ScriptedServer server([](const ScriptedRequest&) { return "SSH-2.0-none\r\n\r\n"; });
  HttpClient client = ClientOf(server);
  EXPECT_EQ(GetText(client, "/").error().code(), StatusCode::kCorrupt);
}

TEST(HttpClient, PassesTheServersMessageOn) {
  struct Case {
    int status;
    const char* body;
    StatusCode code;
    const char* message;
  };
  const Case cases[] = {
      {400, R"({"error":{"message":"bad rid"}})", StatusCode::kInvalidArgument, "400: bad rid"},
      {400, R"({"object":"error","message":"no body","code":400})", StatusCode::kInvalidArgument,
       "400: no body"},
      {401, R"({"error":"Unauthorized"})", StatusCode::kInvalidArgument, "401: Unauthorized"},
      {404, R"({"detail":"Not Found"})", StatusCode::kNotFound, "404: Not Found"},
      {503, "busy", StatusCode::kUnavailable, "503: busy"},
      {500, "", StatusCode::kInternal, "status 500: "},
  };
  for (const Case& c : cases) {
    ScriptedServer server([&](const ScriptedRequest&) { return RawReply(c.status, c.body); });
    HttpClient client = ClientOf(server);
    const auto reply = GetText(client, "/x");
    ASSERT_FALSE(reply.has_value());
    EXPECT_EQ(reply.error().code(), c.code) << c.body;
    EXPECT_THAT(reply.error().message(), HasSubstr(c.message));
  }
}

TEST(HttpClient, ReadsAChunkedBody) {
  ScriptedServer server([](const ScriptedRequest&) {
    return "HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n4\r\ndefg\r\n0\r\n\r\n";
  });
  HttpClient client = ClientOf(server);
  EXPECT_EQ(GetText(client, "/").value(), "abcdefg");
}

TEST(HttpClient, SendsTheKeyOfItsServerAndNamesItNowhere) {
  ScriptedServer server(
      [](const ScriptedRequest& request) { return RawReply(401, request.authorization); });
  HttpUrl url = ParseHttpUrl(server.url()).value();
  EXPECT_EQ(HttpClient(url).Call({}).value().body, "");
  url.api_key = "s3cret";
  EXPECT_EQ(HttpClient(url).Call({}).value().body, "Bearer s3cret");
  EXPECT_THAT(url.ToString(), Not(HasSubstr("s3cret")));
}

TEST(IsApiKey, TakesWhatAHeaderCanHold) {
  EXPECT_TRUE(IsApiKey("sk-!~Az09"));
  for (const char* text : {"a b", "a\r\nX: y", "\x7F", "\xC3\xA9"}) {
    EXPECT_FALSE(IsApiKey(text));
  }
}

}  // namespace
}  // namespace octavo
