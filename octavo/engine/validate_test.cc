// Method: one valid request, and for each rule of docs/api.md the smallest change that
// breaks it; the message must name the field and what came. Values at the edge that are allowed
// are tried too.

#include "octavo/engine/validate.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <functional>
#include <limits>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"

namespace octavo {
namespace {

using testing::HasSubstr;

constexpr RequestLimits kLimits = {
    .vocab_size = 100, .context_length = 64, .max_total_tokens = 32, .has_routed_experts = false};

Request Valid() {
  Request request;
  request.rid = "r";
  request.input_ids = {1, 2, 3};
  request.sampling.max_new_tokens = 10;
  return request;
}

struct Case {
  const char* field;
  std::function<void(Request&)> change;
  const char* got;
};

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
constexpr float kInf = std::numeric_limits<float>::infinity();

TEST(ValidateRequest, RefusesByName) {
  const Case cases[] = {
      {"rid", [](Request& r) { r.rid = ""; }, "none"},
      {"input_ids", [](Request& r) { r.input_ids.clear(); }, "none"},
      {"input_ids", [](Request& r) { r.input_ids.assign(64, 1); }, "64"},
      {"input_ids[1]", [](Request& r) { r.input_ids[1] = 100; }, "100"},
      {"input_ids[2]", [](Request& r) { r.input_ids[2] = -1; }, "-1"},
      {"max_new_tokens", [](Request& r) { r.sampling.max_new_tokens = -1; }, "-1"},
      {"max_new_tokens", [](Request& r) { r.sampling.max_new_tokens = 62; }, "62"},
      {"KV pool", [](Request& r) { r.sampling.max_new_tokens = 30; }, "30"},
      {"max_new_tokens",
       [](Request& r) { r.sampling.max_new_tokens = std::numeric_limits<int64_t>::max(); },
       "9223372036854775807"},
      {"min_new_tokens", [](Request& r) { r.sampling.min_new_tokens = 11; }, "11"},
      {"min_new_tokens", [](Request& r) { r.sampling.min_new_tokens = -1; }, "-1"},
      {"temperature", [](Request& r) { r.sampling.temperature = -0.5F; }, "-0.5"},
      {"temperature", [](Request& r) { r.sampling.temperature = kNan; }, "nan"},
      {"temperature", [](Request& r) { r.sampling.temperature = kInf; }, "inf"},
      {"top_p", [](Request& r) { r.sampling.top_p = 0.0F; }, "0"},
      {"top_p", [](Request& r) { r.sampling.top_p = 1.5F; }, "1.5"},
      {"top_k", [](Request& r) { r.sampling.top_k = 0; }, "0"},
      {"top_k", [](Request& r) { r.sampling.top_k = -2; }, "-2"},
      {"min_p", [](Request& r) { r.sampling.min_p = 1.5F; }, "1.5"},
      {"min_p", [](Request& r) { r.sampling.min_p = kNan; }, "nan"},
      {"frequency_penalty", [](Request& r) { r.sampling.frequency_penalty = 2.5F; }, "2.5"},
      {"presence_penalty", [](Request& r) { r.sampling.presence_penalty = -2.5F; }, "-2.5"},
      {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 0.0F; }, "0"},
      {"repetition_penalty", [](Request& r) { r.sampling.repetition_penalty = 2.5F; }, "2.5"},
      {"stop_token_ids[0]", [](Request& r) { r.sampling.stop_token_ids = {-5}; }, "-5"},
      {"logit_bias", [](Request& r) { r.sampling.logit_bias = {{100, 1.0F}}; }, "100"},
      {"logit_bias", [](Request& r) { r.sampling.logit_bias = {{5, kInf}}; }, "inf"},
      {"logprob_start_len", [](Request& r) { r.logprob_start_len = 4; }, "4"},
      {"logprob_start_len", [](Request& r) { r.logprob_start_len = -2; }, "-2"},
      {"top_logprobs_num", [](Request& r) { r.top_logprobs_num = 101; }, "101"},
      {"top_logprobs_num", [](Request& r) { r.top_logprobs_num = -1; }, "-1"},
      {"token_ids_logprob[1]", [](Request& r) { r.token_ids_logprob = {1, 100}; }, "100"},
      {"return_routed_experts", [](Request& r) { r.return_routed_experts = true; }, "enable"},
      {"routed_experts_start_len", [](Request& r) { r.routed_experts_start_len = 4; }, "4"},
      {"routed_experts_start_len", [](Request& r) { r.routed_experts_start_len = -1; }, "-1"},
      {"stream_interval", [](Request& r) { r.stream_interval = 0; }, "0"},
  };
  for (const Case& c : cases) {
    Request request = Valid();
    c.change(request);
    const Status status = ValidateRequest(request, kLimits);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << c.field << " " << c.got;
    EXPECT_THAT(status.message(), HasSubstr(c.field));
    EXPECT_THAT(status.message(), HasSubstr(c.got));
  }
}

TEST(ValidateRequest, TakesTheEdges) {
  const std::function<void(Request&)> changes[] = {
      [](Request&) {},
      [](Request& r) { r.sampling.max_new_tokens = 0; },
      [](Request& r) { r.sampling.max_new_tokens = 29; },  // 3 + 29 = 32: the whole pool.
      [](Request& r) { r.sampling.min_new_tokens = 10; },
      [](Request& r) { r.sampling.temperature = 0.0F; },
      [](Request& r) { r.sampling.top_k = 1000; },
      [](Request& r) { r.sampling.min_p = 1.0F; },
      [](Request& r) { r.sampling.repetition_penalty = 2.0F; },
      [](Request& r) { r.sampling.frequency_penalty = -2.0F; },
      [](Request& r) { r.logprob_start_len = 3; },
      [](Request& r) { r.top_logprobs_num = 100; },
      [](Request& r) { r.sampling.seed = std::numeric_limits<int64_t>::min(); },
  };
  for (const auto& change : changes) {
    Request request = Valid();
    change(request);
    const Status status = ValidateRequest(request, kLimits);
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(ValidateRequest, TakesRoutedExpertsWhereTheyAreKept) {
  Request request = Valid();
  request.return_routed_experts = true;
  request.routed_experts_start_len = 3;
  RequestLimits limits = kLimits;
  limits.has_routed_experts = true;
  EXPECT_TRUE(ValidateRequest(request, limits).ok());
}

TEST(ValidateRequest, TakesTheWholeContext) {
  Request request = Valid();
  request.input_ids.assign(63, 1);
  request.sampling.max_new_tokens = 1;
  RequestLimits limits = kLimits;
  limits.max_total_tokens = 1000;
  EXPECT_TRUE(ValidateRequest(request, limits).ok());
  request.sampling.max_new_tokens = 2;
  EXPECT_FALSE(ValidateRequest(request, limits).ok());
}

}  // namespace
}  // namespace octavo
