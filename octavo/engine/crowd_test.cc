// Method: 16,384 requests wait at once, in groups of 64 with one prompt, while generation is
// paused; then it goes on, on a pool of few pages so that the crowd is admitted in many waves, and
// some are aborted in the middle. Each request is answered once; each prompt is computed about once
// for its group; a sample of the answers is compared with the same request alone.

#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

constexpr int64_t kRequests = 16384;
constexpr int64_t kGroupSize = 64;
constexpr int64_t kPromptLen = 40;
constexpr EngineOptions kOptions = {.max_total_tokens = 16384,
                                    .max_running_requests = 256,
                                    .max_queued_requests = 0,
                                    .chunk_tokens = 256,
                                    .context_length = 0,
                                    .prefix_cache = true};

std::string RidOf(int64_t i) { return "crowd-" + std::to_string(i); }

Request MakeMember(int64_t i, std::shared_ptr<RecordingSink> sink) {
  Request request = Sampling(RandomIds(static_cast<uint64_t>(i / kGroupSize), kPromptLen), i, 2);
  request.rid = RidOf(i);
  request.sink = std::move(sink);
  return request;
}

bool IsAborted(int64_t i) { return i % 1000 == 999; }

TEST(Crowd, OfSixteenThousandIsServedWithoutLoss) {
  SetLogLevel(LogLevel::kError);
  const ModelSpec spec = TinySpec();
  std::unique_ptr<Backend> backend = MakeCpuBackend(BestIsa(), 2).value();
  std::unique_ptr<ModelWeights> weights = TinyWeights(spec, *backend, {});
  const std::unique_ptr<Engine> engine =
      Engine::Start(std::move(backend), spec, std::move(weights), {2}, "v0", kOptions).value();
  std::promise<void> paused;
  engine->Pause(PauseMode::kRetract, [&] { paused.set_value(); });
  paused.get_future().wait();
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int64_t i = 0; i < kRequests; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    const Status status = engine->Submit(MakeMember(i, sinks.back()));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  engine->Continue([] {});
  for (int64_t i = 0; i < kRequests; ++i) {
    if (IsAborted(i)) {
      engine->Abort(RidOf(i));
    }
  }
  int64_t num_aborted = 0;
  for (int64_t i = 0; i < kRequests; ++i) {
    const Collected answer = sinks[static_cast<size_t>(i)]->Wait();
    ASSERT_EQ(answer.num_final, 1) << i;
    if (answer.all.finish.type == FinishType::kAbort) {
      EXPECT_TRUE(IsAborted(i)) << i;
      ++num_aborted;
      continue;
    }
    ASSERT_EQ(answer.all.new_ids.size(), 2U) << i;
    if (i % 487 == 0) {
      HarnessOptions options;
      options.cpu = true;
      Harness alone(options);
      const Collected expected = alone.Run(MakeMember(i, nullptr));
      EXPECT_EQ(answer.all.new_ids, expected.all.new_ids) << i;
      EXPECT_EQ(Bits(answer.all.new_logprobs), Bits(expected.all.new_logprobs)) << i;
    }
  }
  EXPECT_GT(num_aborted, 0);
  const EngineStats stats = engine->Stats();
  EXPECT_EQ(stats.num_running + stats.num_queued, 0);
  // The full page of a prompt is computed once for its group; the rest of 8 tokens by each.
  EXPECT_GE(stats.cached_tokens_total, (kRequests - num_aborted - kRequests / kGroupSize) * 32);
}

}  // namespace
}  // namespace octavo
