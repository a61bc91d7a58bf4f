#include "octavo/sync/load_weights.h"

#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>

#include "octavo/base/buffer.h"
#include "octavo/base/hash.h"
#include "octavo/base/random.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/staging.h"

namespace octavo {
namespace {

constexpr std::string_view kHeadName = "lm_head.weight";
constexpr std::string_view kEmbeddingName = "model.embed_tokens.weight";
constexpr std::string_view kRotaryBuffer = ".rotary_emb.inv_freq";  // transformers before 4.32.
constexpr float kDummyStdDev = 0.02F;

// A tied model may still store its head; it is the same tensor or it is an error.
Status CheckTiedHead(const Checkpoint& checkpoint, const StoredTensor& head) {
  const StoredTensor* embedding = checkpoint.Find(kEmbeddingName);
  if (embedding == nullptr || embedding->view.dtype != head.view.dtype ||
      embedding->view.shape != head.view.shape ||
      std::memcmp(embedding->view.data, head.view.data,
                  static_cast<size_t>(head.view.NumBytes())) != 0) {
    return InvalidArgument(
        "{}: config.json says tie_word_embeddings, but this tensor differs from {}", head.name,
        kEmbeddingName);
  }
  return OkStatus();
}

// Tensors that a model of ours has no use for and that may stand in a checkpoint all the same.
Result<bool> MaySkip(const Checkpoint& checkpoint, const ModelSpec& spec,
                     const StoredTensor& tensor) {
  if (tensor.name.ends_with(kRotaryBuffer)) {
    return true;
  }
  if (spec.tie_word_embeddings && tensor.name == kHeadName) {
    RETURN_IF_ERROR(CheckTiedHead(checkpoint, tensor));
    return true;
  }
  return false;
}

// In a quantized checkpoint the stored form is part of the promise: nothing is converted on the
// way.
Status CheckStoredForm(const Checkpoint& checkpoint, const PrecisionTable& table) {
  for (const PrecisionRow& row : table.rows) {
    const StoredTensorSpec first = StoredTensorsOf(row).front();
    const StoredTensor* tensor = checkpoint.Find(first.name);
    if (tensor != nullptr && row.format != WeightFormat::kBf16 &&
        tensor->view.dtype != first.dtype) {
      return InvalidArgument("{}: quantization_config says {}, so expected {}, got {}", first.name,
                             WeightFormatName(row.format), DTypeName(first.dtype),
                             DTypeName(tensor->view.dtype));
    }
  }
  return OkStatus();
}

// Approximately normal with standard deviation kDummyStdDev: the sum of the four bytes of a Philox
// word (each uniform on 0..255), centred and scaled. Four values a counter.
void FillNormal(std::string_view name, ThreadPool& pool, std::span<uint16_t> values) {
  constexpr float kMean = 4 * 127.5F;
  constexpr float kStdDev = 147.8F;  // sqrt(4 * (256^2 - 1) / 12)
  constexpr size_t kWords = 4;
  uint64_t seed = 0;
  const Hash128 hash = HashText(name);
  std::memcpy(&seed, hash.data(), sizeof(seed));
  const auto num_counters = static_cast<int64_t>((values.size() + kWords - 1) / kWords);
  pool.ParallelFor(num_counters, [&](int64_t begin, int64_t end, int) {
    for (auto counter = static_cast<size_t>(begin); counter < static_cast<size_t>(end); ++counter) {
      const std::array<uint32_t, kWords> words = Philox(seed, counter);
      for (size_t i = 0; i < kWords && counter * kWords + i < values.size(); ++i) {
        const uint32_t word = words[i];
        const uint32_t sum =
            (word & 255U) + (word >> 8 & 255U) + (word >> 16 & 255U) + (word >> 24);
        values[counter * kWords + i] =
            FloatToBf16((static_cast<float>(sum) - kMean) * (kDummyStdDev / kStdDev));
      }
    }
  });
}

Status Differs(std::string_view what, int64_t expected, int64_t actual) {
  return expected == actual ? OkStatus()
                            : InvalidArgument("config.json: {}: expected {} as served, got {}",
                                              what, expected, actual);
}

}  // namespace

Status StageCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                       const PrecisionTable& table, Staging* staging) {
  if (!checkpoint.config().quantization_config.empty()) {
    RETURN_IF_ERROR(CheckStoredForm(checkpoint, table));
  }
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    ASSIGN_OR_RETURN(const bool skip, MaySkip(checkpoint, spec, tensor));
    if (!skip) {
      RETURN_IF_ERROR(staging->Put(tensor.name, tensor.view));
    }
  }
  return staging->CheckComplete();
}

Result<std::unique_ptr<ModelWeights>> LoadWeights(const Checkpoint& checkpoint,
                                                  const ModelSpec& spec,
                                                  const PrecisionTable& table, Backend& backend) {
  Staging staging(&table, &backend, &backend.pool());
  const Status status = StageCheckpoint(checkpoint, spec, table, &staging);
  if (!status.ok()) {
    return status.WithContext(checkpoint.dir());
  }
  return staging.Take();
}

Result<std::unique_ptr<ModelWeights>> DummyWeights(const PrecisionTable& table, Backend& backend) {
  Staging staging(&table, &backend, &backend.pool());
  for (const PrecisionRow& row : table.rows) {
    ASSIGN_OR_RETURN(Buffer values, Buffer::AllocateHost(2 * NumElements(row.shape)));
    if (row.role == Role::kNorm) {
      std::ranges::fill(values.As<uint16_t>(), FloatToBf16(1.0F));
    } else {
      FillNormal(row.name, backend.pool(), values.As<uint16_t>());
    }
    RETURN_IF_ERROR(staging.Put(row.name, {DType::kBf16, row.shape, values.data()}));
  }
  return staging.Take();
}

Status CheckSameModel(const ModelSpec& spec, const HfConfig& config) {
  ASSIGN_OR_RETURN(const ModelSpec other, MakeModelSpec(config));
  if (other.architecture != spec.architecture) {
    return InvalidArgument("config.json: architectures: expected {} as served, got {}",
                           spec.architecture, other.architecture);
  }
  RETURN_IF_ERROR(Differs("num_hidden_layers", spec.num_layers, other.num_layers));
  RETURN_IF_ERROR(Differs("hidden_size", spec.hidden_size, other.hidden_size));
  RETURN_IF_ERROR(Differs("num_attention_heads", spec.num_heads, other.num_heads));
  RETURN_IF_ERROR(Differs("num_key_value_heads", spec.num_kv_heads, other.num_kv_heads));
  RETURN_IF_ERROR(Differs("head_dim", spec.head_dim, other.head_dim));
  RETURN_IF_ERROR(Differs("intermediate_size", spec.intermediate_size, other.intermediate_size));
  RETURN_IF_ERROR(Differs("vocab_size", spec.vocab_size, other.vocab_size));
  RETURN_IF_ERROR(Differs("attention_bias", spec.has_o_bias ? 1 : 0, other.has_o_bias ? 1 : 0));
  RETURN_IF_ERROR(Differs("tie_word_embeddings", spec.tie_word_embeddings ? 1 : 0,
                          other.tie_word_embeddings ? 1 : 0));
  if (other.rope_theta != spec.rope_theta || other.rms_norm_eps != spec.rms_norm_eps) {
    return InvalidArgument(
        "config.json: expected rope_theta {} and rms_norm_eps {} as served, got {} and {}",
        spec.rope_theta, spec.rms_norm_eps, other.rope_theta, other.rms_norm_eps);
  }
  if (other.rope_scaling != spec.rope_scaling) {
    return InvalidArgument("config.json: rope_scaling: expected {} as served, got {}",
                           RopeTypeName(spec.rope_scaling.type),
                           RopeTypeName(other.rope_scaling.type));
  }
  return OkStatus();
}

Status CheckSameTable(const PrecisionTable& served, const PrecisionTable& source) {
  for (const PrecisionRow& row : served.rows) {
    const PrecisionRow* other = source.Find(row.name);
    const std::string_view got =
        other == nullptr ? std::string_view("nothing") : WeightFormatName(other->format);
    if (got != WeightFormatName(row.format)) {
      return InvalidArgument("{}: served as {}, but the source stores {}", row.name,
                             WeightFormatName(row.format), got);
    }
  }
  return OkStatus();
}

}  // namespace octavo
