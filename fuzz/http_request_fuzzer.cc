// Any bytes as what a client may send: the body of /generate, a request target, a weight bucket.
// Refused with a message, or values within their bounds; whatever the bytes, an error that quotes
// them is JSON again.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_set>

#include "octavo/base/check.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/router.h"
#include "octavo/server/weight_bucket.h"

namespace {

constexpr int64_t kVocabSize = 1000;
constexpr int64_t kContext = 4096;

void CheckItem(const octavo::GenerateItem& item) {
  const octavo::Request& request = item.request;
  CHECK(!request.input_ids.empty());
  for (const int32_t id : request.input_ids) {
    CHECK(id >= 0);
    CHECK(id < kVocabSize);
  }
  const auto prompt_len = static_cast<int64_t>(request.input_ids.size());
  CHECK(request.logprob_start_len >= -1);
  CHECK(request.logprob_start_len <= prompt_len);
  CHECK(request.stream_interval >= 1);
  CHECK(item.stop.empty());  // There is no tokenizer.
  const octavo::SamplingParams& sampling = request.sampling;
  CHECK(sampling.max_new_tokens >= 0);
  CHECK(sampling.min_new_tokens >= 0);
  CHECK(sampling.temperature >= 0.0F);
  CHECK(sampling.top_p > 0.0F);
  CHECK(sampling.top_p <= 1.0F);
  CHECK(sampling.top_k != 0);
  CHECK(sampling.repetition_penalty >= 0.0F);
}

void FuzzGenerate(std::string_view body) {
  octavo::RidSource rids(1);
  const auto call = octavo::ParseGenerate(
      body,
      {.rids = &rids, .vocab_size = kVocabSize, .context_length = kContext, .max_sequences = 64});
  if (!call.has_value()) {
    const octavo::HttpResponse response = octavo::RequestError(call.error());
    CHECK(response.status == 400);
    CHECK(octavo::ParseJson(response.body).has_value());
    return;
  }
  CHECK(!call->items.empty());
  CHECK(call->items.size() <= 64U);
  std::unordered_set<std::string> seen;
  for (const octavo::GenerateItem& item : call->items) {
    CheckItem(item);
    CHECK(seen.insert(item.request.rid).second);
  }
}

void FuzzTarget(std::string_view target) {
  const auto split = octavo::SplitTarget(target);
  if (!split.has_value()) {
    return;
  }
  (void)octavo::MatchRoute(octavo::HttpMethod::kGet, split->first);
  for (const char* key : {"timeout", "include", "update_id", "sequence"}) {
    const auto value = octavo::QueryValue(split->second, key);
    if (value.has_value()) {
      CHECK(octavo::ParseJson(octavo::PlainError(*value).body).has_value());
    }
  }
}

void FuzzBucket(std::string_view bytes) {
  const auto bucket = octavo::ParseBucket(bytes);
  if (!bucket.has_value()) {
    return;
  }
  for (const octavo::BucketTensor& tensor : bucket->tensors) {
    const auto* begin = reinterpret_cast<const std::byte*>(bytes.data());
    CHECK(tensor.view.data >= begin);
    CHECK(tensor.view.data + tensor.view.NumBytes() <= begin + bytes.size());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  FuzzGenerate(input);
  FuzzTarget(input);
  FuzzBucket(input);
  std::string quoted;
  octavo::AppendJsonString(quoted, input);
  CHECK(octavo::ParseJson(quoted).has_value());
  CHECK(quoted.find('\n') == std::string::npos);
  return 0;
}
