#pragma once
// RidRegistry: the request ids in flight, so that Submit can refuse a duplicate at once.

#include <cstdint>
#include <mutex>
#include <string>
#include <unordered_set>

namespace octavo {

// Thread-safe: callers insert, the engine thread erases just before the last output of a request is
// delivered, so that a client may use the id again as soon as it has its answer.
class RidRegistry {
 public:
  // False when `rid` is in flight.
  bool Insert(const std::string& rid) {
    const std::scoped_lock lock(mutex_);
    return rids_.insert(rid).second;
  }
  void Erase(const std::string& rid) {
    const std::scoped_lock lock(mutex_);
    rids_.erase(rid);
  }
  int64_t size() const {
    const std::scoped_lock lock(mutex_);
    return static_cast<int64_t>(rids_.size());
  }

 private:
  mutable std::mutex mutex_;
  std::unordered_set<std::string> rids_;  // Guarded by mutex_.
};

}  // namespace octavo
