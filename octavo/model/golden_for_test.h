#pragma once
// For tests: expected logits from a safetensors file, and how far a runner's are from them.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/model/model_for_test.h"

namespace octavo {

struct GoldenPrompt {
  std::vector<int32_t> ids;
  std::vector<int32_t> positions;  // Of the rows of logits, ascending.
  std::vector<float> logits;       // [positions, vocab]
  std::vector<int32_t> greedy;     // Empty where the file has none.
  std::vector<int32_t> experts;    // [ids, layers, top k]; empty where the file has none.
};

// Empty when the file has no such tensor.
template <typename T>
std::vector<T> Elements(const SafetensorsFile& file, const std::string& name) {
  for (const SafetensorsEntry& entry : file.header().entries) {
    if (entry.name == name) {
      const ConstTensorView view = file.View(entry);
      std::vector<T> elements(static_cast<size_t>(NumElements(view.shape)));
      std::memcpy(elements.data(), view.data, elements.size() * sizeof(T));
      return elements;
    }
  }
  return {};
}

// Prompts "0.ids", "0.logits" (with "0.positions", or of every position) and "0.greedy", "1.ids"
// ...
inline std::vector<GoldenPrompt> LoadGolden(const std::string& path) {
  Result<SafetensorsFile> file = SafetensorsFile::Open(path);
  EXPECT_TRUE(file.has_value()) << file.error().message();
  std::vector<GoldenPrompt> prompts;
  while (true) {
    const std::string prefix = std::to_string(prompts.size());
    GoldenPrompt prompt = {.ids = Elements<int32_t>(*file, prefix + ".ids"),
                           .positions = Elements<int32_t>(*file, prefix + ".positions"),
                           .logits = Elements<float>(*file, prefix + ".logits"),
                           .greedy = Elements<int32_t>(*file, prefix + ".greedy"),
                           .experts = Elements<int32_t>(*file, prefix + ".experts")};
    if (prompt.ids.empty()) {
      break;
    }
    if (prompt.positions.empty()) {
      for (size_t t = 0; t < prompt.ids.size(); ++t) {
        prompt.positions.push_back(static_cast<int32_t>(t));
      }
    }
    prompts.push_back(std::move(prompt));
  }
  EXPECT_FALSE(prompts.empty()) << path;
  return prompts;
}

// Natural log-softmax in FP64.
inline std::vector<double> LogSoftmax(std::span<const float> logits) {
  const double max = *std::ranges::max_element(logits);
  double sum = 0.0;
  for (const float x : logits) {
    sum += std::exp(x - max);
  }
  std::vector<double> result;
  result.reserve(logits.size());
  for (const float x : logits) {
    result.push_back(x - max - std::log(sum));
  }
  return result;
}

// How far a backend's distributions are from the golden ones, over all positions of all prompts.
struct Mismatch {
  double max_abs_logit = 0.0;  // Largest |difference| of any logit.
  double kl_mean = 0.0;        // Mean over positions of sum_i p_i ln(p_i / q_i), p golden.
  double dlogprob_mean = 0.0;  // Mean over positions whose next token is known (prompt tokens 1..)
                               // of |ln p(next) - ln q(next)|.
};

inline Mismatch Compare(ModelRunner& runner, std::span<const GoldenPrompt> prompts) {
  Mismatch mismatch;
  int64_t num_positions = 0;
  int64_t num_predictions = 0;
  const auto vocab = static_cast<size_t>(runner.spec().vocab_size);
  for (const GoldenPrompt& prompt : prompts) {
    runner.ClearCache();
    const std::vector<float> logits = runner.Run(prompt.ids);
    for (size_t row_idx = 0; row_idx < prompt.positions.size(); ++row_idx) {
      const auto t = static_cast<size_t>(prompt.positions[row_idx]);
      const auto golden_row = std::span(prompt.logits).subspan(row_idx * vocab, vocab);
      const auto row = std::span(logits).subspan(t * vocab, vocab);
      const std::vector<double> golden = LogSoftmax(golden_row);
      const std::vector<double> actual = LogSoftmax(row);
      for (size_t i = 0; i < vocab; ++i) {
        const double difference = std::abs(double{row[i]} - double{golden_row[i]});
        // Not max(): a NaN must show.
        mismatch.max_abs_logit =
            difference <= mismatch.max_abs_logit ? mismatch.max_abs_logit : difference;
        mismatch.kl_mean += std::exp(golden[i]) * (golden[i] - actual[i]);
      }
      ++num_positions;
      if (t + 1 < prompt.ids.size()) {
        const auto next = static_cast<size_t>(prompt.ids[t + 1]);
        mismatch.dlogprob_mean += std::abs(golden[next] - actual[next]);
        ++num_predictions;
      }
    }
  }
  mismatch.kl_mean /= static_cast<double>(num_positions);
  mismatch.dlogprob_mean /= static_cast<double>(num_predictions);
  return mismatch;
}

}  // namespace octavo
