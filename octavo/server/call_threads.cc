#include "octavo/server/call_threads.h"

#include <atomic>
#include <functional>
#include <memory>
#include <thread>
#include <utility>

namespace octavo {

CallThreads::~CallThreads() {
  for (Call& call : calls_) {
    call.thread.join();
  }
}

bool CallThreads::Run(std::function<void()> task) {
  for (auto call = calls_.begin(); call != calls_.end();) {
    if (call->is_done->load()) {
      call->thread.join();
      call = calls_.erase(call);
    } else {
      ++call;
    }
  }
  if (static_cast<int>(calls_.size()) >= num_calls_max_) {
    return false;
  }
  const auto is_done = std::make_shared<std::atomic<bool>>(false);
  calls_.push_back({.thread = std::thread([task = std::move(task), is_done]() mutable {
                      std::exchange(task, nullptr)();
                      is_done->store(true);
                    }),
                    .is_done = is_done});
  return true;
}

}  // namespace octavo
