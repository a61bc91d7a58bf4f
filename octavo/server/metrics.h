#pragma once
// /metrics: the figures of engine, updates and HTTP as Prometheus text, under SGLang's names where
// it has one and with the prefix octavo: where it does not (docs/api.md).

#include <compare>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/engine/histogram.h"
#include "octavo/engine/latencies.h"
#include "octavo/server/http.h"
#include "octavo/server/info.h"

namespace octavo {

// --- Text ----------------------------------------------------------------------------------------

using MetricLabel = std::pair<std::string_view, std::string>;  // Name and unescaped value.
using MetricLabels = std::vector<MetricLabel>;

// Appends families in the text format 0.0.4. All samples of a family stand together and have the
// same label names: those of `common`, then the sample's own. One thread.
class MetricsWriter {
 public:
  static constexpr std::string_view kContentType = "text/plain; version=0.0.4; charset=utf-8";

  explicit MetricsWriter(MetricLabels common) : common_(std::move(common)) {}

  // Begins a family; `type` is "gauge" or "counter".
  void Family(std::string_view name, std::string_view type, std::string_view help);
  // A sample of the family that was begun last. Counts up to 2^53 are exact.
  void Sample(double value, const MetricLabels& labels = {});
  void Sample(int64_t value, const MetricLabels& labels = {});
  // A family of one sample.
  void Gauge(std::string_view name, double value, std::string_view help);
  void Gauge(std::string_view name, int64_t value, std::string_view help);
  void Counter(std::string_view name, double value, std::string_view help);
  void Counter(std::string_view name, int64_t value, std::string_view help);
  // A family of one histogram: cumulative buckets, the sum and the count.
  void WriteHistogram(std::string_view name, const Histogram& histogram, std::string_view help);

  // Labels of the families that follow.
  void SetCommon(MetricLabels common) { common_ = std::move(common); }
  std::string Take() { return std::move(text_); }

 private:
  void AppendSample(std::string_view name, const MetricLabels& labels, std::string_view value);

  MetricLabels common_;
  std::string family_;
  std::string text_;
};

// --- HTTP ----------------------------------------------------------------------------------------

// How requests were answered. One thread: the io thread.
class HttpCounts {
 public:
  // A peer that left before it was answered counts under this status.
  static constexpr int kPeerGone = 499;

  struct Key {
    std::string_view route;  // RouteMatch::route; "" for an unknown path.
    int status = 0;
    auto operator<=>(const Key&) const = default;
  };
  void Begin() { ++in_flight_; }
  void End(std::string_view route, int status) {
    --in_flight_;
    ++answered_[{route, status}];
  }
  int64_t in_flight() const { return in_flight_; }
  const std::map<Key, int64_t>& answered() const { return answered_; }

 private:
  int64_t in_flight_ = 0;
  std::map<Key, int64_t> answered_;
};

// A writer that counts one request of `route`, whose text must live for ever, from now until it is
// answered or its peer has left, and passes everything on to `writer`.
WriterPtr CountRequest(WriterPtr writer, std::string_view route,
                       std::shared_ptr<HttpCounts> counts);

// --- Everything ----------------------------------------------------------------------------------

// The pointers outlive the call.
struct MetricsContext {
  InfoContext info;
  EngineLatencies latencies;
  const HttpCounts* http = nullptr;
};
std::string MetricsText(const MetricsContext& context);

}  // namespace octavo
