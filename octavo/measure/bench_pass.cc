#include "octavo/measure/bench_pass.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstring>

#include "octavo/base/random.h"

namespace octavo {
namespace {

constexpr uint64_t kSeed = 1;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

bool IsHead(const ModelSpec& spec, const WeightSpec& weight) {
  return weight.role == Role::kLmHead ||
         (spec.tie_word_embeddings && weight.role == Role::kEmbedding);
}

}  // namespace

Result<BenchPass> BenchPass::Make(Model* model, const ModelWeights* weights,
                                  const BenchShape& shape) {
  const ModelSpec& spec = model->spec();
  BenchPass pass;
  pass.model_ = model;
  pass.weights_ = weights;
  pass.shape_ = shape;
  pass.pages_per_seq_ = (shape.input_len + shape.output_len + kPageTokens - 1) / kPageTokens;
  const int64_t num_pages = shape.batch * pass.pages_per_seq_;
  const int64_t page_bytes = model->backend().KvPageBytes(KvShapeOf(spec));
  const int64_t layer_bytes = num_pages * page_bytes;
  ASSIGN_OR_RETURN(pass.pages_, Buffer::AllocateHost(spec.num_layers * layer_bytes));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    pass.kv_.push_back({.pages = pass.pages_.data() + layer * layer_bytes,
                        .page_bytes = page_bytes,
                        .num_pages = num_pages,
                        .shape = KvShapeOf(spec)});
  }
  pass.page_ids_.resize(static_cast<size_t>(num_pages));
  for (size_t i = 0; i < pass.page_ids_.size(); ++i) {
    pass.page_ids_[i] = static_cast<int32_t>(i);
  }
  pass.logits_.resize(static_cast<size_t>(shape.batch * spec.vocab_size));
  return pass;
}

void BenchPass::Clear() {
  token_ids_.clear();
  positions_.clear();
  segments_.clear();
  logit_rows_.clear();
}

void BenchPass::AddRows(int64_t seq_idx, int64_t first_position, int64_t num_rows) {
  segments_.push_back(
      {.first_row = static_cast<int64_t>(token_ids_.size()),
       .num_rows = num_rows,
       .first_position = first_position,
       .page_table = std::span(page_ids_).subspan(static_cast<size_t>(seq_idx * pages_per_seq_),
                                                  static_cast<size_t>(pages_per_seq_))});
  const auto vocab_size = static_cast<uint32_t>(model_->spec().vocab_size);
  for (int64_t i = 0; i < num_rows; ++i) {
    const int64_t position = first_position + i;
    const auto counter = static_cast<uint64_t>(seq_idx) << 32 | static_cast<uint64_t>(position);
    token_ids_.push_back(static_cast<int32_t>(Philox(kSeed, counter)[0] % vocab_size));
    positions_.push_back(static_cast<int32_t>(position));
  }
  if (first_position + num_rows >= shape_.input_len) {  // The prompt is complete: logits wanted.
    logit_rows_.push_back(static_cast<int32_t>(token_ids_.size()) - 1);
  }
}

Result<double> BenchPass::Run() {
  const auto start = std::chrono::steady_clock::now();
  RETURN_IF_ERROR(model_->Forward(
      {.token_ids = token_ids_, .positions = positions_, .segments = segments_}, *weights_, kv_));
  if (!logit_rows_.empty()) {
    const size_t num_logits = logit_rows_.size() * static_cast<size_t>(model_->spec().vocab_size);
    RETURN_IF_ERROR(model_->Logits(logit_rows_, *weights_, std::span(logits_).first(num_logits)));
  }
  return SecondsSince(start);
}

Result<double> BenchPass::Prefill() {
  // A page comes all-zero to its sequence (ops.h).
  std::memset(pages_.data(), 0, static_cast<size_t>(pages_.num_bytes()));
  double seconds = 0.0;
  Clear();
  int64_t room = shape_.chunk_tokens;
  for (int64_t seq_idx = 0; seq_idx < shape_.batch; ++seq_idx) {
    for (int64_t position = 0; position < shape_.input_len;) {
      const int64_t num_rows = std::min(room, shape_.input_len - position);
      AddRows(seq_idx, position, num_rows);
      position += num_rows;
      room -= num_rows;
      const bool is_last = seq_idx + 1 == shape_.batch && position == shape_.input_len;
      if (room == 0 || is_last) {
        ASSIGN_OR_RETURN(const double pass_seconds, Run());
        seconds += pass_seconds;
        Clear();
        room = shape_.chunk_tokens;
      }
    }
  }
  return seconds;
}

Result<double> BenchPass::DecodeStep(int64_t step_idx) {
  Clear();
  for (int64_t seq_idx = 0; seq_idx < shape_.batch; ++seq_idx) {
    AddRows(seq_idx, shape_.input_len + step_idx, 1);
  }
  return Run();
}

StepWeights StepWeightsOf(const ModelSpec& spec, const ModelWeights& weights) {
  StepWeights parts;
  const auto add = [](const PackedMatrix& matrix, std::vector<std::span<const std::byte>>* to) {
    for (const Buffer* buffer : {&matrix.codes, &matrix.scales}) {
      if (!buffer->empty()) {
        to->push_back(buffer->bytes());
      }
    }
  };
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& weight = spec.weights[i];
    const bool is_unread = (weight.role == Role::kEmbedding && !IsHead(spec, weight)) ||
                           weight.role == Role::kMlaKvB || weight.is_mtp;
    if (!is_unread) {
      add(weights.matrices[i], IsExpertRole(weight.role) ? &parts.experts : &parts.dense);
    }
  }
  for (const PackedMatrix& matrix : weights.derived) {
    add(matrix, &parts.dense);
  }
  return parts;
}

std::vector<std::span<const std::byte>> StepWeights::All() const {
  std::vector<std::span<const std::byte>> all = dense;
  all.insert(all.end(), experts.begin(), experts.end());
  return all;
}

double StepWeightBytes(const ModelSpec& spec, const StepWeights& weights, int64_t batch) {
  const auto total = [](std::span<const std::span<const std::byte>> parts) {
    double bytes = 0.0;
    for (const auto& part : parts) {
      bytes += static_cast<double>(part.size());
    }
    return bytes;
  };
  if (weights.experts.empty()) {
    return total(weights.dense);
  }
  const double chosen =
      static_cast<double>(spec.moe.top_k) / static_cast<double>(spec.moe.num_experts);
  const double share = 1.0 - std::pow(1.0 - chosen, static_cast<double>(batch));
  return total(weights.dense) + share * total(weights.experts);
}

int64_t LinearOps(const ModelSpec& spec, int64_t num_tokens, int64_t num_logit_rows) {
  int64_t ops = 0;
  int64_t expert_ops = 0;
  for (const WeightSpec& weight : spec.weights) {
    if (weight.is_mtp) {
      continue;
    }
    if (IsHead(spec, weight)) {
      ops += 2 * NumElements(weight.shape) * num_logit_rows;
    } else if (IsExpertRole(weight.role)) {
      expert_ops += 2 * NumElements(weight.shape);
    } else if (IsLinearRole(weight.role) || weight.role == Role::kRouter) {
      ops += 2 * NumElements(weight.shape) * num_tokens;
    }
  }
  if (expert_ops > 0) {
    ops += expert_ops / spec.moe.num_experts * spec.moe.top_k * num_tokens;
  }
  return ops;
}

}  // namespace octavo
