// What an update of a checkpoint cannot do without: its BF16 bytes copied once, and quantized once
// by the one transform. Rounds of both, one after the other; the medians and all rounds, as one
// JSON object.
//
//   update_baseline MODEL [format] [threads] [rounds]

#include <fmt/core.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "update_baseline: {}\n", status.message());
    std::exit(1);
  }
}

template <typename T>
T Must(Result<T> result) {
  if (!result.has_value()) {
    Must(result.error());
  }
  return std::move(*result);
}

double Median(std::vector<double> values) {
  std::ranges::sort(values);
  return values[values.size() / 2];
}

// A weight, where it is copied to, and its row.
struct Weight {
  const StoredTensor* source = nullptr;
  const PrecisionRow* row = nullptr;
  Buffer copy;
};

double CopySeconds(std::vector<Weight>& weights, ThreadPool& pool) {
  const double start = Now();
  for (Weight& weight : weights) {
    const auto bytes = weight.source->view.Bytes();
    pool.ParallelFor(static_cast<int64_t>(bytes.size()), [&](int64_t begin, int64_t end, int) {
      std::memcpy(weight.copy.data() + begin, bytes.data() + begin,
                  static_cast<size_t>(end - begin));
    });
  }
  return Now() - start;
}

double QuantizeSeconds(const std::vector<Weight>& weights, ThreadPool& pool) {
  const double start = Now();
  for (const Weight& weight : weights) {
    const ConstTensorView view = {weight.source->view.dtype, weight.source->view.shape,
                                  weight.copy.data()};
    Must(TransformWeight(*weight.row, view, {.pool = &pool}));
  }
  return Now() - start;
}

int Main(int argc, char** argv) {
  if (argc < 2) {
    fmt::print(stderr, "update_baseline MODEL [format] [threads] [rounds]\n");
    return 1;
  }
  const Checkpoint checkpoint = Must(Checkpoint::Open(argv[1]));
  const std::optional<WeightFormat> format = ParseWeightFormat(argc > 2 ? argv[2] : "fp8");
  if (!format.has_value()) {
    Must(InvalidArgument("expected a format, got {}", argv[2]));
  }
  ThreadPool pool(argc > 3 ? std::max(std::atoi(argv[3]), 1) : NumUsableThreads());
  const int rounds = argc > 4 ? std::max(std::atoi(argv[4]), 1) : 5;
  const ModelSpec spec = Must(MakeCheckpointSpec(checkpoint));
  const PrecisionTable table =
      Must(ChooseTable(spec, checkpoint.config(), PolicyOptions{.format = *format}));
  std::vector<Weight> weights;
  int64_t num_bytes = 0;
  for (const PrecisionRow& row : table.rows) {
    const StoredTensor* source = checkpoint.Find(row.name);
    if (source == nullptr) {
      Must(NotFound("{} is not in {}", row.name, argv[1]));
    }
    num_bytes += source->view.NumBytes();
    Buffer copy = Must(Buffer::AllocateHost(source->view.NumBytes()));
    weights.push_back({.source = source, .row = &row, .copy = std::move(copy)});
  }
  CopySeconds(weights, pool);  // From the disk, and the memory for the first time.
  std::vector<double> copy_s;
  std::vector<double> quantize_s;
  for (int i = 0; i < rounds; ++i) {
    copy_s.push_back(CopySeconds(weights, pool));
    quantize_s.push_back(QuantizeSeconds(weights, pool));
  }
  fmt::print(R"({{"bytes":{},"threads":{},"copy_s":{:.5f},"quantize_s":{:.5f},"copies_s":[{:.4f}],)"
             R"("quantizations_s":[{:.4f}]}})"
             "\n",
             num_bytes, pool.num_threads(), Median(copy_s), Median(quantize_s),
             fmt::join(copy_s, ","), fmt::join(quantize_s, ","));
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main(argc, argv); }
