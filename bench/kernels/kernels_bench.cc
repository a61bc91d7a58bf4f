// Kernels in the order of a Qwen3 forward pass on the Qwen3-0.6B shape with random weights: decode
// and prefill, with shares of the read bandwidth and of the multiply-add peak that are measured in
// the same run. One JSON object a line.
//
//   kernels_bench [isa] [threads] [layers]

#include <fmt/core.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "octavo/base/random.h"
#include "octavo/formats/bf16.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/machine_peaks.h"

namespace octavo {
namespace {

constexpr int64_t kHidden = 1024;
constexpr int64_t kHeads = 16;
constexpr int64_t kKvHeads = 8;
constexpr int64_t kHeadDim = 128;
constexpr int64_t kMlp = 3072;
constexpr int64_t kVocab = 151936;
constexpr int64_t kMaxTokens = 512;
constexpr int64_t kMaxContext = 4096;

double Now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "kernels_bench: {}\n", status.message());
    std::exit(1);
  }
}

// Values uniform in +-0.02, repeated every few thousand: kernels do not look at them.
PackedMatrix RandomWeight(const Backend& backend, WeightFormat format, int64_t rows, int64_t cols) {
  const auto num = static_cast<size_t>(rows * cols);
  std::vector<std::byte> codes(format == WeightFormat::kBf16 ? 2 * num : num);
  std::vector<uint16_t> pattern(4099);
  for (size_t i = 0; i < pattern.size(); ++i) {
    const float value = 0.04F * (UniformFloat(1, i) - 0.5F);
    pattern[i] = format == WeightFormat::kBf16 ? FloatToBf16(value)
                                               : static_cast<uint16_t>(Philox(2, i)[0] & 0x7777U);
  }
  const size_t pattern_bytes = pattern.size() * 2;
  for (size_t at = 0; at < codes.size(); at += pattern_bytes) {
    std::memcpy(codes.data() + at, pattern.data(), std::min(pattern_bytes, codes.size() - at));
  }
  std::vector<float> scales(
      format == WeightFormat::kBf16 ? 0 : static_cast<size_t>((rows + 127) / 128 * (cols / 128)),
      1e-4F);
  PackedMatrix packed;
  Must(backend.Pack({format, rows, cols, codes, scales}, &packed));
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

class Bench {
 public:
  Bench(Backend* backend, WeightFormat format, int64_t num_layers)
      : backend_(*backend), layers_(static_cast<size_t>(num_layers)) {
    Must(backend_.Reserve({kMaxTokens, kMaxContext, kMlp, kHeads, kHeadDim}));
    constexpr auto kBf16 = WeightFormat::kBf16;
    num_pages_ = 64 * kMaxContext / kPageTokens / 4;
    const int64_t page_bytes = backend_.KvPageBytes(kKvHeads, kHeadDim);
    for (Layer& layer : layers_) {
      layer.norm1 = RandomWeight(backend_, kBf16, 1, kHidden);
      layer.q = RandomWeight(backend_, format, kHeads * kHeadDim, kHidden);
      layer.k = RandomWeight(backend_, format, kKvHeads * kHeadDim, kHidden);
      layer.v = RandomWeight(backend_, format, kKvHeads * kHeadDim, kHidden);
      layer.q_norm = RandomWeight(backend_, kBf16, 1, kHeadDim);
      layer.k_norm = RandomWeight(backend_, kBf16, 1, kHeadDim);
      layer.o = RandomWeight(backend_, format, kHidden, kHeads * kHeadDim);
      layer.norm2 = RandomWeight(backend_, kBf16, 1, kHidden);
      layer.gate = RandomWeight(backend_, format, kMlp, kHidden);
      layer.up = RandomWeight(backend_, format, kMlp, kHidden);
      layer.down = RandomWeight(backend_, format, kHidden, kMlp);
      for (const PackedMatrix* m :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        weights_.push_back(m->codes.bytes());
      }
    }
    // One layer's pages serve all layers: attention of a layer then reads them from memory again
    // when they exceed the caches.
    Result<Buffer> kv = Buffer::AllocateHost(num_pages_ * page_bytes);
    Must(kv.error());
    kv_ = std::move(kv).value();
    head_ = RandomWeight(backend_, kBf16, kVocab, kHidden);
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

  // `num_seqs` sequences of `rows` tokens each on top of `cached`. Seconds of one forward pass with
  // logits of the last token of each.
  double Forward(int64_t num_seqs, int64_t rows, int64_t cached, double (&phase)[kNumPhases]) {
    std::vector<int32_t> table;
    const int64_t seq_pages = (cached + rows + kPageTokens - 1) / kPageTokens;
    for (int64_t i = 0; i < num_seqs * seq_pages; ++i) {
      table.push_back(static_cast<int32_t>(i % num_pages_));
    }
    std::vector<Segment> segments;
    std::vector<int32_t> positions;
    std::vector<int32_t> last;
    for (int64_t s = 0; s < num_seqs; ++s) {
      segments.push_back({s * rows, rows, cached,
                          std::span<const int32_t>(table).subspan(
                              static_cast<size_t>(s * seq_pages), static_cast<size_t>(seq_pages))});
      for (int64_t i = 0; i < rows; ++i) {
        positions.push_back(static_cast<int32_t>(cached + i));
      }
      last.push_back(static_cast<int32_t>((s + 1) * rows - 1));
    }
    const int64_t t = num_seqs * rows;
    const KvLayer kv{kv_.data(), backend_.KvPageBytes(kKvHeads, kHeadDim), num_pages_, kKvHeads,
                     kHeadDim};
    const double start = Now();
    double mark = start;
    const auto lap = [&](Phase p) {
      const double now = Now();
      phase[p] += now - mark;
      mark = now;
    };
    for (const Layer& layer : layers_) {
      Must(backend_.RmsNorm({h_.View(t), &layer.norm1, 1e-6F, a_.View(t)}));
      lap(kOther);
      const LinearPart qkv[] = {
          {&layer.q, q_.View(t)}, {&layer.k, k_.View(t)}, {&layer.v, v_.View(t)}};
      Must(backend_.Linear({a_.View(t), qkv}));
      lap(kLinear);
      Must(backend_.RmsNorm({q_.Heads(t), &layer.q_norm, 1e-6F, q_.Heads(t)}));
      Must(backend_.RmsNorm({k_.Heads(t), &layer.k_norm, 1e-6F, k_.Heads(t)}));
      Must(backend_.Rope({q_.View(t), kHeads, kHeadDim, positions, cos_, sin_}));
      Must(backend_.Rope({k_.View(t), kKvHeads, kHeadDim, positions, cos_, sin_}));
      Must(backend_.KvStore({k_.View(t), v_.View(t), segments, kv}));
      lap(kOther);
      Must(backend_.Attention({q_.View(t), q2_.View(t), segments, kv, kHeads, 0.088F}));
      lap(kAttention);
      const LinearPart o[] = {{&layer.o, a_.View(t)}};
      Must(backend_.Linear({q2_.View(t), o}));
      lap(kLinear);
      Must(backend_.Add({h_.View(t), a_.View(t)}));
      Must(backend_.RmsNorm({h_.View(t), &layer.norm2, 1e-6F, a_.View(t)}));
      lap(kOther);
      const LinearPart gate_up[] = {{&layer.gate, gate_.View(t)}, {&layer.up, up_.View(t)}};
      Must(backend_.Linear({a_.View(t), gate_up}));
      lap(kLinear);
      Must(backend_.SiluMul({gate_.View(t), up_.View(t), gate_.View(t)}));
      lap(kOther);
      const LinearPart down[] = {{&layer.down, a_.View(t)}};
      Must(backend_.Linear({gate_.View(t), down}));
      lap(kLinear);
      Must(backend_.Add({h_.View(t), a_.View(t)}));
      lap(kOther);
    }
    Must(backend_.GatherRows({h_.View(t), last, a_.View(num_seqs)}));
    const Activations logits{DType::kF32, reinterpret_cast<std::byte*>(logits_.data()), num_seqs,
                             kVocab, kVocab};
    const LinearPart head[] = {{&head_, logits}};
    Must(backend_.Linear({a_.View(num_seqs), head}));
    lap(kLinear);
    std::vector<float> max(static_cast<size_t>(num_seqs));
    std::vector<float> sum(max.size());
    Must(backend_.SoftmaxStats({logits, max, sum}));
    lap(kOther);
    return Now() - start;
  }

  double LinearFlops(int64_t tokens, int64_t logit_rows) const {
    double macs = 0;
    for (const Layer& layer : layers_) {
      for (const PackedMatrix* m :
           {&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down}) {
        macs += static_cast<double>(m->rows * m->cols * tokens);
      }
    }
    return 2.0 * (macs + static_cast<double>(kVocab * kHidden * logit_rows));
  }

 private:
  Backend& backend_;
  std::vector<Layer> layers_;
  PackedMatrix head_;
  Buffer kv_;
  int64_t num_pages_ = 0;
  std::vector<std::span<const std::byte>> weights_;
  std::vector<float> logits_, cos_, sin_;
  Rows h_{kHidden}, a_{kHidden}, q_{kHeads * kHeadDim}, q2_{kHeads * kHeadDim};
  Rows k_{kKvHeads * kHeadDim}, v_{kKvHeads * kHeadDim}, gate_{kMlp}, up_{kMlp};
};

struct Case {
  const char* name;
  int64_t num_seqs, rows, cached;
  int repeats;
};

int Main(int argc, char** argv) {
  const Isa isa = argc > 1 ? ParseIsa(argv[1]).value_or(BestIsa()) : BestIsa();
  const int threads = argc > 2 ? std::atoi(argv[2]) : NumUsableThreads();
  const int64_t num_layers = argc > 3 ? std::atoi(argv[3]) : 28;
  for (const WeightFormat format : {WeightFormat::kBf16, WeightFormat::kFp8}) {
    Result<std::unique_ptr<Backend>> made = MakeCpuBackend(isa, threads);
    Must(made.error());
    Backend& backend = **made;
    Bench bench(&backend, format, num_layers);
    for (const Case& c : {Case{"decode 1", 1, 1, 64, 9},
                          {"decode 8", 8, 1, 64, 5},
                          {"decode 64", 64, 1, 64, 3},
                          {"decode 1 at 3000", 1, 1, 3000, 5},
                          {"decode 64 at 3000", 64, 1, 500, 3},
                          {"prefill 512", 1, 512, 0, 3}}) {
      std::vector<double> seconds;
      double phase[kNumPhases] = {};
      std::vector<double> bandwidth;
      std::vector<double> peaks;
      for (int i = 0; i < c.repeats; ++i) {
        double laps[kNumPhases] = {};
        bandwidth.push_back(MeasureReadBandwidth(bench.weights(), &backend.pool()));
        peaks.push_back(MeasureMatrixPeak(isa, &backend.pool(), 0.05).value());
        const double s = bench.Forward(c.num_seqs, c.rows, c.cached, laps);
        if (seconds.empty() || s < *std::min_element(seconds.begin(), seconds.end())) {
          std::copy(laps, laps + kNumPhases, phase);
        }
        seconds.push_back(s);
      }
      std::sort(seconds.begin(), seconds.end());
      std::sort(bandwidth.begin(), bandwidth.end());
      std::sort(peaks.begin(), peaks.end());
      const double median = seconds[seconds.size() / 2];
      const double peak = peaks[peaks.size() / 2];
      const double read = bandwidth[bandwidth.size() / 2];
      const auto tokens = static_cast<double>(c.num_seqs * c.rows);
      const double flops = bench.LinearFlops(c.num_seqs * c.rows, c.num_seqs);
      fmt::print(
          "{{\"backend\": \"{}\", \"threads\": {}, \"format\": \"{}\", \"case\": \"{}\", "
          "\"tok_s\": {:.1f}, \"best_tok_s\": {:.1f}, \"ms\": {:.2f}, \"linear_ms\": {:.2f}, "
          "\"attention_ms\": {:.2f}, \"other_ms\": {:.2f}, \"weight_gb_s\": {:.2f}, "
          "\"read_gb_s\": {:.2f}, \"read_share\": {:.3f}, \"tflop_s\": {:.3f}, "
          "\"peak_tflop_s\": {:.3f}, \"peak_share\": {:.3f}}}\n",
          backend.name(), threads, WeightFormatName(format), c.name, tokens / median,
          tokens / seconds[0], median * 1e3, phase[kLinear] * 1e3, phase[kAttention] * 1e3,
          phase[kOther] * 1e3, static_cast<double>(bench.WeightBytes()) / median / 1e9, read / 1e9,
          static_cast<double>(bench.WeightBytes()) / median / read, flops / median / 1e12,
          peak / 1e12, flops / median / peak);
      std::fflush(stdout);
    }
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main(argc, argv); }
