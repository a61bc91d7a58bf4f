#pragma once
// What the engine's tests share: a tiny random model, a sink that remembers, and a core that is
// stepped by hand with its invariants checked after every step.

#include <gtest/gtest.h>

#include <cmath>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/base/random.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/engine_core.h"
#include "octavo/formats/bf16.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"

namespace octavo {

// Everything that a sink was given, joined.
struct Collected {
  RequestOutput all;  // Lists joined; the rest is of the last snapshot.
  int64_t num_snapshots = 0;
  int64_t num_final = 0;
};

// Thread-safe.
class RecordingSink final : public RequestSink {
 public:
  void OnOutput(RequestOutput output) override {
    const std::scoped_lock lock(mutex_);
    const auto join = [](auto& list, auto& more) {
      list.insert(list.end(), more.begin(), more.end());
      more = list;
    };
    join(collected_.all.new_ids, output.new_ids);
    join(collected_.all.new_logprobs, output.new_logprobs);
    join(collected_.all.new_top_logprobs, output.new_top_logprobs);
    join(collected_.all.new_ids_logprobs, output.new_ids_logprobs);
    join(collected_.all.input_logprobs, output.input_logprobs);
    join(collected_.all.input_top_logprobs, output.input_top_logprobs);
    join(collected_.all.input_ids_logprobs, output.input_ids_logprobs);
    join(collected_.all.routed_experts, output.routed_experts);
    ++collected_.num_snapshots;
    collected_.num_final += output.finish.type != FinishType::kNone ? 1 : 0;
    collected_.all = std::move(output);
    changed_.notify_all();
  }

  Collected Get() const {
    const std::scoped_lock lock(mutex_);
    return collected_;
  }
  bool finished() const { return Get().num_final > 0; }
  // Blocks until the last output came.
  Collected Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return collected_.num_final > 0; });
    return collected_;
  }
  // Blocks until so many output tokens came (streaming requests), or the end.
  void WaitForTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(
        lock, [&] { return collected_.num_final > 0 || collected_.all.new_ids.size() >= count; });
  }

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  Collected collected_;
};

inline HfConfig TinyConfig() {
  HfConfig config;
  config.architecture = "Qwen3ForCausalLM";
  config.model_type = "qwen3";
  config.hidden_size = 48;
  config.num_layers = 2;
  config.num_heads = 4;
  config.num_kv_heads = 2;
  config.head_dim = 32;
  config.intermediate_size = 80;
  config.vocab_size = 101;
  config.max_position_embeddings = 2048;
  config.rms_norm_eps = 1e-6;
  config.rope_theta = 10000.0;
  config.tie_word_embeddings = false;
  config.dtype = "bfloat16";
  return config;
}

inline ModelSpec SpecOf(const HfConfig& config) {
  Result<ModelSpec> spec = MakeModelSpec(config);
  EXPECT_TRUE(spec.has_value()) << spec.error().message();
  return *spec;
}

// A Qwen3 of two layers whose sizes are multiples of nothing in particular.
inline ModelSpec TinySpec() { return SpecOf(TinyConfig()); }

// A Qwen3-MoE of three layers, the second without experts.
inline ModelSpec TinyMoeSpec() {
  HfConfig config = TinyConfig();
  config.architecture = "Qwen3MoeForCausalLM";
  config.model_type = "qwen3_moe";
  config.num_layers = 3;
  config.moe.num_experts = 6;
  config.moe.num_experts_per_tok = 2;
  config.moe.moe_intermediate_size = 48;
  config.moe.norm_topk_prob = true;
  config.moe.mlp_only_layers = {1};
  return SpecOf(config);
}

struct TinyWeightOptions {
  TestFormat format = {};  // Of every linear layer; the KV cache's is an option of the engine.
  uint64_t seed = 1;
  int32_t poisoned_token = -1;  // Its embedding is NaN.
};

// Normal values by Box-Muller from Philox; norms around 1; the head wide enough that
// distributions are neither flat nor a spike.
inline std::vector<uint16_t> TinyValues(const WeightSpec& row, uint64_t seed) {
  std::vector<uint16_t> values(static_cast<size_t>(NumElements(row.shape)));
  const double deviation = row.role == Role::kEmbedding ? 1.0
                           : row.role == Role::kLmHead  ? 0.3
                                                        : 0.15;
  for (size_t i = 0; i < values.size(); ++i) {
    const std::array<uint32_t, 4> words = Philox(seed, i);
    const double u = (words[0] + 1.0) * 0x1p-32;
    const double v = words[1] * 0x1p-32;
    const double normal = std::sqrt(-2.0 * std::log(u)) * std::cos(6.283185307179586 * v);
    const double value = row.role == Role::kNorm ? 1.0 + 0.1 * normal : deviation * normal;
    values[i] = FloatToBf16(static_cast<float>(value));
  }
  return values;
}

inline std::unique_ptr<ModelWeights> TinyWeights(const ModelSpec& spec, const Backend& backend,
                                                 const TinyWeightOptions& options) {
  auto weights = std::make_unique<ModelWeights>();
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& row = spec.weights[i];
    std::vector<uint16_t> values = TinyValues(row, options.seed * 1000 + i);
    if (row.role == Role::kEmbedding && options.poisoned_token >= 0) {
      values[static_cast<size_t>(options.poisoned_token * row.shape.back())] = 0x7FC0;  // NaN
    }
    weights->matrices.push_back(PackWeight(row, values, options.format, backend));
  }
  const Status derived = DeriveWeights(spec, backend, weights.get());
  EXPECT_TRUE(derived.ok()) << derived.message();
  return weights;
}

// `count` token ids of the tiny vocabulary that depend on `seed` alone.
inline std::vector<int32_t> RandomIds(uint64_t seed, int64_t count) {
  std::vector<int32_t> ids;
  ids.reserve(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    ids.push_back(static_cast<int32_t>(Philox(seed, static_cast<uint64_t>(i))[0] % 101));
  }
  return ids;
}

// Logprobs must agree in every bit: EXPECT_EQ on their representations.
inline std::vector<std::pair<int32_t, uint32_t>> Bits(const std::vector<TokenLogprob>& logprobs) {
  std::vector<std::pair<int32_t, uint32_t>> bits;
  bits.reserve(logprobs.size());
  for (const TokenLogprob& entry : logprobs) {
    bits.emplace_back(entry.id, std::bit_cast<uint32_t>(entry.logprob));
  }
  return bits;
}

// The same tokens with the same logprobs, bit for bit.
inline void ExpectSame(const Collected& actual, const Collected& expected) {
  EXPECT_EQ(actual.all.new_ids, expected.all.new_ids);
  EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(expected.all.new_logprobs));
}

// Draws exactly so many tokens after `prompt`, with their logprobs.
inline Request Sampling(std::vector<int32_t> prompt, int64_t seed, int64_t max_new_tokens) {
  Request request;
  request.input_ids = std::move(prompt);
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.seed = seed;
  request.return_logprob = true;
  return request;
}
inline Request Sampled(uint64_t seed, int64_t prompt_len, int64_t max_new_tokens) {
  return Sampling(RandomIds(seed, prompt_len), static_cast<int64_t>(seed), max_new_tokens);
}

struct HarnessOptions {
  EngineOptions engine = {.max_total_tokens = 8192,
                          .max_running_requests = 64,
                          .max_queued_requests = 0,
                          .chunk_tokens = 128,
                          .context_length = 0,
                          .prefix_cache = true};
  TinyWeightOptions weights;
  std::vector<int32_t> eos_token_ids = {2};
  ModelSpec spec = TinySpec();
  bool cpu = false;  // The vector backend instead of the reference.
  int num_threads = 1;
};

// An EngineCore on the tiny model, driven by hand.
class Harness {
 public:
  explicit Harness(const HarnessOptions& options = {}) : options_(options) {
    SetLogLevel(LogLevel::kError);
    std::unique_ptr<Backend> backend = MakeBackend();
    std::unique_ptr<ModelWeights> weights = TinyWeights(spec(), *backend, options.weights);
    Result<std::unique_ptr<EngineCore>> core =
        EngineCore::Create({.backend = std::move(backend),
                            .spec = &spec(),
                            .weights = std::move(weights),
                            .eos_token_ids = options.eos_token_ids,
                            .weight_version = "v0",
                            .options = options.engine,
                            .rids = &rids_,
                            .publish = nullptr});
    EXPECT_TRUE(core.has_value()) << core.error().message();
    core_ = std::move(*core);
  }

  EngineCore& core() { return *core_; }
  const ModelSpec& spec() const { return options_.spec; }
  int64_t num_in_flight() const { return rids_.size(); }

  std::unique_ptr<ModelWeights> NewWeights(const TinyWeightOptions& options) {
    return TinyWeights(spec(), core_->backend(), options);
  }

  // Validates and adds a request, with a rid of its own unless it has one.
  std::shared_ptr<RecordingSink> Add(Request request) {
    auto sink = std::make_shared<RecordingSink>();
    if (request.rid.empty()) {
      request.rid = "r" + std::to_string(next_rid_++);
    }
    request.sink = sink;
    const Status valid = ValidateRequest(request, core_->limits());
    EXPECT_TRUE(valid.ok()) << valid.message();
    EXPECT_TRUE(rids_.Insert(request.rid));
    core_->Add(std::move(request), EngineClock::now());
    return sink;
  }

  bool Step() {
    core_->AtBoundary();
    const bool ran = core_->Step();
    core_->CheckInvariants();
    return ran;
  }
  void Steps(int count) {
    for (int i = 0; i < count; ++i) {
      ASSERT_TRUE(Step());
    }
  }
  // Steps until nothing runs.
  void RunAll() {
    while (Step()) {
    }
  }
  Collected Run(Request request) {
    const std::shared_ptr<RecordingSink> sink = Add(std::move(request));
    RunAll();
    EXPECT_EQ(sink->Get().num_final, 1);
    return sink->Get();
  }

 private:
  std::unique_ptr<Backend> MakeBackend() const {
    if (!options_.cpu) {
      return MakeReferenceBackend(Recipe::kServing, options_.num_threads);
    }
    Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(BestIsa(), options_.num_threads);
    EXPECT_TRUE(backend.has_value()) << backend.error().message();
    return std::move(*backend);
  }

  const HarnessOptions options_;
  RidRegistry rids_;
  std::unique_ptr<EngineCore> core_;
  int next_rid_ = 0;
};

}  // namespace octavo
