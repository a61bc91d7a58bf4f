#include "octavo/convert/out_folder.h"

#include <fmt/core.h>

#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/conversion_plan.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr int kStateSchema = 1;
// For headers, index, configuration and what is copied along.
constexpr int64_t kSpareBytes = int64_t{64} << 20;

std::string StatePath(const std::string& out_dir) {
  return (fs::path(out_dir) / kConvertStateFile).string();
}

Status FileSystemError(const std::string& path, const std::error_code& error) {
  const StatusCode code = error == std::errc::no_such_file_or_directory ? StatusCode::kNotFound
                          : error == std::errc::not_a_directory ? StatusCode::kInvalidArgument
                                                                : StatusCode::kInternal;
  return {code, fmt::format("{}: {}", path, error.message())};
}

// The hash of the plan that an unfinished run in `out_dir` follows; empty when there is none.
Result<std::string> UnfinishedPlan(const std::string& out_dir) {
  const auto text = ReadTextFile(StatePath(out_dir));
  if (!text) {
    return text.error().code() == StatusCode::kNotFound ? Result<std::string>(std::string())
                                                        : Result<std::string>(text.error());
  }
  const auto json = nlohmann::json::parse(*text, nullptr, /*allow_exceptions=*/false);
  const bool readable = json.is_object() &&
                        json.value("schema", nlohmann::json()) == kStateSchema &&
                        json.value("plan", nlohmann::json()).is_string();
  if (!readable) {
    return Corrupt("{}: expected the state of an unfinished conversion", StatePath(out_dir));
  }
  return json["plan"].get<std::string>();
}

// Anything in the folder but the leftovers of file writes.
Result<std::vector<std::string>> Contents(const std::string& out_dir) {
  std::vector<std::string> names;
  std::error_code error;
  fs::directory_iterator it(out_dir, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    names.push_back(it->path().filename().string());
  }
  if (error) {
    return FileSystemError(out_dir, error);
  }
  std::ranges::sort(names);
  return names;
}

bool IsTemporary(std::string_view name) { return name.find(".tmp-") != std::string_view::npos; }

Status RemoveTemporaries(const std::string& out_dir) {
  ASSIGN_OR_RETURN(const std::vector<std::string> names, Contents(out_dir));
  for (const std::string& name : names) {
    std::error_code error;
    if (IsTemporary(name) && !fs::remove(fs::path(out_dir) / name, error) && error) {
      return FileSystemError((fs::path(out_dir) / name).string(), error);
    }
  }
  return OkStatus();
}

}  // namespace

Status ClaimOutFolder(const Checkpoint& checkpoint, const ConversionPlan& plan,
                      const std::string& out_dir) {
  std::error_code error;
  if (fs::equivalent(checkpoint.dir(), out_dir, error)) {
    return InvalidArgument("{}: expected another folder than the source", out_dir);
  }
  fs::create_directories(out_dir, error);
  if (error) {
    return FileSystemError(out_dir, error);
  }
  ASSIGN_OR_RETURN(const std::string unfinished, UnfinishedPlan(out_dir));
  ASSIGN_OR_RETURN(const std::vector<std::string> names, Contents(out_dir));
  if (unfinished.empty() && !std::ranges::all_of(names, IsTemporary)) {
    return InvalidArgument("{}: expected an empty folder or none, found {}", out_dir,
                           *std::ranges::find_if_not(names, IsTemporary));
  }
  // A run that was refused or stopped before it finished a file leaves nothing worth keeping.
  const bool holds_files = !std::ranges::all_of(names, [](const std::string& name) {
    return IsTemporary(name) || name == kConvertStateFile;
  });
  if (!unfinished.empty() && unfinished != plan.hash && holds_files) {
    return InvalidArgument(
        "{}: holds an unfinished conversion by another plan ({}, this one is {}); remove it or "
        "choose another folder",
        out_dir, unfinished, plan.hash);
  }
  RETURN_IF_ERROR(RemoveTemporaries(out_dir));
  const nlohmann::json state = {{"schema", kStateSchema}, {"plan", plan.hash}};
  return WriteTextFile(StatePath(out_dir), state.dump() + "\n");
}

Result<bool> IsFinished(const ShardPlan& shard, const std::string& out_dir) {
  const std::string path = (fs::path(out_dir) / shard.file).string();
  std::error_code error;
  if (!fs::exists(path, error)) {
    return false;
  }
  ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(path));
  std::set<std::string> expected;
  for (const TensorHeader& header : shard.headers) {
    expected.insert(
        fmt::format("{} {} {}", header.name, DTypeName(header.dtype), ShapeString(header.shape)));
  }
  std::set<std::string> actual;
  for (const SafetensorsEntry& entry : file.header().entries) {
    actual.insert(
        fmt::format("{} {} {}", entry.name, DTypeName(entry.dtype), ShapeString(entry.shape)));
  }
  if (actual != expected) {
    return Corrupt("{}: not the file that this plan writes; remove it", path);
  }
  return true;
}

Status CheckFreeSpace(const ConversionPlan& plan, const std::vector<bool>& finished,
                      const std::string& out_dir) {
  int64_t needed_bytes = kSpareBytes;
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    for (const TensorHeader& header : plan.shards[i].headers) {
      needed_bytes += finished[i] ? 0 : NumElements(header.shape) * DTypeBytes(header.dtype);
    }
  }
  std::error_code error;
  const fs::space_info space = fs::space(out_dir, error);
  if (error) {
    return FileSystemError(out_dir, error);
  }
  if (space.available < static_cast<uintmax_t>(needed_bytes)) {
    return Exhausted("{}: expected room for {} bytes on this disk, got {}", out_dir, needed_bytes,
                     space.available);
  }
  return OkStatus();
}

Status ReleaseOutFolder(const std::string& out_dir) {
  std::error_code error;
  fs::remove(StatePath(out_dir), error);
  return error ? FileSystemError(StatePath(out_dir), error) : OkStatus();
}

}  // namespace octavo
