#pragma once
// octavo_threads of the C ABI.

#include "octavo/base/thread_pool.h"

struct octavo_threads {
  explicit octavo_threads(int num_threads) : pool(num_threads) {}

  octavo::ThreadPool pool;
};

namespace octavo::capi {

// Null for null.
inline ThreadPool* PoolOf(octavo_threads* threads) {
  return threads == nullptr ? nullptr : &threads->pool;
}

}  // namespace octavo::capi
