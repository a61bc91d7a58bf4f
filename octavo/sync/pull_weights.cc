#include "octavo/sync/pull_weights.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <span>
#include <string>
#include <system_error>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/sync/weight_delta.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using Clock = std::chrono::steady_clock;

std::string StatePath(const std::string& local_dir) {
  return local_dir + "/.weight_sync/state.json";
}
std::string SwitchPath(const std::string& local_dir) {
  return local_dir + "/.weight_sync/switch.json";
}
std::string NextDir(const std::string& local_dir) { return local_dir + "/.weight_sync/next"; }

// Held until destroyed. Move-only.
class FolderLock {
 public:
  static Result<FolderLock> Take(const std::string& local_dir, double timeout_s);
  FolderLock(FolderLock&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  FolderLock& operator=(FolderLock&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~FolderLock() {
    if (fd_ >= 0) {
      close(fd_);
    }
  }

 private:
  explicit FolderLock(int fd) : fd_(fd) {}
  int fd_ = -1;
};

Result<FolderLock> FolderLock::Take(const std::string& local_dir, double timeout_s) {
  const std::string path = local_dir + "/.weight_sync/lock";
  std::error_code error;
  fs::create_directories(local_dir + "/.weight_sync", error);
  const int fd = open(path.c_str(), O_CREAT | O_RDWR | O_CLOEXEC, 0644);
  if (fd < 0) {
    return Internal("{}: could not open it: {}", path, strerror(errno));
  }
  FolderLock lock(fd);
  const Clock::time_point start = Clock::now();
  while (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (std::chrono::duration<double>(Clock::now() - start).count() >= timeout_s) {
      return Unavailable("{}: another engine has held it for {:.0f} s", path, timeout_s);
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  return lock;
}

// "000007"; nullopt for anything else.
std::optional<int64_t> VersionOf(const nlohmann::json& value) {
  if (!value.is_string()) {
    return std::nullopt;
  }
  const auto version = value.get<std::string>();
  int64_t number = 0;
  const char* end = version.data() + version.size();
  const auto [stop, error] = std::from_chars(version.data(), end, number);
  return error == std::errc() && stop == end && number >= 0 ? std::optional(number) : std::nullopt;
}

// The version that the folder holds; nullopt when it is not known, which a whole version mends.
std::optional<int64_t> ReadState(const std::string& local_dir) {
  const Result<std::string> text = ReadTextFile(StatePath(local_dir));
  if (!text.has_value()) {
    return std::nullopt;
  }
  const auto state = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  if (!state.is_object() || !state.contains("version")) {
    return std::nullopt;
  }
  return VersionOf(state["version"]);
}

// What leads to the target: a whole version to copy, if any, and deltas in order.
struct Chain {
  std::optional<int64_t> seed;
  std::vector<WeightDelta> deltas;
  std::vector<int64_t> versions;  // Of the deltas.
};

Result<Chain> PlanChain(const PullOptions& options, std::optional<int64_t> applied) {
  const bool can_go_on = applied.has_value() && *applied <= options.target_version;
  const int64_t floor = can_go_on ? *applied : 0;
  Chain chain;
  int64_t start = options.target_version;
  for (; start > floor; --start) {
    ASSIGN_OR_RETURN(std::optional<WeightDelta> delta,
                     WeightDelta::Open(WeightVersionDir(options.source_dir, start), start));
    if (!delta.has_value()) {
      break;
    }
    if (delta->base_version() != start - 1) {
      return Corrupt("{}: builds on version {}, expected {}",
                     WeightVersionDir(options.source_dir, start), delta->base_version(), start - 1);
    }
    chain.deltas.insert(chain.deltas.begin(), std::move(*delta));
    chain.versions.insert(chain.versions.begin(), start);
  }
  if (!can_go_on || start > floor) {
    chain.seed = start;
  }
  return chain;
}

// One regular file of the folder that the new content comes from.
struct SourceFile {
  std::string name;
  MappedFile bytes;
  std::optional<AtomicFile> written;  // Its successor.
};

// A weight that deltas change.
struct Patched {
  std::string name;
  size_t file_idx = 0;
  int64_t offset = 0;  // In the file.
  std::span<const std::byte> bytes;
};

class Puller {
 public:
  Puller(const PullOptions& options, Chain chain, std::string source_dir)
      : options_(options), chain_(std::move(chain)), source_dir_(std::move(source_dir)) {}

  // Reads, patches and checks everything.
  Status Prepare();
  // Renames, and says what the folder is now.
  Status Commit();

  int64_t num_tensors() const { return static_cast<int64_t>(patched_.size()); }
  int64_t bytes_written() const { return bytes_written_; }

 private:
  Status OpenFiles();
  Status FindPatched();
  Status StartFile(SourceFile* file);
  Status PatchAll();
  Status Patch(const Patched& patched, std::vector<std::byte>* bytes,
               std::vector<std::byte>* scratch) const;

  const PullOptions& options_;
  const Chain chain_;
  const std::string source_dir_;
  std::vector<SourceFile> files_;
  std::vector<Patched> patched_;
  int64_t bytes_written_ = 0;
};

Status Puller::OpenFiles() {
  std::error_code error;
  fs::directory_iterator entry(source_dir_, error);
  bool has_weights = false;
  for (const fs::directory_iterator end; !error && entry != end; entry.increment(error)) {
    std::error_code ignored;
    const std::string name = entry->path().filename().string();
    if (!entry->is_regular_file(ignored) || name.find(".tmp-") != std::string::npos) {
      continue;
    }
    ASSIGN_OR_RETURN(MappedFile bytes, MappedFile::Open(entry->path().string()));
    files_.push_back({.name = name, .bytes = std::move(bytes), .written = {}});
    has_weights = has_weights || name.ends_with(".safetensors");
  }
  if (error) {
    return NotFound("{}: {}", source_dir_, error.message());
  }
  return has_weights ? OkStatus()
                     : NotFound("{}: expected a checkpoint, got no *.safetensors", source_dir_);
}

// Where each weight that a delta names lies. A header counts once.
Status Puller::FindPatched() {
  std::map<std::string, Patched> places;
  for (size_t i = 0; i < files_.size(); ++i) {
    if (!files_[i].name.ends_with(".safetensors")) {
      continue;
    }
    const Result<SafetensorsHeader> header = ParseSafetensorsHeader(files_[i].bytes.bytes());
    if (!header.has_value()) {
      return header.error().WithContext(files_[i].bytes.path());
    }
    for (const SafetensorsEntry& entry : header->entries) {
      const int64_t offset = header->buffer_offset_bytes + entry.begin_bytes;
      const auto size = static_cast<size_t>(entry.end_bytes - entry.begin_bytes);
      const bool is_new = places
                              .emplace(entry.name, Patched{.name = entry.name,
                                                           .file_idx = i,
                                                           .offset = offset,
                                                           .bytes = files_[i].bytes.bytes().subspan(
                                                               static_cast<size_t>(offset), size)})
                              .second;
      if (!is_new) {
        return Corrupt("{}: {} stands in two files", source_dir_, entry.name);
      }
    }
  }
  std::set<std::string> names;
  for (size_t i = 0; i < chain_.deltas.size(); ++i) {
    for (const auto& [name, change] : chain_.deltas[i].changes()) {
      const auto place = places.find(name);
      if (place == places.end()) {
        return Corrupt("{}: {}: {} has no such tensor",
                       WeightVersionDir(options_.source_dir, chain_.versions[i]), name,
                       source_dir_);
      }
      if (names.insert(name).second) {
        patched_.push_back(place->second);
      }
    }
  }
  return OkStatus();
}

// The file's successor, not patched yet.
Status Puller::StartFile(SourceFile* file) {
  if (file->written.has_value()) {
    return OkStatus();
  }
  ASSIGN_OR_RETURN(AtomicFile written,
                   AtomicFile::Create(NextDir(options_.local_dir) + "/" + file->name));
  RETURN_IF_ERROR(written.Append(file->bytes.bytes()));
  bytes_written_ += static_cast<int64_t>(file->bytes.bytes().size());
  file->written = std::move(written);
  return OkStatus();
}

// All deltas, one after the other; each has the checksum of what the weight becomes.
Status Puller::Patch(const Patched& patched, std::vector<std::byte>* bytes,
                     std::vector<std::byte>* scratch) const {
  bytes->assign(patched.bytes.begin(), patched.bytes.end());
  for (const WeightDelta& delta : chain_.deltas) {
    if (delta.changes().contains(patched.name)) {
      RETURN_IF_ERROR(delta.Apply(patched.name, *bytes, scratch));
    }
  }
  return files_[patched.file_idx].written->WriteAt(patched.offset, *bytes);
}

// Shares the machine with serving, as staging does.
Status Puller::PatchAll() {
  ThreadPool pool(std::max(1, NumUsableThreads() / 2));
  std::mutex mutex;
  Status first;
  pool.ParallelFor(num_tensors(), [&](int64_t begin, int64_t end, int) {
    std::vector<std::byte> bytes;
    std::vector<std::byte> scratch;
    for (int64_t i = begin; i < end; ++i) {
      const Status status = Patch(patched_[static_cast<size_t>(i)], &bytes, &scratch);
      if (!status.ok()) {
        const std::lock_guard lock(mutex);
        first = first.ok() ? status : first;
        return;
      }
    }
  });
  return first;
}

Status Puller::Prepare() {
  // What an earlier pull left there never became anything: ResumeSwitch has looked.
  std::error_code error;
  fs::remove_all(NextDir(options_.local_dir), error);
  fs::create_directories(NextDir(options_.local_dir), error);
  if (error) {
    return Internal("{}: {}", NextDir(options_.local_dir), error.message());
  }
  RETURN_IF_ERROR(OpenFiles());
  RETURN_IF_ERROR(FindPatched());
  for (const Patched& patched : patched_) {
    RETURN_IF_ERROR(StartFile(&files_[patched.file_idx]));
  }
  if (chain_.seed.has_value()) {
    for (SourceFile& file : files_) {
      RETURN_IF_ERROR(StartFile(&file));
    }
  }
  return PatchAll();
}

// --- The switch of files ------------------------------------------------------------------------

Status SyncFolder(const std::string& dir) {
  const int fd = open(dir.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) {
    return Internal("{}: could not open it: {}", dir, strerror(errno));
  }
  const bool is_synced = fsync(fd) == 0;
  const int error = errno;
  close(fd);
  return is_synced ? OkStatus() : Internal("{}: could not sync it: {}", dir, strerror(error));
}

Status RemoveFile(const std::string& path) {
  std::error_code error;
  fs::remove(path, error);
  return error ? Internal("{}: {}", path, error.message()) : OkStatus();
}

// Regular files of the folder other than `keep`.
Status RemoveOthers(const std::string& dir, const std::set<std::string>& keep) {
  std::error_code error;
  std::vector<fs::path> others;
  for (fs::directory_iterator entry(dir, error), end; !error && entry != end;
       entry.increment(error)) {
    std::error_code ignored;
    if (entry->is_regular_file(ignored) && !keep.contains(entry->path().filename().string())) {
      others.push_back(entry->path());
    }
  }
  for (const fs::path& path : others) {
    fs::remove(path, error);
  }
  return error ? Internal("{}: {}", dir, error.message()) : OkStatus();
}

// What switch.json says.
struct Switch {
  int64_t version = 0;
  std::vector<std::string> rename;
  std::optional<std::vector<std::string>> keep;  // Absent: all.
};

std::string SwitchText(const Switch& what) {
  nlohmann::ordered_json json = {
      {"version", fmt::format("{:06}", what.version)}, {"rename", what.rename}, {"keep", nullptr}};
  if (what.keep.has_value()) {
    json["keep"] = *what.keep;
  }
  return json.dump(-1, ' ', /*ensure_ascii=*/false,
                   nlohmann::ordered_json::error_handler_t::replace);
}

// Names are of files in one folder, whatever stands there.
std::optional<std::vector<std::string>> NamesOf(const nlohmann::json& list) {
  if (!list.is_array()) {
    return std::nullopt;
  }
  std::vector<std::string> names;
  for (const nlohmann::json& entry : list) {
    if (!entry.is_string() || entry.get_ref<const std::string&>().find('/') != std::string::npos) {
      return std::nullopt;
    }
    names.push_back(entry.get<std::string>());
  }
  return names;
}

std::optional<Switch> ParseSwitch(const std::string& text) {
  const auto json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("version") || !json.contains("rename") ||
      !json.contains("keep")) {
    return std::nullopt;
  }
  const std::optional<int64_t> version = VersionOf(json["version"]);
  std::optional<std::vector<std::string>> rename = NamesOf(json["rename"]);
  std::optional<std::vector<std::string>> keep = NamesOf(json["keep"]);
  if (!version.has_value() || !rename.has_value() ||
      (!keep.has_value() && !json["keep"].is_null())) {
    return std::nullopt;
  }
  return Switch{.version = *version, .rename = *std::move(rename), .keep = std::move(keep)};
}

// Each step may have been done already.
Status MakeSwitch(const PullOptions& options, const Switch& what) {
  const std::string& dir = options.local_dir;
  RETURN_IF_ERROR(RemoveFile(StatePath(dir)));
  for (const std::string& name : what.rename) {
    std::error_code error;
    const fs::path next = fs::path(NextDir(dir)) / name;
    if (!fs::exists(next, error)) {
      continue;
    }
    if (options.before_rename) {
      RETURN_IF_ERROR(options.before_rename(name));
    }
    fs::rename(next, fs::path(dir) / name, error);
    if (error) {
      return Internal("{}/{}: {}", dir, name, error.message());
    }
  }
  if (what.keep.has_value()) {
    RETURN_IF_ERROR(RemoveOthers(dir, {what.keep->begin(), what.keep->end()}));
  }
  RETURN_IF_ERROR(SyncFolder(dir));
  RETURN_IF_ERROR(
      WriteTextFile(StatePath(dir), fmt::format("{{\"version\": \"{:06}\"}}", what.version)));
  RETURN_IF_ERROR(RemoveFile(SwitchPath(dir)));
  std::error_code ignored;
  fs::remove_all(NextDir(dir), ignored);
  return OkStatus();
}

Status NotFinished(const std::string& dir, const Status& why) {
  return Status(why.code(),
                fmt::format("{}: its files are not all in place yet; the next pull goes "
                            "on with them: {}",
                            dir, why.message()));
}

// Ends what an earlier pull began.
Status ResumeSwitch(const PullOptions& options) {
  const Result<std::string> text = ReadTextFile(SwitchPath(options.local_dir));
  if (!text.has_value()) {
    return OkStatus();
  }
  const std::optional<Switch> what = ParseSwitch(*text);
  if (!what.has_value()) {  // Not ours: nothing is known of the folder.
    RETURN_IF_ERROR(RemoveFile(StatePath(options.local_dir)));
    return RemoveFile(SwitchPath(options.local_dir));
  }
  LOG(INFO, "weights pulled: going on with files of version {} in {}", what->version,
      options.local_dir);
  const Status made = MakeSwitch(options, *what);
  return made.ok() ? made : NotFinished(options.local_dir, made);
}

Status Puller::Commit() {
  Switch what{.version = options_.target_version, .rename = {}, .keep = {}};
  std::vector<std::string> names;
  for (SourceFile& file : files_) {
    names.push_back(file.name);
    if (file.written.has_value()) {
      RETURN_IF_ERROR(file.written->Commit());
      what.rename.push_back(file.name);
    }
  }
  if (chain_.seed.has_value()) {
    what.keep = std::move(names);
  }
  RETURN_IF_ERROR(WriteTextFile(SwitchPath(options_.local_dir), SwitchText(what)));
  const Status made = MakeSwitch(options_, what);
  return made.ok() ? made : NotFinished(options_.local_dir, made);
}

Status CheckFolders(const PullOptions& options) {
  if (options.target_version < 0) {
    return InvalidArgument("target_version: expected 0 or more, got {}", options.target_version);
  }
  for (const std::string& other : {options.base_dir, options.source_dir}) {
    std::error_code error;
    if (fs::equivalent(options.local_dir, other, error) && !error) {
      return InvalidArgument(
          "local_checkpoint_dir: {} is also read from; expected a folder of its own",
          options.local_dir);
    }
  }
  return OkStatus();
}

}  // namespace

Result<PullReport> PullWeights(const PullOptions& options) {
  RETURN_IF_ERROR(CheckFolders(options));
  ASSIGN_OR_RETURN(const FolderLock lock,
                   FolderLock::Take(options.local_dir, options.lock_timeout_s));
  RETURN_IF_ERROR(ResumeSwitch(options));
  const std::optional<int64_t> applied = ReadState(options.local_dir);
  PullReport report{.from_version = applied.value_or(-1)};
  if (applied == options.target_version) {
    return report;
  }
  ASSIGN_OR_RETURN(Chain chain, PlanChain(options, applied));
  report.seed_version = chain.seed.value_or(-1);
  report.num_deltas = static_cast<int64_t>(chain.deltas.size());
  std::string source_dir = options.local_dir;
  if (chain.seed.has_value()) {
    source_dir =
        *chain.seed == 0 ? options.base_dir : WeightVersionDir(options.source_dir, *chain.seed);
  }
  Puller puller(options, std::move(chain), std::move(source_dir));
  RETURN_IF_ERROR(puller.Prepare());
  RETURN_IF_ERROR(puller.Commit());
  report.num_tensors = puller.num_tensors();
  report.bytes_written = puller.bytes_written();
  LOG(INFO, "weights pulled folder={} from={} version={} seed={} deltas={} tensors={} bytes={}",
      options.local_dir, report.from_version, options.target_version, report.seed_version,
      report.num_deltas, report.num_tensors, report.bytes_written);
  return report;
}

Status CheckNotSwitching(const std::string& dir) {
  std::error_code error;
  if (fs::exists(SwitchPath(dir), error)) {
    return Unavailable(
        "{}: a pull is putting its files in place, or stopped at that: pull again first", dir);
  }
  return OkStatus();
}

}  // namespace octavo
