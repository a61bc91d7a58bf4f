#include "octavo/sync/version_record.h"

#include <fcntl.h>
#include <sys/file.h>
#include <unistd.h>

#include <cerrno>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <memory>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <system_error>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/engine/version_demand.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

constexpr int64_t kFileBytesMax = 64 << 10;

// Holds the folder until the descriptor is closed, however the process ends.
Result<int> LockFolder(const std::string& dir) {
  const std::string path = (std::filesystem::path(dir) / "lock").string();
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644);
  if (fd < 0) {
    return Internal("{}: could not open: {}", path, std::strerror(errno));
  }
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    close(fd);
    return error == EWOULDBLOCK
               ? Unavailable("{}: another server keeps its state in this folder", dir)
               : Internal("{}: could not lock: {}", path, std::strerror(error));
  }
  return fd;
}

std::optional<std::string> TextOf(const Json& json, const char* key) {
  const auto found = json.find(key);
  return found != json.end() && found->is_string() ? std::optional(found->get<std::string>())
                                                   : std::nullopt;
}

}  // namespace

std::string NextVersion(const std::string& version) {
  if (version.empty()) {
    return "1";
  }
  const std::optional<uint64_t> number = VersionNumber(version);
  return number.has_value() && *number < UINT64_MAX ? std::to_string(*number + 1) : version + ".1";
}

VersionRecord::VersionRecord(std::string path, int lock_fd)
    : path_(std::move(path)), lock_fd_(lock_fd) {}

VersionRecord::~VersionRecord() { close(lock_fd_); }

Result<std::unique_ptr<VersionRecord>> VersionRecord::Open(const std::string& dir) {
  std::error_code error;
  std::filesystem::create_directories(dir, error);
  if (error) {
    return Internal("{}: could not make the folder: {}", dir, error.message());
  }
  ASSIGN_OR_RETURN(const int lock_fd, LockFolder(dir));
  const std::string path = (std::filesystem::path(dir) / "weight_version.json").string();
  // Made first: it gives the lock back when the file is refused.
  auto record = std::make_unique<VersionRecord>(path, lock_fd);
  const Result<std::string> text = ReadTextFile(path, kFileBytesMax);
  if (!text.has_value()) {
    return text.error().code() == StatusCode::kNotFound
               ? Result<std::unique_ptr<VersionRecord>>(std::move(record))
               : text.error();
  }
  const Json json = Json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const auto refused = [&] {
    return Corrupt(
        "{}: expected {{\"weight_version\": S, \"weight_digest\": S, \"number\": S or "
        "null}}, got {} bytes of something else",
        path, text->size());
  };
  if (!json.is_object() || !json.contains("number")) {
    return refused();
  }
  const std::optional<std::string> version = TextOf(json, "weight_version");
  const std::optional<std::string> digest = TextOf(json, "weight_digest");
  if (!version.has_value() || !digest.has_value()) {
    return refused();
  }
  State state{.version = *version, .digest = *digest, .number = std::nullopt};
  if (!json["number"].is_null()) {
    state.number = VersionNumber(TextOf(json, "number").value_or("none"));
    if (!state.number.has_value()) {
      return refused();
    }
  }
  record->state_ = std::move(state);
  return record;
}

Status VersionRecord::CheckNext(const std::string& version, const std::string& live) const {
  const std::optional<uint64_t> number = VersionNumber(version);
  const std::lock_guard lock(mutex_);
  if (!number.has_value() || version == readmitted_) {
    return OkStatus();
  }
  if (state_.has_value() && state_->number.has_value() && *number <= *state_->number) {
    return InvalidArgument(
        "weight version {}: expected one above {}, which was committed here ({})", *number,
        *state_->number, path_);
  }
  const std::optional<uint64_t> live_number = VersionNumber(live);
  if (live_number.has_value() && *number <= *live_number) {
    return InvalidArgument("weight version {}: expected one above {}, which is live", *number,
                           *live_number);
  }
  return OkStatus();
}

Status VersionRecord::Readmit(const std::string& version, const std::string& digest) {
  const std::optional<uint64_t> number = VersionNumber(version);
  const std::lock_guard lock(mutex_);
  if (number.has_value() && state_.has_value() && state_->number.has_value()) {
    if (*number < *state_->number) {
      return InvalidArgument("weight version {}: this replica has committed {} before ({})",
                             *number, *state_->number, path_);
    }
    if (*number == *state_->number && version == state_->version && digest != state_->digest) {
      return InvalidArgument(
          "weight version {}: this replica has committed weights of digest {} under it ({}), and "
          "these have {}",
          *number, state_->digest, path_, digest);
    }
  }
  readmitted_ = version;
  return OkStatus();
}

std::string VersionRecord::Newest(const std::string& live) const {
  const std::optional<uint64_t> live_number = VersionNumber(live);
  const std::lock_guard lock(mutex_);
  if (!state_.has_value() || !state_->number.has_value()) {
    return live;
  }
  const bool is_live_later = live_number.has_value() && *live_number > *state_->number;
  return is_live_later ? live : std::to_string(*state_->number);
}

std::optional<std::string> VersionRecord::last() const {
  const std::lock_guard lock(mutex_);
  return state_.has_value() ? std::optional(state_->version) : std::nullopt;
}

Status VersionRecord::Write(const std::string& version, const std::string& digest) {
  const std::lock_guard lock(mutex_);
  State state{.version = version, .digest = digest, .number = VersionNumber(version)};
  if (!state.number.has_value() && state_.has_value()) {
    state.number = state_->number;
  }
  Json json = {{"weight_version", version}, {"weight_digest", digest}, {"number", nullptr}};
  if (state.number.has_value()) {
    json["number"] = std::to_string(*state.number);
  }
  RETURN_IF_ERROR(WriteTextFile(
      path_, json.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace) + "\n"));
  state_ = std::move(state);
  readmitted_.reset();
  return OkStatus();
}

}  // namespace octavo
