#pragma once
// VersionRecord: the last weight version that a replica has committed, kept in a folder, so that
// versions never go backwards, not even across a restart.

#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "octavo/base/status.h"

namespace octavo {

// What follows `version`: 7 for 6, 1 for "", and for text the text with ".1" appended.
std::string NextVersion(const std::string& version);

// Thread-safe. One process at a time has the folder.
class VersionRecord {
 public:
  // Reads DIR/weight_version.json, or begins without one; makes DIR when it is not there.
  // Errors: kUnavailable when another process has DIR; kCorrupt for a file that is not of this
  // class; kInternal. All name the path.
  static Result<std::unique_ptr<VersionRecord>> Open(const std::string& dir);
  // For Open alone.
  VersionRecord(std::string path, int lock_fd);
  ~VersionRecord();
  VersionRecord(const VersionRecord&) = delete;
  VersionRecord& operator=(const VersionRecord&) = delete;

  // Whether weights of `version` may follow those of `live`: a number must be above the largest
  // that was committed here, and above `live` when that is one. Text may always.
  // Errors: kInvalidArgument with both numbers.
  Status CheckNext(const std::string& version, const std::string& live) const;
  // From here on CheckNext admits `version` although it is the recorded one: the weights of this
  // digest, 32 hex digits, are what was committed under it, and come back from another replica.
  // Errors: kInvalidArgument when the number is below the recorded one, or equal with another
  // digest.
  Status Readmit(const std::string& version, const std::string& digest);
  // The later one of `live` and the recorded version.
  std::string Newest(const std::string& live) const;
  // What was recorded last; absent: nothing yet.
  std::optional<std::string> last() const;

  // Records weights that are about to become live, on disk before it returns.
  // Errors: kInternal naming the path; then they must not become live.
  Status Write(const std::string& version, const std::string& digest);

 private:
  struct State {
    std::string version;
    std::string digest;
    std::optional<uint64_t> number;  // The largest so far; of text the one before it.
  };
  const std::string path_;
  const int lock_fd_;

  mutable std::mutex mutex_;  // Guards what follows.
  std::optional<State> state_;
  std::optional<std::string> readmitted_;
};

}  // namespace octavo
