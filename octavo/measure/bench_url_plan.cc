#include "octavo/measure/bench_url_plan.h"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <utility>
#include <vector>

#include "octavo/measure/numpy_random.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

std::vector<int64_t> DrawLengths(NumpyRandom& random, const PlanOptions& options, int64_t longest) {
  const auto shortest = std::max<int64_t>(
      static_cast<int64_t>(static_cast<double>(longest) * options.range_ratio), 1);
  std::vector<int64_t> lengths(static_cast<size_t>(options.num_prompts));
  for (int64_t& length : lengths) {
    length = random.Integer(shortest, longest + 1);
  }
  return lengths;
}

Json NativeBody(Json prompt, bool is_text, int64_t output_len) {
  return {{is_text ? "text" : "input_ids", std::move(prompt)},
          {"sampling_params",
           {{"temperature", 0.0}, {"max_new_tokens", output_len}, {"ignore_eos", true}}},
          {"stream", true},
          {"lora_path", nullptr},
          {"return_logprob", false},
          {"return_routed_experts", false},
          {"logprob_start_len", -1}};
}

}  // namespace

std::vector<PlannedRequest> PlanRequests(const PlanOptions& options) {
  NumpyRandom random(options.seed);
  const std::vector<int64_t> inputs = DrawLengths(random, options, options.input_len);
  const std::vector<int64_t> outputs = DrawLengths(random, options, options.output_len);
  std::vector<PlannedRequest> requests(inputs.size());
  for (size_t i = 0; i < requests.size(); ++i) {
    requests[i].input_len = std::max<int64_t>(inputs[i] - options.num_special_tokens, 1);
    requests[i].output_len = outputs[i];
    requests[i].offset = random.Integer(0, options.vocab_size);
  }
  if (std::isfinite(options.request_rate)) {
    double time_s = 0.0;
    for (PlannedRequest& request : requests) {
      request.send_after_s = time_s;
      request.gap_s = random.Exponential(1.0 / options.request_rate);
      time_s += request.gap_s;
    }
  }
  return requests;
}

std::vector<int32_t> PromptIds(const PlannedRequest& request, int64_t request_idx,
                               int64_t vocab_size) {
  std::vector<int32_t> ids(static_cast<size_t>(request.input_len));
  for (size_t j = 0; j < ids.size(); ++j) {
    const int64_t sum = request.offset + request_idx + static_cast<int64_t>(j);
    ids[j] = static_cast<int32_t>(sum % vocab_size);
  }
  return ids;
}

std::string BenchBody(BenchBackend backend, const BenchPrompt& prompt, int64_t output_len,
                      const std::string& model) {
  const bool is_text = prompt.tokenizer != nullptr;
  Json sent = is_text ? Json(prompt.tokenizer->Decode(prompt.ids, /*skip_special_tokens=*/false))
                      : Json(prompt.ids);
  Json body;
  switch (backend) {
    case BenchBackend::kNative:
      body = NativeBody(std::move(sent), is_text, output_len);
      break;
    case BenchBackend::kCompletions:
      body = {{"model", model},    {"prompt", std::move(sent)},
              {"best_of", 1},      {"max_tokens", output_len},
              {"stream", true},    {"temperature", 0.0},
              {"ignore_eos", true}};
      break;
    case BenchBackend::kChat:
      body = {{"model", model},
              {"messages", Json::array({{{"role", "user"}, {"content", std::move(sent)}}})},
              {"max_completion_tokens", output_len},
              {"stream", true},
              {"temperature", 0.0},
              {"ignore_eos", true}};
      break;
  }
  // A decoded text is UTF-8; nothing is replaced.
  return body.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
}

}  // namespace octavo
