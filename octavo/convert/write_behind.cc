#include "octavo/convert/write_behind.h"

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <thread>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/checkpoint/writer.h"

namespace octavo {

WriteBack::WriteBack(const ShardWriter& writer) : writer_(writer), thread_([this] { Loop(); }) {}

WriteBack::~WriteBack() {
  {
    const std::lock_guard lock(mutex_);
    stopping_ = true;
  }
  changed_.notify_one();
  thread_.join();
}

void WriteBack::Advance(int64_t end_bytes) {
  {
    const std::lock_guard lock(mutex_);
    target_ = std::max(target_, end_bytes);
  }
  changed_.notify_one();
}

void WriteBack::Loop() {
  int64_t done = 0;
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [&] { return stopping_ || target_ > done; });
    if (stopping_) {
      return;
    }
    const int64_t end = target_;
    lock.unlock();
    writer_.StartWriteBack(done, end - done);
    done = end;
    lock.lock();
  }
}

Committer::~Committer() {
  if (thread_.joinable()) {
    thread_.join();
  }
}

Status Committer::Submit(ShardWriter writer) {
  RETURN_IF_ERROR(Wait());
  writer_ = std::move(writer);
  thread_ = std::thread([this] { status_ = writer_->Commit(); });
  return OkStatus();
}

Status Committer::Wait() {
  if (thread_.joinable()) {
    thread_.join();
    writer_.reset();
  }
  return std::exchange(status_, OkStatus());
}

}  // namespace octavo
