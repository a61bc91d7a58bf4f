// Method: the program's allocation functions are replaced by ones that count while a flag is set.
// Steps in which every sequence decodes must not allocate, with and without logprobs, penalties and
// filters, and across page borders; a step that delivers an output must, so that the counter is
// known to count.

#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <utility>

#include "octavo/engine/engine_core.h"
#include "octavo/engine/request.h"
#include "octavo/engine/test_support.h"

namespace {

// Guarded by nothing: workers of the pool count too.
std::atomic<bool> counting = false;
std::atomic<int64_t> num_allocations = 0;

void* CountedAllocate(std::size_t size, std::size_t alignment) {
  if (counting.load(std::memory_order_relaxed)) {
    num_allocations.fetch_add(1, std::memory_order_relaxed);
  }
  void* memory = nullptr;
  const std::size_t bytes = size == 0 ? 1 : size;
  if (alignment <= alignof(std::max_align_t)) {
    memory = std::malloc(bytes);
  } else {
    memory = std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  }
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}

}  // namespace

// The replaceable forms from which the others are derived ([new.delete.single],
// [new.delete.array]).
void* operator new(std::size_t size) { return CountedAllocate(size, 0); }
void* operator new(std::size_t size, std::align_val_t alignment) {
  return CountedAllocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* memory) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::align_val_t) noexcept { std::free(memory); }
void operator delete(void* memory, std::size_t, std::align_val_t) noexcept { std::free(memory); }

namespace octavo {
namespace {

// Allocations of `count` steps.
int64_t CountSteps(EngineCore& core, int count) {
  num_allocations = 0;
  for (int i = 0; i < count; ++i) {
    counting = true;
    core.AtBoundary();
    const bool ran = core.Step();
    counting = false;
    EXPECT_TRUE(ran);
  }
  return num_allocations;
}

Request Decoding(uint64_t seed) {
  Request request;
  request.input_ids = RandomIds(seed, 10 + static_cast<int64_t>(seed));
  request.sampling.max_new_tokens = 200;
  request.sampling.ignore_eos = true;
  request.return_logprob = true;
  if (seed % 2 == 1) {
    request.sampling.top_p = 0.9F;
    request.sampling.top_k = 20;
    request.sampling.frequency_penalty = 0.5F;
    request.sampling.logit_bias = {{3, 1.0F}};
    request.sampling.temperature = 0.8F;
  }
  return request;
}

class DecodeSteps : public testing::TestWithParam<bool> {};

TEST_P(DecodeSteps, AllocateNothing) {
  HarnessOptions options;
  options.cpu = GetParam();
  options.num_threads = 2;
  Harness harness(options);
  for (uint64_t seed = 0; seed < 8; ++seed) {
    harness.Add(Decoding(seed));
  }
  harness.Steps(10);  // All prompts are in, and every buffer has been used.
  EXPECT_EQ(CountSteps(harness.core(), 150), 0);  // Four or five page borders each.
}

TEST_P(DecodeSteps, TheCounterSeesAnOutputBeingDelivered) {
  HarnessOptions options;
  options.cpu = GetParam();
  Harness harness(options);
  Request streaming = Decoding(0);
  streaming.stream = true;
  harness.Add(std::move(streaming));
  harness.Steps(2);
  EXPECT_GT(CountSteps(harness.core(), 1), 0);
}

INSTANTIATE_TEST_SUITE_P(Engine, DecodeSteps, testing::Bool(),
                         [](const auto& info) { return info.param ? "Cpu" : "Reference"; });

}  // namespace
}  // namespace octavo
