#include "octavo/sync/load_weights.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/hash.h"
#include "octavo/base/log.h"
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
#include "octavo/model/spec/text_prefix.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

constexpr std::string_view kRotaryBuffer = ".rotary_emb.inv_freq";  // transformers before 4.32.
// Of a KV cache in FP8; ours has scales of its own for each token (kernels/ops.h, KvShape).
constexpr std::array<std::string_view, 3> kKvScales = {".k_scale", ".v_scale", ".kv_scale"};
constexpr float kDummyStdDev = 0.02F;

// Tensors that a model of ours has no use for and that may stand in a checkpoint all the same.
bool MaySkip(const Checkpoint& checkpoint, const WeightPlan& plan, std::string_view name) {
  const bool is_kv_scale = std::ranges::any_of(
      kKvScales, [&](std::string_view suffix) { return name.ends_with(suffix); });
  if (name.ends_with(kRotaryBuffer) || is_kv_scale) {
    return true;
  }
  const std::string& prefix = plan.spec->prefix;
  return !checkpoint.config().wrapper_architecture.empty() && !name.starts_with(prefix) &&
         name != HeadNameOf(prefix);  // A tower of a larger model.
}

// In a quantized checkpoint the stored form is part of the promise: nothing is converted on the
// way.
Status CheckStoredForm(const Checkpoint& checkpoint, const WeightPlan& plan) {
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PrecisionRow& row = plan.table->rows[i];
    const StoredTensorSpec& codes = plan.parts[i].front();
    for (const std::string_view name : {std::string_view(codes.name), std::string_view(row.name)}) {
      const StoredTensor* tensor = checkpoint.Find(name);
      if (row.format != WeightFormat::kBf16 && tensor != nullptr &&
          tensor->view.dtype != codes.dtype) {
        return InvalidArgument("{}: quantization_config says {}, so expected {}, got {}", name,
                               WeightFormatName(row.format), DTypeName(codes.dtype),
                               DTypeName(tensor->view.dtype));
      }
    }
  }
  return OkStatus();
}

// Known before anything large is read: static input scales are taken from the checkpoint alone.
Status CheckStaticInputs(const Checkpoint& checkpoint, const WeightPlan& plan) {
  for (const std::vector<int>& set : plan.static_input_sets) {
    for (const int member : set) {
      const auto row_idx = static_cast<size_t>(member);
      const auto spec = std::ranges::find_if(plan.parts[row_idx], [](const StoredTensorSpec& part) {
        return IsInputScale(part.part);
      });
      if (checkpoint.Find(spec->name) == nullptr && !plan.spec->weights[row_idx].is_mtp) {
        return InvalidArgument(
            "{}: static input scales are taken from the checkpoint, and this one is missing; "
            "--nvfp4-input-scale token, pow2 and batch need none",
            spec->name);
      }
    }
  }
  return OkStatus();
}

// In the order of the table, in which the members of a set that shares a scale stand together;
// what belongs to no weight comes last.
std::vector<const StoredTensor*> InTableOrder(const Checkpoint& checkpoint,
                                              const WeightPlan& plan) {
  std::vector<std::pair<size_t, const StoredTensor*>> ranked;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const auto target = plan.targets.find(tensor.name);
    ranked.emplace_back(target == plan.targets.end() ? plan.parts.size() : target->second.row_idx,
                        &tensor);
  }
  std::ranges::sort(ranked);  // Tensors of one weight stay in the order of their names.
  std::vector<const StoredTensor*> tensors;
  tensors.reserve(ranked.size());
  for (const auto& [rank, tensor] : ranked) {
    tensors.push_back(tensor);
  }
  return tensors;
}

// Approximately normal with standard deviation kDummyStdDev: the sum of the four bytes of a Philox
// word (each uniform on 0..255), centred and scaled. Four values a counter.
void FillNormal(std::string_view name, ThreadPool* pool, std::span<uint16_t> values) {
  constexpr float kMean = 4 * 127.5F;
  constexpr float kStdDev = 147.8F;  // sqrt(4 * (256^2 - 1) / 12)
  constexpr size_t kWords = 4;
  uint64_t seed = 0;
  const Hash128 hash = HashText(name);
  std::memcpy(&seed, hash.data(), sizeof(seed));
  const auto num_counters = static_cast<int64_t>((values.size() + kWords - 1) / kWords);
  const auto fill = [&](int64_t begin, int64_t end, int) {
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
  };
  if (pool == nullptr) {
    fill(0, num_counters, 0);
  } else {
    pool->ParallelFor(num_counters, fill);
  }
}

Status Differs(std::string_view what, int64_t expected, int64_t actual) {
  return expected == actual ? OkStatus()
                            : InvalidArgument("config.json: {}: expected {} as served, got {}",
                                              what, expected, actual);
}

// Routing shows in no tensor's shape.
Status CheckSameMoe(const MoeSpec& spec, const MoeSpec& other) {
  RETURN_IF_ERROR(Differs("num_experts", spec.num_experts, other.num_experts));
  RETURN_IF_ERROR(Differs("num_experts_per_tok", spec.top_k, other.top_k));
  RETURN_IF_ERROR(
      Differs("moe_intermediate_size", spec.intermediate_size, other.intermediate_size));
  RETURN_IF_ERROR(Differs("n_shared_experts * moe_intermediate_size", spec.shared_intermediate_size,
                          other.shared_intermediate_size));
  RETURN_IF_ERROR(
      Differs("norm_topk_prob", spec.norm_topk_prob ? 1 : 0, other.norm_topk_prob ? 1 : 0));
  RETURN_IF_ERROR(Differs("n_group", spec.num_groups, other.num_groups));
  RETURN_IF_ERROR(Differs("topk_group", spec.top_groups, other.top_groups));
  if (spec.routed_scaling_factor != other.routed_scaling_factor) {
    return InvalidArgument("config.json: routed_scaling_factor: expected {} as served, got {}",
                           spec.routed_scaling_factor, other.routed_scaling_factor);
  }
  return spec.scoring == other.scoring && spec.is_sparse == other.is_sparse
             ? OkStatus()
             : InvalidArgument("config.json: expected the served scoring and sparse layers");
}

Status CheckSameMla(const MlaSpec& spec, const MlaSpec& other) {
  RETURN_IF_ERROR(Differs("q_lora_rank", spec.q_lora_rank, other.q_lora_rank));
  RETURN_IF_ERROR(Differs("kv_lora_rank", spec.kv_lora_rank, other.kv_lora_rank));
  RETURN_IF_ERROR(Differs("qk_nope_head_dim", spec.qk_nope_head_dim, other.qk_nope_head_dim));
  RETURN_IF_ERROR(Differs("qk_rope_head_dim", spec.qk_rope_head_dim, other.qk_rope_head_dim));
  RETURN_IF_ERROR(Differs("v_head_dim", spec.v_head_dim, other.v_head_dim));
  return Differs("rope_interleave", spec.is_rope_interleaved ? 1 : 0,
                 other.is_rope_interleaved ? 1 : 0);
}

}  // namespace

Status StageCheckpoint(const Checkpoint& checkpoint, const WeightPlan& plan, Staging* staging) {
  if (!checkpoint.config().quantization_config.empty()) {
    RETURN_IF_ERROR(CheckStoredForm(checkpoint, plan));
  }
  int64_t num_skipped = 0;
  std::string_view first_skipped;
  for (const StoredTensor* tensor : InTableOrder(checkpoint, plan)) {
    if (MaySkip(checkpoint, plan, tensor->name)) {
      first_skipped = num_skipped++ == 0 ? tensor->name : first_skipped;
    } else {
      RETURN_IF_ERROR(staging->Put(tensor->name, tensor->view));
    }
  }
  if (num_skipped > 0) {
    LOG(WARNING, "checkpoint dir={} tensors_not_served={} first={}", checkpoint.dir(), num_skipped,
        first_skipped);
  }
  return staging->Seal();
}

Result<std::unique_ptr<ModelWeights>> LoadWeights(const Checkpoint& checkpoint,
                                                  const WeightPlan& plan, Backend& backend) {
  Staging staging({.plan = &plan, .backend = &backend, .pool = &backend.pool()});
  Status status = CheckStaticInputs(checkpoint, plan);
  if (status.ok()) {
    status = StageCheckpoint(checkpoint, plan, &staging);
  }
  if (!status.ok()) {
    return status.WithContext(checkpoint.dir());
  }
  return staging.Take();
}

Result<std::unique_ptr<ModelWeights>> DummyWeights(const WeightPlan& plan, Backend& backend) {
  Staging staging({.plan = &plan, .backend = &backend, .pool = &backend.pool()});
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PrecisionRow& row = plan.table->rows[i];
    if (plan.spec->weights[i].is_mtp) {
      continue;  // Never computed with.
    }
    ASSIGN_OR_RETURN(Buffer values, Buffer::AllocateHost(2 * NumElements(row.shape)));
    if (row.role == Role::kNorm) {
      std::ranges::fill(values.As<uint16_t>(), FloatToBf16(1.0F));
    } else {
      FillNormal(row.name, &backend.pool(), values.As<uint16_t>());
    }
    RETURN_IF_ERROR(staging.Put(row.name, {DType::kBf16, row.shape, values.data()}));
  }
  static constexpr float kOne = 1.0F;
  for (const std::vector<int>& set : plan.static_input_sets) {
    for (const int member : set) {
      for (const StoredTensorSpec& part : plan.parts[static_cast<size_t>(member)]) {
        if (IsInputScale(part.part)) {
          RETURN_IF_ERROR(staging.Put(
              part.name, {DType::kF32, part.shape, reinterpret_cast<const std::byte*>(&kOne)}));
        }
      }
    }
  }
  RETURN_IF_ERROR(staging.Seal());
  return staging.Take();
}

Result<std::unique_ptr<ModelWeights>> NoiseWeights(const WeightPlan& plan, const Backend& backend,
                                                   LiveBase base, ThreadPool* pool) {
  const std::vector<bool> is_held = base.is_held;
  Staging staging({.plan = &plan, .backend = &backend, .pool = pool, .base = std::move(base)});
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PrecisionRow& row = plan.table->rows[i];
    if (!is_held[i]) {
      continue;
    }
    ASSIGN_OR_RETURN(Buffer values, Buffer::AllocateHost(2 * NumElements(row.shape)));
    FillNormal("noise:" + row.name, pool, values.As<uint16_t>());
    RETURN_IF_ERROR(staging.Put(row.name, {DType::kBf16, row.shape, values.data()}));
  }
  RETURN_IF_ERROR(staging.Seal());
  return staging.Take();
}

Status CheckSameModel(const ModelSpec& spec, const HfConfig& config) {
  RETURN_IF_ERROR(CheckServedConfig(config));
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
  RETURN_IF_ERROR(CheckSameMoe(spec.moe, other.moe));
  RETURN_IF_ERROR(CheckSameMla(spec.mla, other.mla));
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
