#pragma once
// What a conversion leaves to the disk while it computes: writing back what is written so far, and
// syncing a finished file while the next one is made.

#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <optional>
#include <thread>

#include "octavo/base/status.h"
#include "octavo/checkpoint/writer.h"

namespace octavo {

// Starts write-back of a growing file from a thread of its own, for the call blocks while the
// disk's queue is full. Without it all of a file would be dirty when Commit syncs it. The writer
// must outlive this. Thread-safe.
class WriteBack {
 public:
  explicit WriteBack(const ShardWriter& writer);
  ~WriteBack();  // Waits for a call under way, not for the disk.
  WriteBack(const WriteBack&) = delete;
  WriteBack& operator=(const WriteBack&) = delete;

  // Everything before `end_bytes` in the file is written and will not change.
  void Advance(int64_t end_bytes);

 private:
  void Loop();

  const ShardWriter& writer_;
  std::mutex mutex_;
  std::condition_variable changed_;
  int64_t target_ = 0;     // Guarded by mutex_: write-back is wanted up to here.
  bool stopping_ = false;  // Guarded by mutex_.
  std::thread thread_;
};

// Commits files one behind the other on a thread of its own. One thread calls.
class Committer {
 public:
  Committer() = default;
  ~Committer();
  Committer(const Committer&) = delete;
  Committer& operator=(const Committer&) = delete;

  // Begins to commit `writer`, after the one before it is done. Errors: those of that one.
  Status Submit(ShardWriter writer);
  // Waits for the last one. Errors: its own.
  Status Wait();

 private:
  std::optional<ShardWriter> writer_;
  Status status_;
  std::thread thread_;
};

}  // namespace octavo
