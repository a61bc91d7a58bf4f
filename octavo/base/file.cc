#include "octavo/base/file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

Status ErrnoStatus(std::string_view action, const std::string& path) {
  const int error = errno;
  const StatusCode code = error == ENOENT   ? StatusCode::kNotFound
                          : error == ENOSPC ? StatusCode::kExhausted
                                            : StatusCode::kInternal;
  return {code, fmt::format("{}: {}: {}", path, action, strerror(error))};
}

Status SyncDirectoryOf(const std::string& path) {
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const int fd = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    return ErrnoStatus("could not open its directory", path);
  }
  const int result = fsync(fd);
  close(fd);
  return result == 0 ? OkStatus() : ErrnoStatus("could not sync its directory", path);
}

// Linux moves at most 0x7ffff000 bytes a call.
constexpr size_t kMaxWriteBytes = size_t{1} << 30;

}  // namespace

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)),
      data_(std::exchange(other.data_, nullptr)),
      num_bytes_(std::exchange(other.num_bytes_, 0)) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(data_, other.data_);
  std::swap(num_bytes_, other.num_bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) {
    munmap(const_cast<std::byte*>(data_), num_bytes_);
  }
}

Result<MappedFile> MappedFile::Open(const std::string& path) {
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return ErrnoStatus("could not open", path);
  }
  struct stat info{};
  if (fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) {
    close(fd);
    return InvalidArgument("{}: expected a regular file", path);
  }
  MappedFile file;
  file.path_ = path;
  file.num_bytes_ = static_cast<size_t>(info.st_size);
  if (file.num_bytes_ > 0) {
    void* memory = mmap(nullptr, file.num_bytes_, PROT_READ, MAP_SHARED, fd, 0);
    if (memory == MAP_FAILED) {
      const Status status = ErrnoStatus("could not map", path);
      close(fd);
      return status;
    }
    file.data_ = static_cast<const std::byte*>(memory);
  }
  close(fd);
  return file;
}

void WillRead(std::span<const std::byte> mapped) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(mapped.data());
  const uintptr_t begin = address / page * page;
  if (!mapped.empty()) {
    madvise(reinterpret_cast<void*>(begin), address + mapped.size() - begin, MADV_WILLNEED);
  }
}

void DoneReading(std::span<const std::byte> mapped) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(mapped.data());
  const uintptr_t begin = (address + page - 1) / page * page;
  const uintptr_t end = (address + mapped.size()) / page * page;
  if (begin < end) {
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED);
  }
}

Result<std::string> ReadTextFile(const std::string& path, int64_t max_bytes) {
  // Read, not mapped: files under /proc have no size.
  const int fd = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return ErrnoStatus("could not open", path);
  }
  std::string text;
  std::array<char, 65536> piece;
  ssize_t count = 0;
  while ((count = read(fd, piece.data(), piece.size())) != 0) {
    if (count < 0 && errno == EINTR) {
      continue;
    }
    if (count < 0) {
      const Status status = ErrnoStatus("could not read", path);
      close(fd);
      return status;
    }
    text.append(piece.data(), static_cast<size_t>(count));
    if (static_cast<int64_t>(text.size()) > max_bytes) {
      close(fd);
      return Exhausted("{}: expected at most {} bytes, got more", path, max_bytes);
    }
  }
  close(fd);
  return text;
}

AtomicFile::AtomicFile(AtomicFile&& other) noexcept
    : path_(std::move(other.path_)),
      temporary_(std::move(other.temporary_)),
      fd_(std::exchange(other.fd_, -1)) {}

AtomicFile& AtomicFile::operator=(AtomicFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(temporary_, other.temporary_);
  std::swap(fd_, other.fd_);
  return *this;
}

AtomicFile::~AtomicFile() { Discard(); }

void AtomicFile::Discard() {
  if (fd_ >= 0) {
    close(fd_);
    unlink(temporary_.c_str());
    fd_ = -1;
  }
}

Result<AtomicFile> AtomicFile::Create(const std::string& path) {
  AtomicFile file;
  file.path_ = path;
  file.temporary_ = fmt::format("{}.tmp-{}", path, getpid());
  file.fd_ = open(file.temporary_.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file.fd_ < 0) {
    return ErrnoStatus("could not create", file.temporary_);
  }
  return file;
}

Status AtomicFile::Append(std::span<const std::byte> bytes) {
  CHECK(fd_ >= 0);
  while (!bytes.empty()) {
    const ssize_t written = write(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes));
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      return ErrnoStatus("could not write", temporary_);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
  }
  return OkStatus();
}

Status AtomicFile::Append(std::string_view text) {
  return Append(std::as_bytes(std::span(text.data(), text.size())));
}

Status AtomicFile::WriteAt(int64_t offset_bytes, std::span<const std::byte> bytes) const {
  CHECK(fd_ >= 0);
  while (!bytes.empty()) {
    const ssize_t written =
        pwrite(fd_, bytes.data(), std::min(bytes.size(), kMaxWriteBytes), offset_bytes);
    if (written < 0) {
      if (errno == EINTR) {
        continue;
      }
      return ErrnoStatus("could not write", temporary_);
    }
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset_bytes += written;
  }
  return OkStatus();
}

void AtomicFile::StartWriteBack(int64_t offset_bytes, int64_t num_bytes) const {
  CHECK(fd_ >= 0);
  sync_file_range(fd_, offset_bytes, num_bytes, SYNC_FILE_RANGE_WRITE);
}

Status AtomicFile::Commit() {
  CHECK(fd_ >= 0);
  if (fsync(fd_) != 0) {
    return ErrnoStatus("could not sync", temporary_);
  }
  if (close(std::exchange(fd_, -1)) != 0) {
    const Status status = ErrnoStatus("could not close", temporary_);
    unlink(temporary_.c_str());
    return status;
  }
  if (rename(temporary_.c_str(), path_.c_str()) != 0) {
    const Status status = ErrnoStatus("could not rename into place", path_);
    unlink(temporary_.c_str());
    return status;
  }
  return SyncDirectoryOf(path_);
}

Status WriteTextFile(const std::string& path, std::string_view text) {
  ASSIGN_OR_RETURN(AtomicFile file, AtomicFile::Create(path));
  RETURN_IF_ERROR(file.Append(text));
  return file.Commit();
}

}  // namespace octavo
