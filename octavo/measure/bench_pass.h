#pragma once
// The timed parts of a bench row, prefill of a batch and decode steps, and what they are counted
// in: the bytes and operations of a step.

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/model/model.h"

namespace octavo {

struct BenchShape {
  int64_t batch = 0;
  int64_t input_len = 0;
  int64_t output_len = 0;
  int64_t chunk_tokens = 0;
};

// One batch of sequences of random ids with their KV pages. One thread: that of the backend.
class BenchPass {
 public:
  // `model` and `weights` must outlive the pass. Errors: kExhausted.
  static Result<BenchPass> Make(Model* model, const ModelWeights* weights, const BenchShape& shape);

  // All prompts, packed into forward passes of at most chunk_tokens, with one row of logits for
  // each sequence; seconds. May be repeated: the same pages are written again.
  Result<double> Prefill();
  // Step `step_idx` < output_len of every sequence, with its logits; seconds.
  Result<double> DecodeStep(int64_t step_idx);

 private:
  BenchPass() = default;
  void Clear();
  // Puts positions [first_position, first_position + num_rows) of a sequence into the next pass.
  void AddRows(int64_t seq_idx, int64_t first_position, int64_t num_rows);
  Result<double> Run();

  Model* model_ = nullptr;
  const ModelWeights* weights_ = nullptr;
  BenchShape shape_;
  int64_t pages_per_seq_ = 0;
  Buffer pages_;
  std::vector<KvLayer> kv_;
  std::vector<int32_t> page_ids_;  // [batch, pages_per_seq]
  std::vector<float> logits_;      // [batch, vocab]
  // The forward pass that is being put together.
  std::vector<int32_t> token_ids_;
  std::vector<int32_t> positions_;
  std::vector<Segment> segments_;
  std::vector<int32_t> logit_rows_;
};

// The packed bytes that decode steps read: linear layers, head, norms and derived weights, routed
// experts apart. Left out: an untied embedding, of which single rows are read, MTP layers, and what
// derived weights stand for. Views into `weights`.
struct StepWeights {
  std::vector<std::span<const std::byte>> dense;
  std::vector<std::span<const std::byte>> experts;

  std::vector<std::span<const std::byte>> All() const;
};
StepWeights StepWeightsOf(const ModelSpec& spec, const ModelWeights& weights);

// Bytes of one decode step of `batch` sequences. Of the routed experts it is the expectation over
// choices that are uniform and independent: 1 - (1 - top_k / experts)^batch of them.
double StepWeightBytes(const ModelSpec& spec, const StepWeights& weights, int64_t batch);

// 2 x multiply-adds of the linear layers for `num_tokens` of which `num_logit_rows` reach the head;
// of routed experts those of top_k.
int64_t LinearOps(const ModelSpec& spec, int64_t num_tokens, int64_t num_logit_rows);

}  // namespace octavo
