// Method: a listener with small limits and a handler that the test scripts, against a client that
// writes bytes by hand: each limit once beyond and once just below, peers that are slow, silent or
// gone, and what streams look like on the wire. Each wait ends with an event; none is measured.

#include "octavo/server/http_connection.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/server/http.h"
#include "octavo/server/http_limits.h"
#include "octavo/server/http_listener.h"
#include "octavo/server/io_loop.h"
#include "octavo/server/raw_client_for_test.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::StartsWith;

constexpr auto kPatience = std::chrono::seconds(60);

class HttpConnectionTest : public testing::Test {
 protected:
  ~HttpConnectionTest() override {
    loop_.Join();
    listener_.reset();
    writer_.reset();
    loop_.Stop();
  }

  // Serves with `handler`, which runs on the io thread.
  void Serve(HttpLimits limits, HttpHandler handler) {
    Result<std::unique_ptr<HttpListener>> listener =
        HttpListener::Open({.port = 0, .limits = limits}, &loop_, std::move(handler));
    ASSERT_TRUE(listener.has_value()) << listener.error().message();
    listener_ = std::move(*listener);
    loop_.Start();
  }
  // Each answer is "PATH: BODY".
  void ServeEcho(HttpLimits limits) {
    Serve(limits, [this](const HttpRequest& request, const WriterPtr& writer) {
      handled_.push_back(request.path);
      writer->Send(TextResponse(fmt::format("{}: {}", request.path, request.body)));
    });
  }
  // Streams to whoever asks; the first stream's writer is kept, and its peer's leaving noticed.
  void ServeStream(HttpLimits limits) {
    Serve(limits, [this](const HttpRequest&, const WriterPtr& writer) {
      writer_ = writer;
      writer->OnPeerGone([this] { gone_.set_value(); });
      writer->StartStream();
      started_.set_value();
    });
  }

  // Runs `task` on the io thread and returns when it has run.
  void OnIo(const std::function<void()>& task) {
    std::promise<void> done;
    loop_.Post([&] {
      task();
      done.set_value();
    });
    done.get_future().wait();
  }
  static bool Comes(std::promise<void>& event) {
    return event.get_future().wait_for(kPatience) == std::future_status::ready;
  }
  int port() const { return listener_->port(); }

  IoLoop loop_;
  std::unique_ptr<HttpListener> listener_;
  std::vector<std::string> handled_;  // On the io thread.
  WriterPtr writer_;                  // Likewise.
  std::promise<void> started_;
  std::promise<void> gone_;
};

TEST_F(HttpConnectionTest, RefusesABodyBeyondItsLimit) {
  ServeEcho({.body_bytes_max = 100});
  EXPECT_EQ(Client(port()).Call("POST", "/a", std::string(100, 'x')).status, 200);
  Client client(port());
  const Reply reply = client.Call("POST", "/b", std::string(101, 'x'));
  EXPECT_EQ(reply.status, 413);
  EXPECT_THAT(reply.body, HasSubstr("expected at most 100 bytes"));
  EXPECT_THAT(reply.head, HasSubstr("Connection: close"));
  EXPECT_TRUE(client.AtEnd());
  OnIo([&] { EXPECT_THAT(handled_, ElementsAre("/a")); });
}

TEST_F(HttpConnectionTest, RefusesAChunkedBodyAsSoonAsItIsTooLarge) {
  ServeEcho({.body_bytes_max = 100});
  Client client(port());
  client.Send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
  client.Send(fmt::format("3c\r\n{}\r\n", std::string(60, 'x')));
  client.Send(fmt::format("3c\r\n{}\r\n", std::string(60, 'x')));  // Never ended.
  EXPECT_EQ(client.Read().status, 413);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpConnectionTest, RefusesBodiesThatTogetherAreTooLarge) {
  ServeEcho({.all_bodies_bytes_max = 1000});
  Client first(port());
  first.Send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 901\r\n\r\n");
  first.Send(std::string(900, 'x'));
  Client second(port());
  // The first one's bytes are counted once they are read, which this waits for.
  Reply reply;
  for (int i = 0; i < 1000 && reply.status != 503; ++i) {
    reply = Client(port()).Call("POST", "/b", std::string(500, 'y'));
  }
  EXPECT_EQ(reply.status, 503);
  first.Send("z");
  EXPECT_EQ(first.Read().status, 200);
  EXPECT_EQ(second.Call("POST", "/c", std::string(500, 'y')).status, 200);
}

TEST_F(HttpConnectionTest, RefusesAHeadBeyondItsLimits) {
  ServeEcho({.header_bytes_max = 1000, .header_fields_max = 4});
  Client long_head(port());
  const std::string value(1000, 'a');
  const Reply reply = long_head.Call("GET", "/a", "", fmt::format("X: {}\r\n", value));
  EXPECT_EQ(reply.status, 431);
  EXPECT_THAT(reply.body, HasSubstr("expected at most 1000 bytes"));
  EXPECT_TRUE(long_head.AtEnd());
  // Host and Content-Length are two fields of their own.
  EXPECT_EQ(Client(port()).Call("GET", "/b", "", "A: 1\r\nB: 2\r\n").status, 200);
  const Reply fields = Client(port()).Call("GET", "/c", "", "A: 1\r\nB: 2\r\nC: 3\r\n");
  EXPECT_EQ(fields.status, 431);
  EXPECT_THAT(fields.body, HasSubstr("expected at most 4 fields"));
  OnIo([&] { EXPECT_THAT(handled_, ElementsAre("/b")); });
}

TEST_F(HttpConnectionTest, GivesUpAHeadThatDoesNotCome) {
  ServeEcho({.header_seconds = 0.05});
  Client client(port());
  client.Send("GET /a HTTP/1.1\r\nHos");
  const Reply reply = client.Read();
  EXPECT_EQ(reply.status, 408);
  EXPECT_THAT(reply.head, HasSubstr("Connection: close"));
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpConnectionTest, GivesUpABodyThatDoesNotCome) {
  ServeEcho({.body_seconds = 0.05, .body_bytes_per_second_min = 1 << 20});
  Client client(port());
  client.Send("POST /a HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nxx");
  EXPECT_EQ(client.Read().status, 408);
  EXPECT_TRUE(client.AtEnd());
  OnIo([&] { EXPECT_TRUE(handled_.empty()); });
}

TEST_F(HttpConnectionTest, ClosesAnIdleConnectionWithoutAWord) {
  ServeEcho({.idle_seconds = 0.05});
  Client silent(port());
  EXPECT_TRUE(silent.AtEnd());
  Client after_a_request(port());
  EXPECT_EQ(after_a_request.Call("GET", "/a").status, 200);
  EXPECT_TRUE(after_a_request.AtEnd());
}

TEST_F(HttpConnectionTest, ClosesWhatIsBeyondTheNumberOfConnections) {
  ServeEcho({.connections_max = 1});
  Client first(port());
  EXPECT_EQ(first.Call("GET", "/a").status, 200);
  Client second(port());
  EXPECT_TRUE(second.AtEnd());
  EXPECT_EQ(first.Call("GET", "/b").status, 200);
}

TEST_F(HttpConnectionTest, RefusesACodingThatItDoesNotUndo) {
  ServeEcho({});
  Client client(port());
  client.Send("POST /a HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n");
  EXPECT_EQ(client.Read().status, 400);
  EXPECT_TRUE(client.AtEnd());
}

TEST_F(HttpConnectionTest, AnswersPipelinedRequestsInOrder) {
  ServeEcho({});
  Client client(port());
  std::string requests;
  for (int i = 0; i < 50; ++i) {
    requests += fmt::format("POST /{0} HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{0:02}", i);
  }
  client.Send(requests);
  for (int i = 0; i < 50; ++i) {
    EXPECT_EQ(client.Read().body, fmt::format("/{0}: {0:02}", i));
  }
}

TEST_F(HttpConnectionTest, AnEarlyNextRequestWaitsForTheEndOfAStream) {
  ServeStream({});
  Client client(port());
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  started_ = {};
  client.SendRequest("GET", "/b", "");
  OnIo([&] { writer_->Write("one"); });
  OnIo([&] {
    writer_->Write("two");
    writer_->Finish();
  });
  const Reply first = client.Read();
  EXPECT_EQ(first.body, "onetwo");
  ASSERT_TRUE(Comes(started_));
  OnIo([&] { writer_->Finish(); });
  EXPECT_EQ(client.Read().body, "");
}

TEST_F(HttpConnectionTest, EachWriteIsAChunkHoweverTheyAreSent) {
  ServeStream({});
  Client client(port());
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  OnIo([&] {
    writer_->Write("0123456789");
    writer_->Write("abcdefg");
    writer_->Finish();
  });
  const std::string_view body = "a\r\n0123456789\r\n7\r\nabcdefg\r\n0\r\n\r\n";
  while (!client.buffer().ends_with(body) && client.Fill()) {
  }
  EXPECT_THAT(client.buffer(), StartsWith("HTTP/1.1 200 OK\r\n"));
  EXPECT_TRUE(client.buffer().ends_with(fmt::format("\r\n\r\n{}", body))) << client.buffer();
}

TEST_F(HttpConnectionTest, AStreamGoesOutBeforeItsEnd) {
  ServeStream({});
  Client client(port());
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  while (client.buffer().find("\r\n\r\n") == std::string::npos && client.Fill()) {
  }
  OnIo([&] { writer_->Write("first"); });
  while (client.buffer().find("first") == std::string::npos && client.Fill()) {
  }
  EXPECT_THAT(client.buffer(), HasSubstr("5\r\nfirst\r\n"));
}

TEST_F(HttpConnectionTest, APeerThatTakesItsTimeGetsEveryByte) {
  ServeStream({});
  Client client(port(), /*receive_bytes=*/4096);
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  // More than the kernel holds for a socket (tcp_wmem and tcp_rmem give a few MiB at most), in
  // pieces of every size, so that writes end in the middle of one.
  std::string expected;
  OnIo([&] {
    for (int i = 0; i < 3000; ++i) {
      const std::string piece(static_cast<size_t>(1 + i * 7 % 20000),
                              static_cast<char>('a' + i % 26));
      expected += piece;
      writer_->Write(piece);
    }
  });
  OnIo([&] { EXPECT_GT(writer_->PendingBytes(), 0); });
  OnIo([&] { writer_->Finish(); });
  const Reply reply = client.Read();
  EXPECT_TRUE(reply.body == expected) << reply.body.size() << " of " << expected.size();
}

TEST_F(HttpConnectionTest, ALargeAnswerIsWhole) {
  std::string body(std::size_t{24} << 20, 'x');
  for (size_t i = 0; i < body.size(); i += 4096) {
    body[i] = static_cast<char>('a' + i / 4096 % 26);
  }
  Serve({}, [&](const HttpRequest&, const WriterPtr& writer) { writer->Send(TextResponse(body)); });
  Client client(port());
  for (int i = 0; i < 2; ++i) {
    const Reply reply = client.Call("GET", "/a");
    EXPECT_TRUE(reply.body == body) << reply.body.size() << " of " << body.size();
  }
}

TEST_F(HttpConnectionTest, APeerThatTakesNothingIsGivenUp) {
  ServeStream({.pending_bytes_max = 1 << 20});
  Client client(port(), /*receive_bytes=*/4096);
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  OnIo([&] { writer_->Write(std::string(std::size_t{16} << 20, 'x')); });
  EXPECT_TRUE(Comes(gone_));
  OnIo([&] { EXPECT_EQ(writer_->PendingBytes(), 0); });
}

TEST_F(HttpConnectionTest, APeerThatStallsIsGivenUpInTime) {
  ServeStream({.write_stall_seconds = 0.1});
  Client client(port(), /*receive_bytes=*/4096);
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  OnIo([&] { writer_->Write(std::string(std::size_t{16} << 20, 'x')); });
  EXPECT_TRUE(Comes(gone_));
}

TEST_F(HttpConnectionTest, LeavingInTheMiddleOfAStreamIsNoticed) {
  ServeStream({});
  Client client(port());
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  OnIo([&] { writer_->Write("first"); });
  client.Close();
  EXPECT_TRUE(Comes(gone_));
  OnIo([&] {  // What comes later finds nobody, and says so to nobody.
    writer_->Write("second");
    writer_->Finish();
    EXPECT_EQ(writer_->PendingBytes(), 0);
  });
}

TEST_F(HttpConnectionTest, LeavingBeforeTheFirstByteIsNoticed) {
  Serve({}, [this](const HttpRequest&, const WriterPtr& writer) {
    writer_ = writer;
    writer->OnPeerGone([this] { gone_.set_value(); });
    started_.set_value();
  });
  Client client(port());
  client.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  client.Close();
  EXPECT_TRUE(Comes(gone_));
}

TEST_F(HttpConnectionTest, WithoutAcceptingEndsIdleConnectionsAndFinishesBusyOnes) {
  ServeStream({});
  Client busy(port());
  busy.SendRequest("GET", "/a", "");
  ASSERT_TRUE(Comes(started_));
  Client idle(port());
  ASSERT_TRUE(idle.connected());
  OnIo([&] {
    EXPECT_EQ(listener_->num_busy(), 1);
    listener_->StopAccepting();
  });
  EXPECT_TRUE(idle.AtEnd());
  OnIo([&] {
    writer_->Write("rest");
    writer_->Finish();
  });
  EXPECT_EQ(busy.Read().body, "rest");
  EXPECT_TRUE(busy.AtEnd());
}

}  // namespace
}  // namespace octavo
