// The quantizers on a BF16 matrix far larger than the caches: encode, decode, measure and the
// largest magnitude, in bytes of BF16 a second and as a share of the read bandwidth. Each is timed
// right after a plain read of the same bytes by the same threads, so that what else the machine
// does falls on both; the figures are medians of rounds, and medians, least and largest of the
// rounds' own ratios. One JSON object a line.
//
//   formats_bench [threads] [rounds] [MiB of source] [cols] [format]...

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/machine_peaks.h"

namespace octavo {
namespace {

constexpr int64_t kBandRows = 128;
constexpr double kGiga = 1e9;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values.empty() ? 0.0 : values[values.size() / 2];
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "formats_bench: {}\n", status.message());
    std::exit(1);
  }
}

// Sums of four uniform numbers: bell-shaped like weights, largest magnitude 0.08.
std::vector<uint16_t> RandomMatrix(int64_t rows, int64_t cols) {
  std::vector<uint16_t> pattern(1 << 20);
  for (size_t i = 0; i < pattern.size(); ++i) {
    float sum = -2.0F;
    for (uint64_t j = 0; j < 4; ++j) {
      sum += UniformFloat(7, 4 * i + j);
    }
    pattern[i] = FloatToBf16(0.04F * sum);
  }
  std::vector<uint16_t> values(static_cast<size_t>(rows * cols));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = pattern[(i + i / pattern.size() * 977) % pattern.size()];
  }
  return values;
}

// A band's outputs, used again by the next band as convert does.
struct Scratch {
  std::vector<uint8_t> codes;
  std::vector<float> scales;
  std::vector<uint16_t> decoded;
  QuantizationError error;
};

class Bench {
 public:
  Bench(int64_t rows, int64_t cols, int threads)
      : rows_(rows),
        cols_(cols),
        values_(RandomMatrix(rows, cols)),
        amax_(Amax(View(0, rows))),
        pool_(threads),
        scratch_(static_cast<size_t>(threads)) {
    const auto band = static_cast<size_t>(kBandRows * cols);
    for (Scratch& scratch : scratch_) {
      scratch.codes.resize(band);
      scratch.scales.resize(band);
      scratch.decoded.resize(band);
    }
  }

  void Run(const std::vector<WeightFormat>& formats, int rounds) {
    for (const WeightFormat format : formats) {
      RunFormat(format, rounds);
    }
  }

 private:
  enum Work { kRead, kAmax, kEncode, kDecode, kMeasure, kNumWorks };
  static constexpr std::string_view kWorkNames[] = {"read", "amax", "encode", "decode", "measure"};

  ConstTensorView View(int64_t row, int64_t num_rows) const {
    return {DType::kBf16,
            {num_rows, cols_},
            reinterpret_cast<const std::byte*>(values_.data() + row * cols_)};
  }

  void DoBand(Work work, WeightFormat format, int64_t row, Scratch* scratch) const {
    const ConstTensorView values = View(row, kBandRows);
    const std::span codes(scratch->codes.data(),
                          static_cast<size_t>(CodeBytes(format, kBandRows, cols_)));
    const std::span scales(reinterpret_cast<std::byte*>(scratch->scales.data()),
                           static_cast<size_t>(ScaleBytes(format, kBandRows, cols_)));
    const float tensor_scale = TensorScale(format, amax_);
    switch (work) {
      case kAmax:
        Must(Amax(values) > amax_ ? Internal("amax grew") : OkStatus());
        break;
      case kEncode:
        Must(Quantize(
            {.format = format, .values = values, .amax = amax_, .codes = codes, .scales = scales}));
        break;
      case kDecode:
        Must(Dequantize({.format = format,
                         .rows = kBandRows,
                         .cols = cols_,
                         .codes = codes,
                         .scales = scales,
                         .tensor_scale = tensor_scale,
                         .values = {DType::kBf16,
                                    {kBandRows, cols_},
                                    reinterpret_cast<std::byte*>(scratch->decoded.data())}}));
        break;
      default:
        scratch->error += MeasureQuantization({.format = format,
                                               .values = values,
                                               .codes = codes,
                                               .scales = scales,
                                               .tensor_scale = tensor_scale});
    }
  }

  // Bytes of BF16 a second. Codes of decode and measure are those of one band, whichever it is.
  double Rate(Work work, WeightFormat format) {
    const std::span<const std::byte> memory = std::as_bytes(std::span(values_));
    if (work == kRead) {
      return MeasureReadBandwidth({&memory, 1}, &pool_);
    }
    const double start = Now();
    pool_.ParallelFor(rows_ / kBandRows, [&](int64_t begin, int64_t end, int worker) {
      for (int64_t band = begin; band < end; ++band) {
        DoBand(work, format, band * kBandRows, &scratch_[static_cast<size_t>(worker)]);
      }
    });
    return static_cast<double>(memory.size()) / (Now() - start);
  }

  void RunFormat(WeightFormat format, int rounds) {
    std::vector<double> rates[kNumWorks];
    std::vector<double> shares[kNumWorks];
    for (int round = 0; round <= rounds; ++round) {
      for (const Work work : {kEncode, kDecode, kMeasure, kAmax}) {
        const double read = Rate(kRead, format);
        const double rate = Rate(work, format);
        if (round > 0) {  // The first warms up.
          rates[kRead].push_back(read);
          rates[work].push_back(rate);
          shares[work].push_back(rate / read);
        }
      }
    }
    fmt::print(
        "{{\"format\": \"{}\", \"threads\": {}, \"rows\": {}, \"cols\": "
        "{}, \"rounds\": {}, "
        "\"read_gb_per_s\": {:.1f}",
        WeightFormatName(format), pool_.num_threads(), rows_, cols_, rounds,
        Median(rates[kRead]) / kGiga);
    for (const Work work : {kAmax, kEncode, kDecode, kMeasure}) {
      const auto [least, largest] = std::ranges::minmax(shares[work]);
      fmt::print(
          ", \"{0}_gb_per_s\": {1:.1f}, \"{0}_share\": {2:.3f}, "
          "\"{0}_share_min\": {3:.3f}, "
          "\"{0}_share_max\": {4:.3f}",
          kWorkNames[work], Median(rates[work]) / kGiga, Median(shares[work]), least, largest);
    }
    fmt::print("}}\n");
    std::fflush(stdout);
  }

  int64_t rows_;
  int64_t cols_;
  std::vector<uint16_t> values_;
  float amax_;
  ThreadPool pool_;
  std::vector<Scratch> scratch_;
};

// All quantized formats, or those that are named. None where a name is unknown.
std::vector<WeightFormat> FormatsOf(std::span<char*> names) {
  std::vector<WeightFormat> formats;
  for (const WeightFormat format : AllWeightFormats()) {
    if (names.empty() && format != WeightFormat::kBf16) {
      formats.push_back(format);
    }
  }
  for (const char* name : names) {
    const std::optional<WeightFormat> format = ParseWeightFormat(name);
    if (!format.has_value() || *format == WeightFormat::kBf16) {
      return {};
    }
    formats.push_back(*format);
  }
  return formats;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) {
  const int threads = argc > 1 ? std::atoi(argv[1]) : 2;
  const int rounds = argc > 2 ? std::atoi(argv[2]) : 7;
  const int64_t source_mib = argc > 3 ? std::atoi(argv[3]) : 256;
  const int64_t cols = argc > 4 ? std::atoi(argv[4]) : 4096;
  const std::span<char*> names(argv, static_cast<size_t>(argc));
  const auto formats = octavo::FormatsOf(names.subspan(std::min<size_t>(names.size(), 5)));
  if (threads < 1 || rounds < 1 || source_mib < 1 || cols < 32 || cols % 32 != 0 ||
      formats.empty()) {
    fmt::print(stderr,
               "usage: formats_bench [threads] [rounds] [MiB of "
               "source] [cols] [format]...\n");
    return 2;
  }
  const int64_t row_bytes = 2 * octavo::kBandRows * cols;
  const int64_t bands = std::max<int64_t>(source_mib * 1024 * 1024 / row_bytes, threads);
  octavo::Bench(bands * octavo::kBandRows, cols, threads).Run(formats, rounds);
  return 0;
}
