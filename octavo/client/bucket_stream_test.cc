// Method: buckets against a buffer written out by hand; cuts and buckets against sizes counted by
// hand, and every body that is planned within the limit it was planned for. A scripted server
// breaks connections, and what it was asked is counted.

#include "octavo/client/bucket_stream.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/client/http_client.h"
#include "octavo/client/scripted_server.h"
#include "octavo/client/update_client.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

// Six bytes each, so that buckets of 12 bytes hold two.
constexpr std::array<uint16_t, 3> kValues = {0x3F80, 0x4000, 0x4040};

std::vector<PushTensor> ThreeTensors() {
  std::vector<PushTensor> tensors;
  for (const char* name : {"a", "b", "c"}) {
    tensors.push_back(
        {name, {DType::kBf16, {3}, reinterpret_cast<const std::byte*>(kValues.data())}});
  }
  return tensors;
}

std::vector<std::string> NamesOf(const std::vector<PushTensor>& tensors) {
  std::vector<std::string> names;
  for (const PushTensor& tensor : tensors) {
    names.push_back(tensor.name);
  }
  return names;
}

TEST(SafetensorsBuffer, IsTheFileFormatAlignedAndWithChecksums) {
  const auto tensors = ThreeTensors();
  const std::string buffer = SafetensorsBuffer(std::span(tensors).first(2));
  const std::string hash = HashHex(HashBytes(tensors[0].view.Bytes()));
  const std::string header =
      fmt::format(R"({{"__metadata__":{{"xxh3-128:a":"{0}","xxh3-128:b":"{0}"}},)"
                  R"("a":{{"dtype":"BF16","shape":[3],"data_offsets":[0,6]}},)"
                  R"("__pad__.1":{{"dtype":"U8","shape":[250],"data_offsets":[6,256]}},)"
                  R"("b":{{"dtype":"BF16","shape":[3],"data_offsets":[256,262]}}}})",
                  hash);
  const size_t padded = (8 + header.size() + 255) / 256 * 256 - 8;
  ASSERT_EQ(buffer.size(), 8 + padded + 262);
  uint64_t length = 0;
  std::memcpy(&length, buffer.data(), sizeof(length));
  EXPECT_EQ(length, padded);
  EXPECT_EQ(buffer.substr(8, header.size()), header);
  EXPECT_EQ(buffer.substr(8 + header.size(), padded - header.size()),
            std::string(padded - header.size(), ' '));
  const std::string six("\x80\x3F\x00\x40\x40\x40", 6);
  EXPECT_EQ(buffer.substr(8 + padded), six + std::string(250, '\0') + six);
}

TEST(PlanBuckets, FillsBucketsInOrderAndLetsALargeTensorTravelAlone) {
  const auto tensors = ThreeTensors();
  EXPECT_THAT(PlanBuckets(tensors, {.tensor_bytes = 12}), ElementsAre(0, 2));
  EXPECT_THAT(PlanBuckets(tensors, {.tensor_bytes = 18}), ElementsAre(0));
  EXPECT_THAT(PlanBuckets(tensors, {.tensor_bytes = 11}), ElementsAre(0, 1, 2));
  EXPECT_THAT(PlanBuckets(tensors, {.tensor_bytes = 1}), ElementsAre(0, 1, 2));
  EXPECT_THAT(PlanBuckets({}, {.tensor_bytes = 12}), IsEmpty());
}

TEST(PlanBuckets, KeepEveryBodyWithinTheLimit) {
  std::vector<PushTensor> tensors;
  const std::vector<std::byte> bytes(3000);
  for (int i = 0; i < 200; ++i) {
    const std::string name = fmt::format("{}.{}", std::string(static_cast<size_t>(i), '"'), i);
    tensors.push_back({name, {DType::kU8, {i * 15}, bytes.data()}});
  }
  const BucketLimits limits{.tensor_bytes = 1 << 20, .body_bytes = 16 << 10};
  const std::vector<size_t> starts = PlanBuckets(tensors, limits);
  for (size_t i = 0; i < starts.size(); ++i) {
    const size_t end = i + 1 < starts.size() ? starts[i + 1] : tensors.size();
    const auto bucket = std::span(tensors).subspan(starts[i], end - starts[i]);
    EXPECT_LE(SafetensorsBuffer(bucket).size(), static_cast<size_t>(limits.body_bytes)) << i;
  }
}

TEST(CutTensors, CutsWhatNoBodyHoldsAtMultiplesOf128Rows) {
  const std::vector<std::byte> bytes(size_t{1} << 20);
  const auto view = [&](Shape shape) {
    return ConstTensorView{DType::kU8, std::move(shape), bytes.data()};
  };
  const std::vector<PushTensor> tensors = {
      {"small", view({300, 10})}, {"large", view({700, 100})}, {"stack", view({3, 256, 100})}};
  const BucketLimits limits{.tensor_bytes = 1 << 20, .body_bytes = 40'000};
  const auto pieces = CutTensors(tensors, limits);
  ASSERT_TRUE(pieces.has_value()) << pieces.error().message();
  EXPECT_THAT(NamesOf(*pieces),
              ElementsAre("small", "large[0:256]", "large[256:512]", "large[512:700]", "stack[0:1]",
                          "stack[1:2]", "stack[2:3]"));
  EXPECT_EQ((*pieces)[3].view.shape, (Shape{188, 100}));
  EXPECT_EQ((*pieces)[3].view.data, bytes.data() + 51'200);
  EXPECT_EQ((*pieces)[5].view.shape, (Shape{1, 256, 100}));
  for (const PushTensor& piece : *pieces) {
    EXPECT_LE(SafetensorsBuffer({&piece, 1}).size(), 40'000U) << piece.name;
  }
  // Pieces are no larger than a bucket, but for the least that can be sent.
  const auto fine = CutTensors(tensors, {.tensor_bytes = 1, .body_bytes = 40'000});
  EXPECT_EQ(fine->size(), 1U + 6U + 3U);
  const auto refused = CutTensors(tensors, {.tensor_bytes = 1 << 20, .body_bytes = 9000});
  EXPECT_THAT(refused.error().message(), HasSubstr("large: 70000 bytes"));
}

TEST(GetBodyLimit, IsWhatTheServerSays) {
  ScriptedServer server(
      [](const ScriptedRequest&) { return RawReply(200, R"({"limits":{"body_bytes":4096}})"); });
  HttpClient client(*ParseHttpUrl(server.url()));
  EXPECT_EQ(GetBodyLimit(client).value(), 4096);
}

// --- Calls that break ----------------------------------------------------------------------------

// Breaks the first `num_broken` of its calls.
class BreakingServer {
 public:
  BreakingServer(int num_broken, std::string broken)
      : num_broken_(num_broken),
        broken_(std::move(broken)),
        server_([this](const ScriptedRequest&) {
          return num_calls_++ < num_broken_ ? broken_ : RawReply(200, "{}");
        }) {}
  HttpClient Client(double retry_s) const {
    return HttpClient(*ParseHttpUrl(server_.url()), {.retry_s = retry_s});
  }
  int num_calls() const { return num_calls_; }

 private:
  const int num_broken_;
  const std::string broken_;
  std::atomic<int> num_calls_ = 0;
  ScriptedServer server_;
};

TEST(HttpClientRetry, MakesACallAgainThatBroke) {
  for (const std::string& broken :
       {std::string(), std::string("no HTTP\r\n\r\n"), RawReply(422, "{}"), RawReply(408, "{}")}) {
    BreakingServer server(2, broken);
    HttpClient client = server.Client(60.0);
    const auto reply = client.Call({.method = "POST", .target = "/a"});
    ASSERT_TRUE(reply.has_value()) << reply.error().message();
    EXPECT_EQ(reply->status, 200);
    EXPECT_EQ(server.num_calls(), 3);
  }
}

TEST(HttpClientRetry, AnAnswerIsAnAnswerAndNothingIsSentTwiceUnasked) {
  BreakingServer refusing(1, RawReply(400, "{}"));
  HttpClient patient = refusing.Client(60.0);
  EXPECT_EQ(patient.Call({.target = "/a"})->status, 400);
  BreakingServer breaking(1, "");
  HttpClient hasty = breaking.Client(0.0);
  EXPECT_EQ(hasty.Call({.target = "/a"}).error().code(), StatusCode::kUnavailable);
  EXPECT_EQ(breaking.num_calls(), 1);
}

TEST(HttpClientRetry, GivesUpAtItsDeadlineAndDoesNotWaitForAServerThatNeverWas) {
  BreakingServer breaking(1'000'000, "");
  HttpClient client = breaking.Client(0.3);
  EXPECT_FALSE(client.Call({.target = "/a"}).has_value());
  EXPECT_GT(breaking.num_calls(), 1);
  HttpClient nobody(*ParseHttpUrl("http://127.0.0.1:1"), {.retry_s = 1e9});
  EXPECT_EQ(nobody.Call({.target = "/a"}).error().code(), StatusCode::kUnavailable);
}

}  // namespace
}  // namespace octavo
