// Method: the engine with its thread: requests and control calls from several threads at once, and
// callbacks awaited. Run under TSan this is the test of the mailbox; what the calls mean is tested
// without threads in engine_control_test.cc.

#include "octavo/engine/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <future>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {
namespace {

using testing::HasSubstr;

struct Started {
  ModelSpec spec = TinySpec();
  std::unique_ptr<Backend> packer = MakeReferenceBackend(Recipe::kServing, 1);
  std::unique_ptr<Engine> engine;

  explicit Started(EngineOptions options = {.max_total_tokens = 4096,
                                            .max_running_requests = 16,
                                            .max_queued_requests = 0,
                                            .chunk_tokens = 64,
                                            .context_length = 0,
                                            .prefix_cache = true}) {
    SetLogLevel(LogLevel::kError);
    std::unique_ptr<Backend> backend = MakeReferenceBackend(Recipe::kServing, 2);
    Result<std::unique_ptr<Engine>> started =
        Engine::Start(std::move(backend), spec, Weights(1), {2}, "v0", options);
    EXPECT_TRUE(started.has_value()) << started.error().message();
    engine = std::move(*started);
  }

  std::unique_ptr<ModelWeights> Weights(uint64_t seed) {
    return TinyWeights(spec, *packer, {.seed = seed});
  }
};

Request MakeRequest(const std::string& rid, uint64_t seed, int64_t max_new_tokens,
                    const std::shared_ptr<RecordingSink>& sink) {
  Request request = Sampled(seed, 5 + static_cast<int64_t>(seed % 60), max_new_tokens);
  request.rid = rid;
  request.stream = true;
  request.sink = sink;
  return request;
}

// Posts a call that takes a callback, and waits for it.
template <typename Post>
void Await(Post post) {
  std::promise<void> called;
  post([&] { called.set_value(); });
  called.get_future().wait();
}

Status AwaitFlush(Engine& engine, double timeout_s) {
  std::promise<Status> flushed;
  engine.Flush(timeout_s, [&](Status status) { flushed.set_value(std::move(status)); });
  return flushed.get_future().get();
}

SwapReport AwaitSwap(Engine& engine, std::unique_ptr<ModelWeights> weights,
                     const std::string& version, InFlight in_flight) {
  std::promise<SwapReport> swapped;
  engine.SwapWeights(std::move(weights), version, in_flight,
                     [&](SwapReport report, std::unique_ptr<ModelWeights> old) {
                       EXPECT_NE(old, nullptr);
                       swapped.set_value(report);
                     });
  return swapped.get_future().get();
}

TEST(Engine, AnswersConcurrentClientsAsIfEachWereAlone) {
  Started server;
  constexpr int kClients = 4;
  constexpr int kEach = 8;
  const auto seed_of = [](int client, int i) {
    return static_cast<uint64_t>(client) * kEach + static_cast<uint64_t>(i);
  };
  std::vector<std::thread> clients;
  clients.reserve(kClients);
  std::vector<std::vector<Collected>> results(kClients);
  for (int c = 0; c < kClients; ++c) {
    clients.emplace_back([&, c] {
      for (int i = 0; i < kEach; ++i) {
        const auto sink = std::make_shared<RecordingSink>();
        const uint64_t seed = seed_of(c, i);
        const Status status = server.engine->Submit(
            MakeRequest("c" + std::to_string(c) + "-" + std::to_string(i), seed, 12, sink));
        EXPECT_TRUE(status.ok()) << status.message();
        results[static_cast<size_t>(c)].push_back(sink->Wait());
      }
    });
  }
  for (std::thread& client : clients) {
    client.join();
  }
  for (int c = 0; c < kClients; ++c) {
    for (int i = 0; i < kEach; ++i) {
      Harness harness;
      const uint64_t seed = seed_of(c, i);
      const Collected alone = harness.Run(MakeRequest("", seed, 12, nullptr));
      const Collected& actual = results[static_cast<size_t>(c)][static_cast<size_t>(i)];
      EXPECT_EQ(actual.all.new_ids, alone.all.new_ids);
      EXPECT_EQ(Bits(actual.all.new_logprobs), Bits(alone.all.new_logprobs));
    }
  }
  const EngineStats stats = server.engine->Stats();
  EXPECT_EQ(stats.num_running + stats.num_queued, 0);
}

TEST(Engine, RefusesInvalidAndDuplicateRequestsAtOnce) {
  Started server;
  const auto sink = std::make_shared<RecordingSink>();
  Request bad = MakeRequest("a", 1, 10, sink);
  bad.input_ids[0] = 101;
  EXPECT_EQ(server.engine->Validate(bad).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(server.engine->Submit(std::move(bad)).code(), StatusCode::kInvalidArgument);

  Await([&](auto done) { server.engine->Pause(PauseMode::kRetract, done); });
  ASSERT_TRUE(server.engine->Submit(MakeRequest("a", 1, 10, sink)).ok());
  const Status twice = server.engine->Submit(MakeRequest("a", 2, 10, sink));
  EXPECT_EQ(twice.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(twice.message(), HasSubstr("rid"));
  Await([&](auto done) { server.engine->Continue(done); });
  EXPECT_EQ(sink->Wait().num_final, 1);
  // Answered: the rid is free again.
  const auto again = std::make_shared<RecordingSink>();
  EXPECT_TRUE(server.engine->Submit(MakeRequest("a", 1, 10, again)).ok());
  again->Wait();
}

TEST(Engine, BoundsItsQueue) {
  Started server({.max_total_tokens = 4096,
                  .max_running_requests = 16,
                  .max_queued_requests = 3,
                  .chunk_tokens = 64,
                  .context_length = 0,
                  .prefix_cache = true});
  Await([&](auto done) { server.engine->Pause(PauseMode::kAbort, done); });
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 5; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    const Status status = server.engine->Submit(
        MakeRequest("q" + std::to_string(i), static_cast<uint64_t>(i), 4, sinks.back()));
    EXPECT_EQ(status.code(), i < 3 ? StatusCode::kOk : StatusCode::kUnavailable);
  }
  const EngineStats stats = server.engine->Stats();
  EXPECT_EQ(stats.num_queued, 3);
  EXPECT_EQ(stats.num_paused, 3);
  EXPECT_TRUE(stats.paused);
  Await([&](auto done) { server.engine->Continue(done); });
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(sinks[static_cast<size_t>(i)]->Wait().all.finish.type, FinishType::kLength);
  }
}

TEST(Engine, SwapsUnderLoadWithoutLosingARequest) {
  Started server;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 24; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    ASSERT_TRUE(server.engine
                    ->Submit(MakeRequest("s" + std::to_string(i), static_cast<uint64_t>(i), 60,
                                         sinks.back()))
                    .ok());
  }
  sinks[0]->WaitForTokens(5);
  const SwapReport first = AwaitSwap(*server.engine, server.Weights(2), "v1", InFlight::kRetract);
  EXPECT_GT(first.in_flight, 0);
  EXPECT_EQ(first.retracted, first.in_flight);
  sinks[0]->WaitForTokens(20);
  AwaitSwap(*server.engine, server.Weights(3), "v2", InFlight::kInPlace);
  AwaitSwap(*server.engine, server.Weights(4), "v3", InFlight::kDrain);
  for (const auto& sink : sinks) {
    const Collected result = sink->Wait();
    EXPECT_EQ(result.num_final, 1);
    EXPECT_EQ(result.all.finish.type, FinishType::kLength);
    EXPECT_EQ(result.all.new_ids.size(), 60U);
    int64_t num_tokens = 0;
    for (size_t i = 0; i < result.all.versions.size(); ++i) {
      num_tokens += result.all.versions[i].num_tokens;
      if (i > 0) {
        EXPECT_LT(result.all.versions[i - 1].version, result.all.versions[i].version);
      }
    }
    EXPECT_EQ(num_tokens, 60);
  }
  EXPECT_EQ(server.engine->Stats().weight_version, "v3");
}

TEST(Engine, FlushWaitsForRequestsToEnd) {
  Started server;
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(server.engine->Submit(MakeRequest("f", 1, 200, sink)).ok());
  sink->WaitForTokens(1);
  EXPECT_EQ(AwaitFlush(*server.engine, 0.0).code(), StatusCode::kUnavailable);
  EXPECT_TRUE(AwaitFlush(*server.engine, 600.0).ok());
  EXPECT_TRUE(sink->finished());
}

TEST(Engine, AbortAllLeavesNothingInFlight) {
  Started server;
  std::vector<std::shared_ptr<RecordingSink>> sinks;
  for (int i = 0; i < 20; ++i) {
    sinks.push_back(std::make_shared<RecordingSink>());
    ASSERT_TRUE(server.engine
                    ->Submit(MakeRequest("x" + std::to_string(i), static_cast<uint64_t>(i), 1000,
                                         sinks.back()))
                    .ok());
  }
  sinks[0]->WaitForTokens(3);
  server.engine->Abort("x0");
  EXPECT_EQ(sinks[0]->Wait().all.finish.type, FinishType::kAbort);
  server.engine->AbortAll();
  for (const auto& sink : sinks) {
    EXPECT_EQ(sink->Wait().num_final, 1);
  }
  const EngineStats stats = server.engine->Stats();
  EXPECT_EQ(stats.num_running + stats.num_queued, 0);
}

TEST(Engine, RunsAFunctionBetweenStepsOnTheLiveWeights) {
  Started server;
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(server.engine->Submit(MakeRequest("r", 1, 100, sink)).ok());
  sink->WaitForTokens(1);
  std::promise<size_t> ran;
  server.engine->RunBetweenSteps([&](const ModelWeights& live, Backend& backend) {
    EXPECT_EQ(backend.name(), "reference/serving");
    ran.set_value(live.matrices.size());
  });
  EXPECT_EQ(ran.get_future().get(), server.spec.weights.size());
  sink->Wait();
}

TEST(Engine, DrainFinishesWhatIsThereAndRefusesMore) {
  Started server;
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(server.engine->Submit(MakeRequest("d", 1, 50, sink)).ok());
  Await([&](auto done) { server.engine->Drain(done); });
  EXPECT_EQ(sink->Get().all.finish.type, FinishType::kLength);
  const Status late = server.engine->Submit(MakeRequest("e", 1, 50, sink));
  EXPECT_EQ(late.code(), StatusCode::kUnavailable);
}

TEST(Engine, StoppingAbortsWhatIsInFlight) {
  const auto running = std::make_shared<RecordingSink>();
  const auto held = std::make_shared<RecordingSink>();
  {
    Started server;
    ASSERT_TRUE(server.engine->Submit(MakeRequest("a", 1, 1500, running)).ok());
    running->WaitForTokens(2);
    Await([&](auto done) { server.engine->Pause(PauseMode::kInPlace, done); });
    ASSERT_TRUE(server.engine->Submit(MakeRequest("b", 1, 50, held)).ok());
  }
  EXPECT_EQ(running->Get().num_final, 1);
  EXPECT_EQ(running->Get().all.finish.type, FinishType::kAbort);
  EXPECT_EQ(held->Get().num_final, 1);
}

TEST(Engine, ReportsItsFigures) {
  Started server;
  const auto sink = std::make_shared<RecordingSink>();
  ASSERT_TRUE(server.engine->Submit(MakeRequest("a", 1, 50, sink)).ok());
  sink->Wait();
  Await([&](auto done) { server.engine->SetWeightVersion("named", done); });
  const EngineStats stats = server.engine->Stats();
  EXPECT_EQ(stats.generated_tokens_total, 50);
  EXPECT_EQ(stats.prompt_tokens_total, 6);
  EXPECT_EQ(stats.num_requests_total, 1);
  EXPECT_EQ(stats.max_total_tokens, 4096);
  EXPECT_EQ(stats.max_running_requests, 16);
  EXPECT_EQ(stats.context_length, 2048);
  EXPECT_EQ(stats.used_tokens, 0);
  EXPECT_EQ(stats.weight_version, "named");
  EXPECT_GE(stats.heartbeat_age_s, 0.0);
  EXPECT_LT(stats.heartbeat_age_s, 60.0);
}

TEST(Engine, NoLongerCountsARequestWhoseEndWasTold) {
  Started server;
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    const auto sink = std::make_shared<RecordingSink>();
    ASSERT_TRUE(server.engine->Submit(MakeRequest("a", seed, 1, sink)).ok());
    sink->Wait();
    ASSERT_EQ(server.engine->Stats().num_running, 0) << "seed " << seed;
  }
}

}  // namespace
}  // namespace octavo
