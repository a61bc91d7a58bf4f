#pragma once
// Files: read-only mappings, whole-file reads, and writes that are never half done.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// A file mapped read-only. Move-only; const is thread-safe. A file that another process truncates
// while it is mapped raises SIGBUS on access, as with any mapping.
class MappedFile {
 public:
  MappedFile() = default;
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  // Errors: kNotFound, kInvalidArgument (not a regular file), kInternal; all name the path.
  static Result<MappedFile> Open(const std::string& path);

  std::span<const std::byte> bytes() const { return {data_, num_bytes_}; }
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  const std::byte* data_ = nullptr;
  size_t num_bytes_ = 0;
};

// Hints about bytes of a MappedFile, at any alignment; never wrong, only useful or not. WillRead
// starts to read them from disk; DoneReading gives back the mapped pages that lie wholly inside
// (they stay in the page cache).
void WillRead(std::span<const std::byte> mapped);
void DoneReading(std::span<const std::byte> mapped);

// The whole file as text. Errors: kNotFound, kExhausted when longer than `max_bytes`, kInternal.
Result<std::string> ReadTextFile(const std::string& path, int64_t max_bytes = int64_t{256} << 20);

// Writes PATH.tmp-PID, then fsync and rename on Commit: readers see the old file or the whole new
// one. Destroyed without Commit, it removes the temporary. One thread.
class AtomicFile {
 public:
  AtomicFile() = default;
  AtomicFile(AtomicFile&& other) noexcept;
  AtomicFile& operator=(AtomicFile&& other) noexcept;
  ~AtomicFile();

  static Result<AtomicFile> Create(const std::string& path);
  Status Append(std::span<const std::byte> bytes);
  Status Append(std::string_view text);
  // Writes at a place of its own, which may lie beyond what was written so far; Append still goes
  // on where it stopped. Several threads may call this at a time.
  Status WriteAt(int64_t offset_bytes, std::span<const std::byte> bytes) const;
  // Asks the system to begin writing a range to disk, so that Commit has less to wait for. Blocks
  // while the disk's queue is full. Only a hint. Thread-safe beside WriteAt.
  void StartWriteBack(int64_t offset_bytes, int64_t num_bytes) const;
  // Flushes to disk, renames over the final path and syncs the directory.
  Status Commit();

 private:
  void Discard();

  std::string path_;
  std::string temporary_;
  int fd_ = -1;
};

Status WriteTextFile(const std::string& path, std::string_view text);

}  // namespace octavo
