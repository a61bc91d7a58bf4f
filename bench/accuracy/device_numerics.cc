// device_numerics [tokens] [outputs] [depth]: by how much our arithmetic differs from that of
// Blackwell and Hopper, and of the quantizers used there (docs/numerics.md). One JSON object a
// line. Nothing is timed and no GPU is needed: tensor cores are those of tensor_core_model.h.
//
// sums: one linear layer of bell-shaped weights, its inputs bell-shaped with channels of different
// widths (log-normal). Ours, the tensor cores' and the exact sums (FP64) of the same codes and
// scales: the RMS of their differences over that of the exact outputs, and the share of outputs
// that differ once they are rounded to BF16, by any number of steps and by more than one.
//
// quantizers: activations as NVFP4 with a global scale per row, group scales and codes against
// those of TransformerEngine's exact-math path, which is ours. FlashInfer's default multiplies with
// rcp.approx, of which PTX promises an error of one unit in the last place at most: here it is
// rounded to nearest, and moved up or down by one unit.

#include <fmt/core.h>

#include <algorithm>
#include <bit>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <numbers>
#include <span>
#include <string_view>
#include <system_error>
#include <vector>

#include "bench/accuracy/tensor_core_model.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/mxfp8.h"
#include "octavo/formats/nvfp4.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/linear_input.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo {
namespace {

constexpr int64_t kQuantizerRows = 1024;

void Must(const Status& status) {
  if (!status.ok()) {
    fmt::print(stderr, "device_numerics: {}\n", status.message());
    std::exit(1);
  }
}

// Box-Muller.
float Normal(uint64_t seed, uint64_t i) {
  const auto words = Philox(seed, i);
  const double u = (words[0] + 1.0) * 0x1p-32;
  return static_cast<float>(std::sqrt(-2.0 * std::log(u)) *
                            std::cos(2.0 * std::numbers::pi * words[1] * 0x1p-32));
}

std::vector<uint16_t> RandomInputs(int64_t rows, int64_t cols) {
  std::vector<uint16_t> values;
  values.reserve(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) {
    const float width = std::exp(Normal(1, static_cast<uint64_t>(i % cols)));
    values.push_back(FloatToBf16(width * Normal(2, static_cast<uint64_t>(i))));
  }
  return values;
}

std::vector<uint16_t> RandomWeights(int64_t rows, int64_t cols) {
  std::vector<uint16_t> values;
  values.reserve(static_cast<size_t>(rows * cols));
  for (int64_t i = 0; i < rows * cols; ++i) {
    values.push_back(FloatToBf16(0.02F * Normal(3, static_cast<uint64_t>(i))));
  }
  return values;
}

std::vector<float> Widen(std::span<const uint16_t> values) {
  std::vector<float> wide(values.size());
  std::ranges::transform(values, wide.begin(), Bf16ToFloat);
  return wide;
}

// --- Sums ---------------------------------------------------------------------------------------

// A row as a tensor core gets it: value = code * scale of its group * factor.
struct Coded {
  std::vector<float> codes;
  std::vector<float> scales;
  float factor = 1.0F;
};

struct Layer {
  WeightFormat format;
  InputForm input;
  int64_t group;        // Elements that share a scale, along the depth.
  int64_t instruction;  // Depth of one instruction of the tensor core.
};
constexpr Layer kLayers[] = {
    {WeightFormat::kFp8, InputForm::kFp8Group, kFp8InputGroup, 32},
    {WeightFormat::kMxfp8, InputForm::kMxfp8, kMxGroupElems, 32},
    {WeightFormat::kNvfp4, InputForm::kNvfp4Token, kNvfp4GroupElems, 64},
};

Coded CodeInput(const Layer& layer, std::span<const float> x) {
  Coded coded;
  coded.codes.resize(x.size());
  coded.scales.assign(x.size() / static_cast<size_t>(layer.group), 1.0F);
  coded.factor = QuantizeLinearInput(layer.input, 1.0F, x, coded.codes, coded.scales);
  if (layer.input == InputForm::kFp8Group) {
    return coded;
  }
  // The values of mxfp8 and nvfp4 are codes times group scales; both divisions are exact.
  const Nvfp4RowScales row = Nvfp4InputScales(layer.input, FiniteAmax(x));
  for (size_t g = 0; g < coded.scales.size(); ++g) {
    const auto at = g * static_cast<size_t>(layer.group);
    const float amax = FiniteAmax(x.subspan(at, static_cast<size_t>(layer.group)));
    coded.scales[g] = layer.input == InputForm::kMxfp8
                          ? E8m0ToFloat(Mxfp8ScaleCode(amax))
                          : E4m3ToFloat(Nvfp4GroupScale(amax, row.group_factor));
    for (size_t k = at; k < at + static_cast<size_t>(layer.group); ++k) {
      coded.codes[k] = coded.scales[g] == 0.0F ? 0.0F : coded.codes[k] / coded.scales[g];
    }
  }
  return coded;
}

// A quantized matrix with its memory.
struct Weights {
  std::vector<uint8_t> codes;
  std::vector<float> scales;  // Words, for alignment.
  CanonicalMatrix canonical;
};

Weights QuantizeWeights(const Layer& layer, std::span<const uint16_t> values, int64_t rows,
                        int64_t cols) {
  Weights weights;
  const auto scale_bytes = static_cast<size_t>(ScaleBytes(layer.format, rows, cols));
  weights.codes.resize(static_cast<size_t>(CodeBytes(layer.format, rows, cols)));
  weights.scales.resize((scale_bytes + sizeof(float) - 1) / sizeof(float));
  const auto scales = std::as_writable_bytes(std::span(weights.scales)).first(scale_bytes);
  const ConstTensorView view = {.dtype = DType::kBf16,
                                .shape = {rows, cols},
                                .data = reinterpret_cast<const std::byte*>(values.data())};
  const float amax = Amax(view);
  Must(Quantize({.format = layer.format,
                 .values = view,
                 .amax = amax,
                 .codes = weights.codes,
                 .scales = scales}));
  weights.canonical = {.format = layer.format,
                       .rows = rows,
                       .cols = cols,
                       .codes = std::as_bytes(std::span(weights.codes)),
                       .scales = scales,
                       .tensor_scale = TensorScale(layer.format, amax),
                       .input = layer.input};
  return weights;
}

Coded CodeWeight(const Layer& layer, const CanonicalMatrix& matrix, int64_t n) {
  const auto* codes = reinterpret_cast<const uint8_t*>(matrix.codes.data());
  const auto* bytes = reinterpret_cast<const uint8_t*>(matrix.scales.data());
  const auto* floats = reinterpret_cast<const float*>(matrix.scales.data());
  const int64_t groups = matrix.cols / layer.group;
  Coded coded;
  coded.factor = matrix.tensor_scale;
  for (int64_t k = 0; k < matrix.cols; ++k) {
    const int64_t i = n * matrix.cols + k;
    coded.codes.push_back(layer.format == WeightFormat::kNvfp4
                              ? E2m1ToFloat(static_cast<uint8_t>(codes[i / 2] >> (i % 2 * 4)))
                              : E4m3ToFloat(codes[i]));
  }
  for (int64_t g = 0; g < groups; ++g) {
    coded.scales.push_back(
        layer.format == WeightFormat::kFp8     ? floats[n / kFp8BlockDim * groups + g]
        : layer.format == WeightFormat::kMxfp8 ? E8m0ToFloat(bytes[n * groups + g])
                                               : E4m3ToFloat(bytes[n * groups + g]));
  }
  return coded;
}

double ExactOutput(const Layer& layer, const Coded& x, const Coded& w) {
  double sum = 0.0;
  for (size_t k = 0; k < x.codes.size(); ++k) {
    const size_t g = k / static_cast<size_t>(layer.group);
    sum += double{x.codes[k]} * w.codes[k] * x.scales[g] * w.scales[g];
  }
  return sum * x.factor * w.factor;
}

// The terms of one instruction that begins at depth `begin`. FP8 has its scales behind the sum.
void FillTerms(const Layer& layer, const Coded& x, const Coded& w, size_t begin,
               std::vector<Term>* terms) {
  terms->clear();
  const auto end = begin + static_cast<size_t>(layer.instruction);
  if (layer.format == WeightFormat::kNvfp4) {
    for (size_t at = begin; at < end; at += kNvfp4GroupElems) {
      const size_t g = at / kNvfp4GroupElems;
      Term term;
      const double scale = double{x.scales[g]} * w.scales[g];
      bool has_product = false;
      for (size_t k = at; k < at + kNvfp4GroupElems; ++k) {
        term.value += double{x.codes[k]} * w.codes[k] * scale;
        has_product = has_product || (x.codes[k] != 0.0F && w.codes[k] != 0.0F);
      }
      if (has_product && scale != 0.0) {
        term.exponent = E4m3Exponent(x.scales[g]) + E4m3Exponent(w.scales[g]);
      }
      terms->push_back(term);
    }
    return;
  }
  for (size_t k = begin; k < end; ++k) {
    const size_t g = k / static_cast<size_t>(layer.group);
    const bool is_mx = layer.format == WeightFormat::kMxfp8;
    const double scale = is_mx ? double{x.scales[g]} * w.scales[g] : 1.0;
    const double value = double{x.codes[k]} * w.codes[k] * scale;
    const int exponent = value == 0.0 ? kZeroExponent
                                      : E4m3Exponent(x.codes[k]) + E4m3Exponent(w.codes[k]) +
                                            (is_mx ? std::ilogb(scale) : 0);
    terms->push_back({value, exponent});
  }
}

float TensorCoreOutput(const Layer& layer, const TensorCore& core, const Coded& x, const Coded& w) {
  std::vector<Term> terms;
  double accumulator = 0.0;
  float promoted = 0.0F;
  for (size_t k = 0; k < x.codes.size(); k += static_cast<size_t>(layer.instruction)) {
    FillTerms(layer, x, w, k, &terms);
    accumulator = AddTerms(core, accumulator, terms);
    const size_t next = k + static_cast<size_t>(layer.instruction);
    if (layer.format == WeightFormat::kFp8 && next % kFp8InputGroup == 0) {
      const size_t g = k / kFp8InputGroup;
      promoted = std::fma(static_cast<float>(accumulator), x.scales[g] * w.scales[g], promoted);
      accumulator = 0.0;
    }
  }
  return layer.format == WeightFormat::kFp8
             ? promoted
             : static_cast<float>(accumulator) * (x.factor * w.factor);
}

// [tokens, outputs], FP32.
std::vector<float> OurOutputs(const CanonicalMatrix& weight, std::span<const uint16_t> x,
                              int64_t tokens) {
  const std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 1);
  PackedMatrix packed;
  Must(backend->Pack(weight, &packed));
  std::vector<uint16_t> in(x.begin(), x.end());
  std::vector<float> out(static_cast<size_t>(tokens * weight.rows));
  const LinearPart part = {.weight = &packed,
                           .y = {.dtype = DType::kF32,
                                 .data = reinterpret_cast<std::byte*>(out.data()),
                                 .rows = tokens,
                                 .cols = weight.rows,
                                 .stride = weight.rows}};
  Must(backend->Linear({.x = {.dtype = DType::kBf16,
                              .data = reinterpret_cast<std::byte*>(in.data()),
                              .rows = tokens,
                              .cols = weight.cols,
                              .stride = weight.cols},
                        .parts = {&part, 1}}));
  return out;
}

// BF16 values in the order of numbers.
int32_t Bf16Step(double value) {
  const uint16_t bits = FloatToBf16(static_cast<float>(value));
  const int32_t magnitude = bits & 0x7FFF;
  return (bits & 0x8000U) != 0 ? -magnitude : magnitude;
}

void PrintGap(WeightFormat format, std::string_view between, std::span<const double> a,
              std::span<const double> b, std::span<const double> exact) {
  double sum_sq = 0.0;
  double sum_sq_exact = 0.0;
  int64_t num_other = 0;
  int64_t num_far = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum_sq += (a[i] - b[i]) * (a[i] - b[i]);
    sum_sq_exact += exact[i] * exact[i];
    const int32_t steps = std::abs(Bf16Step(a[i]) - Bf16Step(b[i]));
    num_other += steps > 0 ? 1 : 0;
    num_far += steps > 1 ? 1 : 0;
  }
  const auto count = static_cast<double>(a.size());
  fmt::print(
      "{{\"measured\": \"sums\", \"format\": \"{}\", \"between\": \"{}\", \"outputs\": {}, "
      "\"relative_rms\": {:.2e}, \"bf16_differ\": {:.2e}, \"bf16_differ_by_steps\": {:.2e}}}\n",
      WeightFormatName(format), between, a.size(), std::sqrt(sum_sq / sum_sq_exact),
      static_cast<double>(num_other) / count, static_cast<double>(num_far) / count);
}

struct LayerShape {
  int64_t tokens;
  int64_t outputs;
  int64_t depth;
};

void MeasureSums(const Layer& layer, const LayerShape& shape, std::span<const uint16_t> inputs,
                 std::span<const uint16_t> matrix) {
  const Weights weights = QuantizeWeights(layer, matrix, shape.outputs, shape.depth);
  const std::vector<float> our_floats = OurOutputs(weights.canonical, inputs, shape.tokens);
  const std::vector<double> ours(our_floats.begin(), our_floats.end());
  const std::vector<float> x = Widen(inputs);
  std::vector<Coded> rows;
  rows.reserve(static_cast<size_t>(shape.outputs));
  for (int64_t n = 0; n < shape.outputs; ++n) {
    rows.push_back(CodeWeight(layer, weights.canonical, n));
  }
  std::vector<double> exact;
  std::vector<double> blackwell;
  std::vector<double> hopper;
  const bool is_fp8 = layer.format == WeightFormat::kFp8;
  for (int64_t t = 0; t < shape.tokens; ++t) {
    const Coded row = CodeInput(layer, std::span(x).subspan(static_cast<size_t>(t * shape.depth),
                                                            static_cast<size_t>(shape.depth)));
    for (const Coded& w : rows) {
      exact.push_back(ExactOutput(layer, row, w));
      blackwell.push_back(TensorCoreOutput(
          layer, layer.format == WeightFormat::kNvfp4 ? kBlackwellFp4 : kBlackwell8, row, w));
      if (is_fp8) {
        hopper.push_back(TensorCoreOutput(layer, kHopperFp8, row, w));
      }
    }
  }
  PrintGap(layer.format, "octavo, exact", ours, exact, exact);
  PrintGap(layer.format, "blackwell, exact", blackwell, exact, exact);
  PrintGap(layer.format, "octavo, blackwell", ours, blackwell, exact);
  if (is_fp8) {
    PrintGap(layer.format, "hopper, exact", hopper, exact, exact);
    PrintGap(layer.format, "octavo, hopper", ours, hopper, exact);
  }
}

// --- Quantizers ---------------------------------------------------------------------------------

// Of a row: A, and G and D of nvfp4.h.
struct RowScales {
  float amax;
  float encode;
  float decode;
};

// How a group of NVFP4 is quantized: its scale, and what of a value is rounded to E2M1.
struct Quantizer {
  const char* name;
  uint8_t (*scale)(float amax, const RowScales& row);
  float (*scaled)(float value, float scale, const RowScales& row);
};

constexpr Quantizer kExactMath = {"transformer engine, exact math",
                                  [](float amax, const RowScales& row) {
                                    return Nvfp4GroupScale(amax, row.encode * (1.0F / 6.0F));
                                  },
                                  [](float value, float scale, const RowScales& row) {
                                    return value * Nvfp4Multiplier(scale, row.decode);
                                  }};

// 1 / v, `ulps` units in the last place away from the nearest float.
template <int kUlps>
float Reciprocal(float v) {
  return std::bit_cast<float>(std::bit_cast<uint32_t>(1.0F / v) + static_cast<uint32_t>(kUlps));
}

template <int kUlps>
constexpr Quantizer FlashInfer(const char* name) {
  return {name,
          [](float amax, const RowScales& row) {
            return FloatToE4m3(row.encode * (amax * Reciprocal<kUlps>(6.0F)));
          },
          [](float value, float scale, const RowScales& row) {
            const float inverse = Reciprocal<kUlps>(scale * Reciprocal<kUlps>(row.encode));
            return scale == 0.0F ? 0.0F : value * inverse;
          }};
}

// Divides throughout.
constexpr Quantizer kModelOpt = {"modelopt",
                                 [](float amax, const RowScales& row) {
                                   return FloatToE4m3(amax / (6.0F * (row.amax / 2688.0F)));
                                 },
                                 [](float value, float scale, const RowScales& row) {
                                   return scale == 0.0F ? 0.0F
                                                        : value / (scale * (row.amax / 2688.0F));
                                 }};

constexpr Quantizer kOthers[] = {
    FlashInfer<0>("flashinfer default, reciprocals to nearest"),
    FlashInfer<1>("flashinfer default, reciprocals a unit up"),
    FlashInfer<-1>("flashinfer default, reciprocals a unit down"),
    kModelOpt,
};

// `x` [rows, depth].
void MeasureQuantizer(const Quantizer& other, int64_t depth, std::span<const float> x) {
  int64_t num_scales = 0;
  int64_t num_codes = 0;
  for (size_t begin = 0; begin < x.size(); begin += static_cast<size_t>(depth)) {
    const auto values = x.subspan(begin, static_cast<size_t>(depth));
    const float row_amax = FiniteAmax(values);
    const RowScales row = {row_amax, Nvfp4EncodeScale(row_amax), Nvfp4TensorScale(row_amax)};
    for (size_t at = 0; at < values.size(); at += kNvfp4GroupElems) {
      const auto group = values.subspan(at, kNvfp4GroupElems);
      const float amax = FiniteAmax(group);
      const float ours = E4m3ToFloat(kExactMath.scale(amax, row));
      const float theirs = E4m3ToFloat(other.scale(amax, row));
      num_scales += ours != theirs ? 1 : 0;
      for (const float value : group) {
        num_codes += FloatToE2m1(kExactMath.scaled(value, ours, row)) !=
                             FloatToE2m1(other.scaled(value, theirs, row))
                         ? 1
                         : 0;
      }
    }
  }
  const auto num_values = static_cast<double>(x.size());
  fmt::print(
      "{{\"measured\": \"quantizers\", \"other\": \"{}\", \"values\": {}, "
      "\"group_scales_differ\": {:.2e}, \"codes_differ\": {:.2e}}}\n",
      other.name, x.size(), static_cast<double>(num_scales) * kNvfp4GroupElems / num_values,
      static_cast<double>(num_codes) / num_values);
}

// An argument of the command line; a matrix of the largest ones has 2^32 values.
struct Argument {
  const char* name;
  int64_t fallback;
  int64_t multiple;
  int64_t max = 65536;
};

int64_t ParseArgument(std::span<char*> args, size_t i, const Argument& argument) {
  if (args.size() <= i) {
    return argument.fallback;
  }
  const std::string_view text = args[i];
  int64_t value = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc() || end != text.data() + text.size() || value < 1 ||
      value > argument.max || value % argument.multiple != 0) {
    Must(InvalidArgument("{}: expected a multiple of {} in 1..{}, got {}", argument.name,
                         argument.multiple, argument.max, text));
  }
  return value;
}

int Main(std::span<char*> args) {
  if (args.size() > 4) {
    Must(InvalidArgument("expected [tokens] [outputs] [depth] and no more, got {}", args[4]));
  }
  const LayerShape shape = {
      .tokens = ParseArgument(args, 1, {.name = "tokens", .fallback = 128, .multiple = 1}),
      .outputs = ParseArgument(args, 2, {.name = "outputs", .fallback = 512, .multiple = 1}),
      .depth =
          ParseArgument(args, 3, {.name = "depth", .fallback = 4096, .multiple = kFp8InputGroup})};
  const std::vector<uint16_t> inputs = RandomInputs(shape.tokens, shape.depth);
  const std::vector<uint16_t> matrix = RandomWeights(shape.outputs, shape.depth);
  for (const Layer& layer : kLayers) {
    MeasureSums(layer, shape, inputs, matrix);
  }
  const std::vector<float> x = Widen(RandomInputs(kQuantizerRows, shape.depth));
  for (const Quantizer& other : kOthers) {
    MeasureQuantizer(other, shape.depth, x);
  }
  return 0;
}

}  // namespace
}  // namespace octavo

int main(int argc, char** argv) { return octavo::Main({argv, static_cast<size_t>(argc)}); }
