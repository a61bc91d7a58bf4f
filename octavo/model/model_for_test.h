#pragma once
// For tests: a model on one backend with the weights of a checkpoint folder or random ones, and a
// KV cache for a few sequences.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <numbers>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// The format and input form of every linear layer, and the KV cache's.
struct TestFormat {
  WeightFormat format = WeightFormat::kBf16;
  InputForm input = InputForm::kBf16;
  DType kv_dtype = DType::kBf16;
  float input_scale = 0.0125F;  // Static forms: inputs are of order 1.
};
inline constexpr TestFormat kTestBf16;
inline constexpr TestFormat kTestFp8 = {.format = WeightFormat::kFp8,
                                        .input = InputForm::kFp8Group};

// Every other format with every form of input but kNvfp4Batch, whose bits depend on the batch.
struct NamedTestFormat {
  const char* name;
  TestFormat format;
};
inline constexpr NamedTestFormat kTestQuantizedFormats[] = {
    {"Fp8WeightOnly", {WeightFormat::kFp8, InputForm::kBf16}},
    {"Fp8Ue8m0", {WeightFormat::kFp8Ue8m0, InputForm::kFp8Group}},
    {"Fp8Ue8m0WeightOnly", {WeightFormat::kFp8Ue8m0, InputForm::kBf16}},
    {"Fp8Channel", {WeightFormat::kFp8Channel, InputForm::kFp8Token}},
    {"Fp8ChannelWeightOnly", {WeightFormat::kFp8Channel, InputForm::kBf16}},
    {"Fp8Tensor", {WeightFormat::kFp8Tensor, InputForm::kFp8Token}},
    {"Fp8TensorStatic", {WeightFormat::kFp8Tensor, InputForm::kFp8Static}},
    {"Fp8TensorWeightOnly", {WeightFormat::kFp8Tensor, InputForm::kBf16}},
    {"Mxfp8", {WeightFormat::kMxfp8, InputForm::kMxfp8}},
    {"Mxfp8WeightOnly", {WeightFormat::kMxfp8, InputForm::kBf16}},
    {"Nvfp4Token", {WeightFormat::kNvfp4, InputForm::kNvfp4Token}},
    {"Nvfp4Pow2", {WeightFormat::kNvfp4, InputForm::kNvfp4Pow2}},
    {"Nvfp4Static", {WeightFormat::kNvfp4, InputForm::kNvfp4Static}},
    {"Nvfp4WeightOnly", {WeightFormat::kNvfp4, InputForm::kBf16}},
};

// How a checkpoint is changed before its weights are packed and its model is built.
struct WeightOptions {
  TestFormat format = {};
  std::string damaged_weight = {};                 // Its first 128x128 block is multiplied by 1.5.
  void (*change_spec)(ModelSpec& spec) = nullptr;  // Not the weight table.
};

inline void ScaleFirstBlock(int64_t cols, std::vector<uint16_t>* values) {
  for (int64_t n = 0; n < kFp8BlockDim; ++n) {
    for (int64_t k = 0; k < kFp8BlockDim; ++k) {
      uint16_t& bits = (*values)[static_cast<size_t>(n * cols + k)];
      bits = FloatToBf16(Bf16ToFloat(bits) * 1.5F);
    }
  }
}

// A matrix in canonical form, with its memory.
struct StoredMatrix {
  std::vector<uint8_t> codes;
  std::vector<float> scales;  // Words, for alignment.
  CanonicalMatrix canonical;
};

inline StoredMatrix StoreMatrix(TestFormat format, std::span<const uint16_t> values, int64_t rows,
                                int64_t cols) {
  StoredMatrix stored;
  stored.canonical = {.format = format.format,
                      .rows = rows,
                      .cols = cols,
                      .codes = {},
                      .scales = {},
                      .input = format.input,
                      .input_scale = format.input_scale};
  if (format.format == WeightFormat::kBf16) {
    stored.codes.resize(values.size_bytes());
    std::ranges::copy(std::as_bytes(values),
                      std::as_writable_bytes(std::span(stored.codes)).begin());
  } else {
    const ConstTensorView view = {.dtype = DType::kBf16,
                                  .shape = {rows, cols},
                                  .data = reinterpret_cast<const std::byte*>(values.data())};
    const auto scale_bytes = static_cast<size_t>(ScaleBytes(format.format, rows, cols));
    stored.codes.resize(static_cast<size_t>(CodeBytes(format.format, rows, cols)));
    stored.scales.resize((scale_bytes + sizeof(float) - 1) / sizeof(float));
    const auto scales = std::as_writable_bytes(std::span(stored.scales)).first(scale_bytes);
    const float amax = Amax(view);
    stored.canonical.tensor_scale = TensorScale(format.format, amax);
    const Status quantized = Quantize({.format = format.format,
                                       .values = view,
                                       .amax = amax,
                                       .codes = stored.codes,
                                       .scales = scales});
    EXPECT_TRUE(quantized.ok()) << quantized.message();
    stored.canonical.scales = scales;
  }
  stored.canonical.codes = std::as_bytes(std::span(stored.codes));
  return stored;
}

// One row of the table from BF16 values, linear layers in `format`.
inline PackedMatrix PackWeight(const WeightSpec& row, std::span<const uint16_t> values,
                               TestFormat format, const Backend& backend) {
  const int64_t cols = row.shape.back();
  const int64_t rows = NumElements(row.shape) / cols;
  const StoredMatrix stored =
      StoreMatrix(IsLinearRole(row.role) ? format : kTestBf16, values, rows, cols);
  PackedMatrix packed;
  const Status status = backend.Pack(stored.canonical, &packed);
  EXPECT_TRUE(status.ok()) << row.name << ": " << status.message();
  return packed;
}

// A router's bias that is stored in F32.
inline PackedMatrix PackF32Vector(std::span<const uint16_t> values) {
  PackedMatrix packed;
  packed.rows = 1;
  packed.cols = static_cast<int64_t>(values.size());
  packed.vector_dtype = DType::kF32;
  packed.codes = Buffer::AllocateHost(packed.cols * int64_t{sizeof(float)}).value();
  std::ranges::transform(values, packed.codes.As<float>().begin(), Bf16ToFloat);
  return packed;
}

// The BF16 values of a stored BF16 or F32 tensor (whose values must be BF16 numbers).
inline std::vector<uint16_t> Bf16Values(const ConstTensorView& view) {
  std::vector<uint16_t> values(static_cast<size_t>(NumElements(view.shape)));
  if (view.dtype == DType::kF32) {
    for (size_t i = 0; i < values.size(); ++i) {
      float value = 0.0F;
      std::memcpy(&value, view.data + i * sizeof(float), sizeof(float));
      values[i] = FloatToBf16(value);
      EXPECT_EQ(Bf16ToFloat(values[i]), value);
    }
  } else {
    std::memcpy(values.data(), view.data, values.size() * sizeof(uint16_t));
  }
  return values;
}

// Normal by Box-Muller from Philox: norms around 1, the embedding N(0, 1), the rest scaled so that
// activations and logits stay of order 1.
inline std::vector<uint16_t> RandomValues(const WeightSpec& row, uint64_t seed) {
  std::vector<uint16_t> values(static_cast<size_t>(NumElements(row.shape)));
  const double fan_in = static_cast<double>(row.shape.back());
  for (size_t i = 0; i < values.size(); ++i) {
    const std::array<uint32_t, 4> words = Philox(seed, i);
    const double u = (words[0] + 1.0) * 0x1p-32;
    const double normal =
        std::sqrt(-2.0 * std::log(u)) * std::cos(2.0 * std::numbers::pi * words[1] * 0x1p-32);
    double value = 1.5 * normal / std::sqrt(fan_in);
    if (row.role == Role::kNorm) {
      value = 1.0 + 0.2 * normal;
    } else if (row.role == Role::kEmbedding) {
      value = normal;
    } else if (row.role == Role::kBias || row.role == Role::kRouterBias) {
      value = 0.3 * normal;
    }
    values[i] = FloatToBf16(static_cast<float>(value));
  }
  return values;
}

// Two layers of every architecture (DeepSeek: three, of which the first `num_dense` are dense, and
// an MTP layer), whose sizes are multiples of nothing in particular.
inline ModelSpec RandomSpec(const std::string& architecture, const std::string& prefix = "model.",
                            int64_t num_dense = 1) {
  HfConfig config;
  config.architecture = architecture;
  config.hidden_size = 96;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 24;
  config.intermediate_size = 160;
  config.vocab_size = 101;
  config.max_position_embeddings = 1024;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000.0;
  if (architecture == "Qwen3MoeForCausalLM") {
    config.moe.num_experts = 7;
    config.moe.num_experts_per_tok = 3;
    config.moe.moe_intermediate_size = 32;
    config.moe.norm_topk_prob = true;
  }
  if (architecture == "DeepseekV3ForCausalLM") {
    config.num_layers = 3;
    config.num_mtp_layers = 1;
    config.num_kv_heads = config.num_heads;
    config.mla = {.q_lora_rank = 64,
                  .kv_lora_rank = 64,
                  .qk_nope_head_dim = 20,
                  .qk_rope_head_dim = 12,
                  .v_head_dim = 24,
                  .rope_interleave = {}};
    config.moe.num_experts = 8;
    config.moe.num_experts_per_tok = 3;
    config.moe.moe_intermediate_size = 32;
    config.moe.first_k_dense_replace = num_dense;
    config.moe.n_group = 4;
    config.moe.topk_group = 2;
    config.moe.n_shared_experts = 1;
    config.moe.routed_scaling_factor = 2.5;
  }
  Result<ModelSpec> spec = MakeModelSpec(config, prefix);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return *spec;
}

// One thread.
class ModelRunner {
 public:
  static constexpr int64_t kMaxTokens = 256;  // Of a batch and of a sequence.
  static constexpr int kNumSequences = 4;

  // The weights of a BF16 checkpoint folder.
  ModelRunner(std::unique_ptr<Backend> backend, const std::string& folder,
              const WeightOptions& options)
      : backend_(std::move(backend)), kv_dtype_(options.format.kv_dtype) {
    Result<Checkpoint> checkpoint = Checkpoint::Open(folder);
    EXPECT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    Result<ModelSpec> spec = MakeCheckpointSpec(*checkpoint);
    EXPECT_TRUE(spec.has_value()) << spec.error().message();
    spec_ = *spec;
    if (options.change_spec != nullptr) {
      options.change_spec(spec_);
    }
    for (const WeightSpec& row : spec_.weights) {
      const StoredTensor* stored = checkpoint->Find(row.name);
      if (stored == nullptr && row.is_mtp) {
        weights_.matrices.emplace_back();
        continue;
      }
      EXPECT_NE(stored, nullptr) << row.name;
      std::vector<uint16_t> values = Bf16Values(stored->view);
      if (row.name == options.damaged_weight) {
        ScaleFirstBlock(row.shape.back(), &values);
      }
      weights_.matrices.push_back(stored->view.dtype == DType::kF32
                                      ? PackF32Vector(values)
                                      : PackWeight(row, values, options.format, *backend_));
    }
    Build();
  }

  // Random weights, the same for the same seed.
  ModelRunner(std::unique_ptr<Backend> backend, const ModelSpec& spec, uint64_t seed,
              TestFormat format)
      : backend_(std::move(backend)), kv_dtype_(format.kv_dtype), spec_(spec) {
    for (size_t i = 0; i < spec_.weights.size(); ++i) {
      const WeightSpec& row = spec_.weights[i];
      weights_.matrices.push_back(
          PackWeight(row, RandomValues(row, seed * 100000 + i), format, *backend_));
    }
    Build();
  }

  const ModelSpec& spec() const { return spec_; }
  Backend& backend() { return *backend_; }
  Model& model() { return *model_; }
  ModelWeights& weights() { return weights_; }

  // Forgets every cached token.
  void ClearCache() {
    const int64_t pages_each = kMaxTokens / kPageTokens;
    const KvShape shape = KvShapeOf(spec_, kv_dtype_);
    const int64_t page_bytes = backend_->KvPageBytes(shape);
    memory_.clear();
    kv_.clear();
    for (int64_t layer = 0; layer < spec_.num_layers; ++layer) {
      memory_.push_back(Buffer::AllocateHost(page_bytes * pages_each * kNumSequences).value());
      kv_.push_back({.pages = memory_.back().data(),
                     .page_bytes = page_bytes,
                     .num_pages = pages_each * kNumSequences,
                     .shape = shape});
    }
    sequences_.assign(kNumSequences, {});
    for (int64_t page = pages_each * kNumSequences - 1; page >= 0; --page) {
      // Neither the identity nor next to each other.
      sequences_[static_cast<size_t>(page % kNumSequences)].page_table.push_back(
          static_cast<int32_t>(page));
    }
  }

  // Tokens that follow what sequence `sequence` has cached.
  struct Part {
    int sequence = 0;
    std::span<const int32_t> ids;
  };
  // One Forward over the parts; logits [all ids, vocab].
  std::vector<float> Run(std::span<const Part> parts) {
    std::vector<int32_t> ids;
    std::vector<int32_t> positions;
    std::vector<int32_t> rows;
    std::vector<Segment> segments;
    for (const Part& part : parts) {
      Sequence& sequence = sequences_[static_cast<size_t>(part.sequence)];
      segments.push_back({.first_row = static_cast<int64_t>(ids.size()),
                          .num_rows = static_cast<int64_t>(part.ids.size()),
                          .first_position = sequence.num_cached,
                          .page_table = sequence.page_table});
      for (const int32_t id : part.ids) {
        rows.push_back(static_cast<int32_t>(ids.size()));
        ids.push_back(id);
        positions.push_back(static_cast<int32_t>(sequence.num_cached++));
      }
    }
    const Status ran = model_->Forward(
        {.token_ids = ids, .positions = positions, .segments = segments}, weights_, kv_);
    EXPECT_TRUE(ran.ok()) << ran.message();
    std::vector<float> logits(ids.size() * static_cast<size_t>(spec_.vocab_size));
    const Status headed = model_->Logits(rows, weights_, logits);
    EXPECT_TRUE(headed.ok()) << headed.message();
    return logits;
  }
  std::vector<float> Run(std::span<const int32_t> ids) {
    const Part parts[] = {{.sequence = 0, .ids = ids}};
    return Run(parts);
  }

 private:
  struct Sequence {
    std::vector<int32_t> page_table;
    int64_t num_cached = 0;
  };

  void Build() {
    const Status derived = DeriveWeights(spec_, *backend_, &weights_);
    EXPECT_TRUE(derived.ok()) << derived.message();
    Result<std::unique_ptr<Model>> model = MakeModel(
        spec_, backend_.get(),
        {.max_tokens = kMaxTokens, .max_logit_rows = kMaxTokens, .max_context = kMaxTokens});
    EXPECT_TRUE(model.has_value()) << model.error().message();
    model_ = std::move(*model);
    ClearCache();
  }

  std::unique_ptr<Backend> backend_;
  DType kv_dtype_ = DType::kBf16;
  ModelSpec spec_;
  ModelWeights weights_;
  std::unique_ptr<Model> model_;
  std::vector<Buffer> memory_;
  std::vector<KvLayer> kv_;
  std::vector<Sequence> sequences_;
};

}  // namespace octavo
