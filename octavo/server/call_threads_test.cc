// Method: tasks that wait for each other, which only threads of their own can end, and one too
// many.

#include "octavo/server/call_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

namespace octavo {
namespace {

TEST(CallThreads, TasksThatWaitForEachOtherEnd) {
  std::promise<void> first;
  std::promise<void> second;
  {
    CallThreads threads(2);
    EXPECT_TRUE(threads.Run([&] { first.get_future().wait(); }));
    EXPECT_TRUE(threads.Run([&] { first.set_value(), second.set_value(); }));
  }
  second.get_future().get();
}

TEST(CallThreads, RunsNoMoreThanAllowedAndAgainWhenOneHasEnded) {
  std::promise<void> go_on;
  std::atomic<int> num_run = 0;
  {
    CallThreads threads(1);
    const std::shared_future<void> gate = go_on.get_future().share();
    EXPECT_TRUE(threads.Run([&, gate] {
      gate.wait();
      ++num_run;
    }));
    EXPECT_FALSE(threads.Run([&] { num_run = 100; }));
    go_on.set_value();
    while (!threads.Run([&] { ++num_run; })) {
      std::this_thread::yield();
    }
  }
  EXPECT_EQ(num_run, 2);
}

}  // namespace
}  // namespace octavo
