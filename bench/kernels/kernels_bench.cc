// Kernels in the order of a Qwen3 forward pass on the shape of Qwen3-0.6B or 1.7B with random
// weights: decode and prefill, with shares of the read bandwidth and of the multiply-add peak that
// are measured in the same run. One JSON object a line.
//
//   kernels_bench [isa] [threads] [layers] [0.6b | 1.7b] [format | all] [case]
//
// `case` is a part of a case's name.

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/machine_peaks.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

constexpr int64_t kHeads = 16;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kVocab = 151936;
constexpr int64_t kMaxTokens = 512;
constexpr int64_t kMaxContext = 4096;

struct ModelShape {
  int64_t hidden = 1024;
  int64_t mlp = 3072;
};

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "kernels_bench: {}\n", status.message());
    std::exit(1);
  }
}

InputForm InputOf(WeightFormat format) {
  switch (format) {
    case WeightFormat::kBf16:
      return InputForm::kBf16;
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return InputForm::kFp8Group;
    case WeightFormat::kMxfp8:
      return InputForm::kMxfp8;
    case WeightFormat::kNvfp4:
      return InputForm::kNvfp4Token;
    default:
      return InputForm::kFp8Token;
  }
}

// Values of modest size, repeated every few thousand: kernels do not look at them.
PackedMatrix RandomWeight(const Backend& backend, WeightFormat format, int64_t rows, int64_t cols) {
  const bool is_bf16 = format == WeightFormat::kBf16;
  std::vector<std::byte> codes(
      static_cast<size_t>(is_bf16 ? 2 * rows * cols : CodeBytes(format, rows, cols)));
  std::vector<uint16_t> pattern(4099);
  for (size_t i = 0; i < pattern.size(); ++i) {
    const float value = 0.04F * (UniformFloat(1, i) - 0.5F);
    pattern[i] = is_bf16 ? FloatToBf16(value) : static_cast<uint16_t>(Philox(2, i)[0] & 0x7777U);
  }
  const size_t pattern_bytes = pattern.size() * 2;
  for (size_t at = 0; at < codes.size(); at += pattern_bytes) {
    std::memcpy(codes.data() + at, pattern.data(), std::min(pattern_bytes, codes.size() - at));
  }
  const bool has_byte_scales = format == WeightFormat::kMxfp8 || format == WeightFormat::kNvfp4;
  std::vector<std::byte> scales(
      static_cast<size_t>(is_bf16 ? 0 : ScaleBytes(format, rows, cols)),
      std::byte{format == WeightFormat::kMxfp8 ? uint8_t{115} : uint8_t{0x38}});
  if (!has_byte_scales && !scales.empty()) {
    auto* floats = reinterpret_cast<float*>(scales.data());
    std::fill_n(floats, scales.size() / sizeof(float), 1e-4F);
  }
  PackedMatrix packed;
  CanonicalMatrix canonical;
  canonical.format = format;
  canonical.rows = rows;
  canonical.cols = cols;
  canonical.codes = codes;
  canonical.scales = scales;
  canonical.tensor_scale = SharesScale(format) ? 1e-3F : 1.0F;
  canonical.input = InputOf(format);
  Must(backend.Pack(canonical, &packed));
  return packed;
}

struct Layer {
  PackedMatrix norm1, q, k, v, q_norm, k_norm, o, norm2, gate, up, down;
  Buffer kv;
};

struct Rows {
  std::vector<uint16_t> memory;
  int64_t cols = 0;

  explicit Rows(int64_t width) : memory(static_cast<size_t>(kMaxTokens * width), 0x3C00) {
    cols = width;
  }
  Activations View(int64_t rows) {
    return {DType::kBf16, reinterpret_cast<std::byte*>(memory.data()), rows, cols, cols};
  }
  // Heads as rows.
  Activations Heads(int64_t rows) {
    return {DType::kBf16, reinterpret_cast<std::byte*>(memory.data()), rows * cols / kHeadDim,
            kHeadDim, kHeadDim};
  }
};

enum Phase { kLinear, kAttention, kOther, kNumPhases };

// Seconds of one forward pass, by phase.
class Times {
 public:
  // What passed since the last lap goes to `phase`.
  void Lap(Phase phase) {
    const double now = Now();
    seconds_[phase] += now - mark_;
    mark_ = now;
  }
  double Of(Phase phase) const { return seconds_[phase]; }
  double Total() const { return seconds_[kLinear] + seconds_[kAttention] + seconds_[kOther]; }

 private:
  double seconds_[kNumPhases] = {};
  double mark_ = Now();
};

// `num_seqs` sequences of `rows` tokens each on top of `cached`, of which groups of `group_size`
// share the pages of the first `shared`.
struct Case {
  const char* name;
  int64_t num_seqs, rows, cached;
  int repeats;
  int64_t group_size = 1;
  int64_t shared = 0;
};
constexpr Case kCases[] = {{"decode 1", 1, 1, 64, 25},
                           {"decode 8", 8, 1, 64, 9},
                           {"decode 64", 64, 1, 64, 5},
                           {"decode 1 at 3000", 1, 1, 3000, 9},
                           {"decode 64 at 512", 64, 1, 512, 3},
                           {"decode 64 at 512, groups of 8 share 128", 64, 1, 512, 3, 8, 128},
                           {"decode 64 at 512, groups of 8 share 256", 64, 1, 512, 3, 8, 256},
                           {"decode 64 at 512, groups of 8 share 512", 64, 1, 512, 3, 8, 512},
                           {"prefill 512", 1, 512, 0, 5}};

class Bench {
 public:
  Bench(Backend* backend, WeightFormat format, int64_t num_layers, const ModelShape& shape)
      : backend_(*backend), shape_(shape), layers_(static_cast<size_t>(num_layers)) {
    const int64_t hidden = shape.hidden;
    const int64_t mlp = shape.mlp;
    Must(backend_.Reserve({.max_tokens = kMaxTokens,
                           .max_context = kMaxContext,
                           .max_width = std::max(mlp, kHeads * kHeadDim),
                           .max_heads = kHeads,
                           .max_head_dim = kHeadDim}));
    constexpr auto kBf16 = WeightFormat::kBf16;
    num_pages_ = 64 * kMaxContext / kPageTokens / 4;
    const int64_t page_bytes = backend_.KvPageBytes({kKvHeads, kHeadDim});
    for (Layer& layer : layers_) {
      layer.norm1 = RandomWeight(backend_, kBf16, 1, hidden);
      layer.q = RandomWeight(backend_, format, kHeads * kHeadDim, hidden);
      layer.k = RandomWeight(backend_, format, kKvHeads * kHeadDim, hidden);
      layer.v = RandomWeight(backend_, format, kKvHeads * kHeadDim, hidden);
      layer.q_norm = RandomWeight(backend_, kBf16, 1, kHeadDim);
      layer.k_norm = RandomWeight(backend_, kBf16, 1, kHeadDim);
      layer.o = RandomWeight(backend_, format, hidden, kHeads * kHeadDim);
      layer.norm2 = RandomWeight(backend_, kBf16, 1, hidden);
      layer.gate = RandomWeight(backend_, format, mlp, hidden);
      layer.up = RandomWeight(backend_, format, mlp, hidden);
      layer.down = RandomWeight(backend_, format, hidden, mlp);
      for (const PackedMatrix* m :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        weights_.push_back(m->codes.bytes());
        weights_.push_back(m->scales.bytes());
      }
    }
    // One layer's pages serve all layers: attention of a layer then reads them from memory again
    // when they exceed the caches.
    Result<Buffer> kv = Buffer::AllocateHost(num_pages_ * page_bytes);
    Must(kv.error());
    kv_ = std::move(kv).value();
    head_ = RandomWeight(backend_, kBf16, kVocab, hidden);
    weights_.push_back(head_.codes.bytes());
    logits_.resize(static_cast<size_t>(64 * kVocab));
    cos_.assign(static_cast<size_t>(kMaxContext * kHeadDim / 2), 0.6F);
    sin_.assign(cos_.size(), 0.8F);
  }

  std::span<const std::span<const std::byte>> weights() const { return weights_; }
  int64_t WeightBytes() const {
    int64_t total = 0;
    for (const auto& w : weights_) {
      total += static_cast<int64_t>(w.size());
    }
    return total;
  }

  // One forward pass with logits of the last token of each sequence.
  Times Forward(const Case& c) {
    const Batch batch = MakeBatch(c);
    const int64_t num_seqs = c.num_seqs;
    Times times;
    for (const Layer& layer : layers_) {
      Attend(layer, batch, &times);
      Feed(layer, batch, &times);
    }
    Must(backend_.GatherRows({h_.View(batch.num_rows), batch.last, a_.View(num_seqs)}));
    const Activations logits{DType::kF32, reinterpret_cast<std::byte*>(logits_.data()), num_seqs,
                             kVocab, kVocab};
    const LinearPart head[] = {{&head_, logits}};
    Must(backend_.Linear({a_.View(num_seqs), head}));
    times.Lap(kLinear);
    std::vector<float> max(static_cast<size_t>(num_seqs));
    std::vector<float> sum(max.size());
    Must(backend_.SoftmaxStats({logits, max, sum}));
    times.Lap(kOther);
    return times;
  }

  double LinearFlops(int64_t tokens, int64_t logit_rows) const {
    double macs = 0;
    for (const Layer& layer : layers_) {
      for (const PackedMatrix* m :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        macs += static_cast<double>(m->rows * m->cols * tokens);
      }
    }
    return 2.0 * (macs + static_cast<double>(kVocab * shape_.hidden * logit_rows));
  }

 private:
  struct Batch {
    int64_t num_rows = 0;
    std::vector<int32_t> table;
    std::vector<Segment> segments;
    std::vector<int32_t> positions;
    std::vector<int32_t> last;
  };

  Batch MakeBatch(const Case& c) const {
    Batch batch;
    batch.num_rows = c.num_seqs * c.rows;
    const int64_t seq_pages = (c.cached + c.rows + kPageTokens - 1) / kPageTokens;
    const int64_t shared_pages = c.shared / kPageTokens;
    for (int64_t s = 0; s < c.num_seqs; ++s) {
      for (int64_t i = 0; i < seq_pages; ++i) {
        const int64_t owner = i < shared_pages ? s / c.group_size * c.group_size : s;
        batch.table.push_back(static_cast<int32_t>((owner * seq_pages + i) % num_pages_));
      }
    }
    for (int64_t s = 0; s < c.num_seqs; ++s) {
      const auto pages =
          std::span<const int32_t>(batch.table)
              .subspan(static_cast<size_t>(s * seq_pages), static_cast<size_t>(seq_pages));
      batch.segments.push_back({s * c.rows, c.rows, c.cached, pages});
      for (int64_t i = 0; i < c.rows; ++i) {
        batch.positions.push_back(static_cast<int32_t>(c.cached + i));
      }
      batch.last.push_back(static_cast<int32_t>((s + 1) * c.rows - 1));
    }
    return batch;
  }

  void Attend(const Layer& layer, const Batch& batch, Times* times) {
    const int64_t t = batch.num_rows;
    const KvLayer kv{
        kv_.data(), backend_.KvPageBytes({kKvHeads, kHeadDim}), num_pages_, {kKvHeads, kHeadDim}};
    const LinearPart qkv[] = {
        {&layer.q, q_.View(t)}, {&layer.k, k_.View(t)}, {&layer.v, v_.View(t)}};
    Must(backend_.Linear({.x = a_.View(t),
                          .parts = qkv,
                          .norm = RmsNormArgs{h_.View(t), &layer.norm1, 1e-6F, a_.View(t)}}));
    times->Lap(kLinear);
    Must(backend_.RmsNorm({q_.Heads(t), &layer.q_norm, 1e-6F, q_.Heads(t)}));
    Must(backend_.RmsNorm({k_.Heads(t), &layer.k_norm, 1e-6F, k_.Heads(t)}));
    Must(backend_.Rope({q_.View(t), kHeads, kHeadDim, batch.positions, cos_, sin_}));
    Must(backend_.Rope({k_.View(t), kKvHeads, kHeadDim, batch.positions, cos_, sin_}));
    Must(backend_.KvStore({k_.View(t), v_.View(t), batch.segments, kv}));
    times->Lap(kOther);
    Must(backend_.Attention({q_.View(t), q2_.View(t), batch.segments, kv, kHeads, 0.088F}));
    times->Lap(kAttention);
    const LinearPart o[] = {{&layer.o, a_.View(t)}};
    Must(backend_.Linear({q2_.View(t), o}));
    times->Lap(kLinear);
    Must(backend_.Add({h_.View(t), a_.View(t)}));
    times->Lap(kOther);
  }

  void Feed(const Layer& layer, const Batch& batch, Times* times) {
    const int64_t t = batch.num_rows;
    const LinearPart gate_up[] = {{&layer.gate, gate_.View(t)}, {&layer.up, up_.View(t)}};
    Must(backend_.Linear({.x = a_.View(t),
                          .parts = gate_up,
                          .norm = RmsNormArgs{h_.View(t), &layer.norm2, 1e-6F, a_.View(t)}}));
    times->Lap(kLinear);
    const LinearPart down[] = {{&layer.down, a_.View(t)}};
    Must(backend_.Linear({.x = gate_.View(t),
                          .parts = down,
                          .silu_mul = SiluMulArgs{gate_.View(t), up_.View(t), gate_.View(t)}}));
    times->Lap(kLinear);
    Must(backend_.Add({h_.View(t), a_.View(t)}));
    times->Lap(kOther);
  }

  Backend& backend_;
  ModelShape shape_;
  std::vector<Layer> layers_;
  PackedMatrix head_;
  Buffer kv_;
  int64_t num_pages_ = 0;
  std::vector<std::span<const std::byte>> weights_;
  std::vector<float> logits_, cos_, sin_;
  Rows h_{shape_.hidden}, a_{shape_.hidden}, q_{kHeads * kHeadDim}, q2_{kHeads * kHeadDim};
  Rows k_{kKvHeads * kHeadDim}, v_{kKvHeads * kHeadDim}, gate_{shape_.mlp}, up_{shape_.mlp};
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// `rates` of rounds over the limits measured before and after each, which are one more.
std::vector<double> Shares(const std::vector<double>& rates, const std::vector<double>& limits) {
  std::vector<double> shares;
  for (size_t i = 0; i < rates.size(); ++i) {
    shares.push_back(rates[i] / (0.5 * (limits[i] + limits[i + 1])));
  }
  std::sort(shares.begin(), shares.end());
  return shares;
}

// Limits and work take turns, so that a busy neighbour slows both: each round has its share, of
// which the median and the quartiles are printed.
void RunCase(const Case& c, Isa isa, WeightFormat format, Backend* backend, Bench* bench) {
  const auto bytes = static_cast<double>(bench->WeightBytes());
  const double flops = bench->LinearFlops(c.num_seqs * c.rows, c.num_seqs);
  std::vector<Times> runs;
  std::vector<double> reads, peaks, bytes_per_s, flops_per_s, seconds;
  for (int i = 0; i <= c.repeats; ++i) {
    const Result<double> peak = MeasureMatrixPeak(isa, &backend->pool(), 0.05);
    Must(peak.error());
    peaks.push_back(*peak);
    reads.push_back(MeasureReadBandwidth(bench->weights(), &backend->pool()));
    if (i < c.repeats) {
      runs.push_back(bench->Forward(c));
      seconds.push_back(runs.back().Total());
      bytes_per_s.push_back(bytes / seconds.back());
      flops_per_s.push_back(flops / seconds.back());
    }
  }
  const double median = Median(seconds);
  const auto is_median = [&](const Times& t) { return t.Total() == median; };
  const Times& times = *std::find_if(runs.begin(), runs.end(), is_median);
  const std::vector<double> read_shares = Shares(bytes_per_s, reads);
  const std::vector<double> peak_shares = Shares(flops_per_s, peaks);
  const size_t n = runs.size();
  fmt::print(
      "{{\"backend\": \"{}\", \"threads\": {}, \"format\": \"{}\", \"case\": \"{}\", "
      "\"tok_s\": {:.1f}, \"ms\": {:.2f}, \"linear_ms\": {:.2f}, \"attention_ms\": {:.2f}, "
      "\"other_ms\": {:.2f}, \"rounds\": {}, \"weight_gb_s\": {:.2f}, \"read_gb_s\": {:.2f}, "
      "\"read_share\": {:.3f}, \"read_share_quartiles\": [{:.3f}, {:.3f}], \"tflop_s\": {:.3f}, "
      "\"peak_tflop_s\": {:.3f}, \"peak_share\": {:.3f}, \"peak_share_quartiles\": "
      "[{:.3f}, {:.3f}]}}\n",
      backend->name(), backend->pool().num_threads(), WeightFormatName(format), c.name,
      static_cast<double>(c.num_seqs * c.rows) / median, median * 1e3, times.Of(kLinear) * 1e3,
      times.Of(kAttention) * 1e3, times.Of(kOther) * 1e3, n, bytes / median / 1e9,
      Median(reads) / 1e9, read_shares[n / 2], read_shares[n / 4], read_shares[3 * n / 4],
      flops / median / 1e12, Median(peaks) / 1e12, peak_shares[n / 2], peak_shares[n / 4],
      peak_shares[3 * n / 4]);
  std::fflush(stdout);
}

int Main(std::span<char*> args) {
  const Isa isa = args.size() > 1 ? ParseIsa(args[1]).value_or(BestIsa()) : BestIsa();
  const int threads = args.size() > 2 ? std::atoi(args[2]) : NumUsableThreads();
  const int64_t num_layers = args.size() > 3 ? std::atoi(args[3]) : 28;
  const std::string_view shape_name = args.size() > 4 ? args[4] : "0.6b";
  const ModelShape shape = shape_name == "1.7b" ? ModelShape{2048, 6144} : ModelShape{};
  const std::string_view format_name = args.size() > 5 ? args[5] : "all";
  const std::string_view case_name = args.size() > 6 ? args[6] : "";
  for (const WeightFormat format : AllWeightFormats()) {
    if (format_name != "all" && format_name != WeightFormatName(format)) {
      continue;
    }
    Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(isa, threads);
    Must(backend.error());
    Bench bench(backend->get(), format, num_layers, shape);
    for (const Case& c : kCases) {
      if (std::string_view(c.name).find(case_name) != std::string_view::npos) {
        RunCase(c, isa, format, backend->get(), &bench);
      }
    }
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
