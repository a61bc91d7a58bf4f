// Method: the text format of Prometheus worked out by hand, byte for byte; a counting writer over
// one that records; and the test vectors of FIPS 180-4 for SHA-256.

#include "octavo/server/metrics.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <utility>

#include "octavo/engine/histogram.h"
#include "octavo/server/http.h"
#include "octavo/server/process_memory.h"
#include "octavo/server/sha256.h"

namespace octavo {
namespace {

using testing::HasSubstr;

TEST(MetricsWriter, WritesFamiliesWithTheirLabels) {
  MetricsWriter text(MetricLabels{{"model_name", "m"}});
  text.Gauge("a:b", int64_t{3}, "What it is.");
  text.Family("a:c_total", "counter", "More.");
  text.Sample(int64_t{1} << 52, {{"kind", "x"}});
  text.Sample(0.1, {{"kind", "y"}});
  EXPECT_EQ(text.Take(),
            "# HELP a:b What it is.\n"
            "# TYPE a:b gauge\n"
            "a:b{model_name=\"m\"} 3\n"
            "# HELP a:c_total More.\n"
            "# TYPE a:c_total counter\n"
            "a:c_total{model_name=\"m\",kind=\"x\"} 4503599627370496\n"
            "a:c_total{model_name=\"m\",kind=\"y\"} 0.1\n");
}

TEST(MetricsWriter, EscapesLabelsAndSpellsWhatIsNotFinite) {
  MetricsWriter text(MetricLabels{{"name", "a\\b\"c\nd\té"}});
  text.Gauge("x", std::numeric_limits<double>::infinity(), "X.");
  text.Gauge("y", std::numeric_limits<double>::quiet_NaN(), "Y.");
  const std::string out = text.Take();
  EXPECT_THAT(out, HasSubstr("x{name=\"a\\\\b\\\"c\\nd\té\"} +Inf\n"));
  EXPECT_THAT(out, HasSubstr("} NaN\n"));
}

TEST(MetricsWriter, NeedsNoLabels) {
  MetricsWriter text(MetricLabels{});
  text.Counter("x_total", 0.5, "X.");
  EXPECT_THAT(text.Take(), HasSubstr("\nx_total 0.5\n"));
}

TEST(MetricsWriter, AccumulatesTheBucketsOfAHistogram) {
  static constexpr double kBounds[] = {0.5, 1.0};
  Histogram histogram{kBounds};
  for (const double value : {0.25, 0.5, 0.75, 3.0}) {
    histogram.Observe(value);
  }
  MetricsWriter text(MetricLabels{{"m", "x"}});
  text.WriteHistogram("h_seconds", histogram, "H.");
  EXPECT_EQ(text.Take(),
            "# HELP h_seconds H.\n"
            "# TYPE h_seconds histogram\n"
            "h_seconds_bucket{m=\"x\",le=\"0.5\"} 2\n"
            "h_seconds_bucket{m=\"x\",le=\"1\"} 3\n"
            "h_seconds_bucket{m=\"x\",le=\"+Inf\"} 4\n"
            "h_seconds_sum{m=\"x\"} 4.5\n"
            "h_seconds_count{m=\"x\"} 4\n");
}

class NullWriter final : public ResponseWriter {
 public:
  void Send(HttpResponse response) override { status = response.status; }
  void StartStream() override {}
  void Write(std::string) override {}
  void Finish() override { finished = true; }
  int64_t PendingBytes() const override { return 7; }
  void OnPeerGone(std::function<void()> callback) override { on_gone = std::move(callback); }

  int status = 0;
  bool finished = false;
  std::function<void()> on_gone;
};

struct Counted {
  std::shared_ptr<HttpCounts> counts = std::make_shared<HttpCounts>();
  std::shared_ptr<NullWriter> inner = std::make_shared<NullWriter>();
  WriterPtr writer = CountRequest(inner, "/generate", counts);

  int64_t Of(int status) const {
    const auto found = counts->answered().find({"/generate", status});
    return found == counts->answered().end() ? 0 : found->second;
  }
};

TEST(CountRequest, CountsAnAnswerOnceByItsStatus) {
  Counted counted;
  EXPECT_EQ(counted.counts->in_flight(), 1);
  counted.writer->Send({.status = 400});
  EXPECT_EQ(counted.inner->status, 400);
  EXPECT_EQ(counted.counts->in_flight(), 0);
  EXPECT_EQ(counted.Of(400), 1);
  counted.writer->Send({.status = 200});  // Too late, but passed on.
  EXPECT_EQ(counted.Of(200), 0);
}

TEST(CountRequest, CountsAStreamWhenItEnds) {
  Counted counted;
  counted.writer->StartStream();
  counted.writer->Write("x");
  EXPECT_EQ(counted.writer->PendingBytes(), 7);
  EXPECT_EQ(counted.Of(200), 0);
  counted.writer->Finish();
  EXPECT_TRUE(counted.inner->finished);
  EXPECT_EQ(counted.Of(200), 1);
}

TEST(CountRequest, CountsAPeerThatLeavesAndTellsWhoeverWantedToKnow) {
  Counted counted;
  bool told = false;
  counted.writer->OnPeerGone([&] { told = true; });
  counted.inner->on_gone();
  EXPECT_TRUE(told);
  EXPECT_EQ(counted.Of(HttpCounts::kPeerGone), 1);
  EXPECT_EQ(counted.counts->in_flight(), 0);
  counted.writer->Finish();
  EXPECT_EQ(counted.Of(200), 0);
}

TEST(ProcessMemory, IsThatOfThisProcess) {
  const ProcessMemory before = ReadProcessMemory();
  EXPECT_GT(before.anonymous_bytes, int64_t{100} << 10);
  EXPECT_GT(before.file_bytes, int64_t{100} << 10);
  const std::string touched(size_t{64} << 20, 'x');
  EXPECT_GE(ReadProcessMemory().anonymous_bytes - before.anonymous_bytes, int64_t{60} << 20);
  EXPECT_EQ(touched.back(), 'x');
}

TEST(Sha256, GivesTheExamplesOfTheStandard) {
  EXPECT_EQ(Sha256Hex(""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Sha256Hex("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  // Two blocks of padding text.
  EXPECT_EQ(Sha256Hex("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Sha256Hex(std::string(1'000'000, 'a')),
            "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

}  // namespace
}  // namespace octavo
