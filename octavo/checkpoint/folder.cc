#include "octavo/checkpoint/folder.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/shard_index.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSafetensorsSuffix = ".safetensors";
constexpr std::array<std::string_view, 9> kForeignSuffixes = {
    ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".ggml", ".h5", ".msgpack", ".onnx"};

bool IsForeignWeight(std::string_view name) {
  return std::any_of(kForeignSuffixes.begin(), kForeignSuffixes.end(),
                     [name](std::string_view suffix) { return name.ends_with(suffix); });
}

bool IsWeight(std::string_view name) {
  return name.ends_with(kSafetensorsSuffix) || IsForeignWeight(name);
}

// Files that describe the weights beside them and would be wrong beside others, and leftovers of
// interrupted writes (base/file.h).
bool DescribesWeights(std::string_view name) {
  return name == "config.json" || name == "hf_quant_config.json" || name.ends_with(".index.json") ||
         name.find(".tmp-") != std::string_view::npos;
}

Status FileSystemError(const fs::path& path, const std::error_code& error) {
  const StatusCode code = error == std::errc::no_such_file_or_directory ? StatusCode::kNotFound
                          : error == std::errc::no_space_on_device      ? StatusCode::kExhausted
                                                                        : StatusCode::kInternal;
  return {code, fmt::format("{}: {}", path.string(), error.message())};
}

// Calls visit(entry), which returns a Status, for everything below `dir`.
template <typename Visit>
Status WalkBelow(const fs::path& dir, Visit visit) {
  std::error_code error;
  fs::recursive_directory_iterator it(dir, error);
  for (; !error && it != fs::recursive_directory_iterator(); it.increment(error)) {
    RETURN_IF_ERROR(visit(*it));
  }
  return error ? FileSystemError(dir, error) : OkStatus();
}

Result<bool> HoldsWeights(const fs::path& dir) {
  bool found = false;
  RETURN_IF_ERROR(WalkBelow(dir, [&found](const fs::directory_entry& entry) {
    found = found || IsWeight(entry.path().filename().string());
    return OkStatus();
  }));
  return found;
}

Status SortFile(const std::string& name, CheckpointFolder& folder) {
  folder.has_index |= name == kShardIndexFile;
  if (name.ends_with(kSafetensorsSuffix)) {
    folder.safetensors.push_back(name);
  } else if (IsForeignWeight(name)) {
    folder.foreign_weights.push_back(name);
  } else if (!DescribesWeights(name)) {
    folder.extra.push_back(name);
  }
  return OkStatus();
}

Status SortEntry(const fs::directory_entry& entry, CheckpointFolder& folder) {
  const std::string name = entry.path().filename().string();
  std::error_code ignored;
  if (entry.is_regular_file(ignored)) {
    return SortFile(name, folder);
  }
  // Hidden folders are the caches of tools (.git, .cache), which may hold weights under any name.
  if (entry.is_directory(ignored) && !entry.is_symlink(ignored) && !name.starts_with('.')) {
    ASSIGN_OR_RETURN(const bool holds_weights, HoldsWeights(entry.path()));
    (holds_weights ? folder.skipped : folder.extra).push_back(name);
    return OkStatus();
  }
  folder.skipped.push_back(name);
  return OkStatus();
}

// Streams through a mapping, so that a copy takes no memory of its own.
Status CopyFile(const fs::path& from, const fs::path& to) {
  ASSIGN_OR_RETURN(const MappedFile source, MappedFile::Open(from.string()));
  ASSIGN_OR_RETURN(AtomicFile target, AtomicFile::Create(to.string()));
  RETURN_IF_ERROR(target.Append(source.bytes()));
  return target.Commit();
}

Status CopyFolder(const fs::path& from, const fs::path& to) {
  std::error_code error;
  fs::create_directories(to, error);
  if (error) {
    return FileSystemError(to, error);
  }
  return WalkBelow(from, [&](const fs::directory_entry& entry) {
    const fs::path target = to / entry.path().lexically_relative(from);
    std::error_code failure;
    if (entry.is_regular_file(failure)) {
      return CopyFile(entry.path(), target);
    }
    if (entry.is_directory(failure) && !entry.is_symlink(failure)) {
      fs::create_directories(target, failure);
      return failure ? FileSystemError(target, failure) : OkStatus();
    }
    return InvalidArgument("{}: expected a file or a folder to copy", entry.path().string());
  });
}

// Whether `inner` is `outer` or lies below it.
bool IsWithin(const fs::path& inner, const fs::path& outer) {
  const fs::path relative = inner.lexically_relative(outer);
  return !relative.empty() && *relative.begin() != "..";
}

}  // namespace

Result<CheckpointFolder> ListCheckpointFolder(const std::string& dir) {
  std::error_code error;
  const fs::file_status status = fs::status(dir, error);
  if (!fs::exists(status)) {
    return NotFound("{}: no such folder", dir);
  }
  if (!fs::is_directory(status)) {
    return InvalidArgument("{}: expected a checkpoint folder, got a file", dir);
  }
  CheckpointFolder folder;
  fs::directory_iterator it(dir, error);
  for (; !error && it != fs::directory_iterator(); it.increment(error)) {
    RETURN_IF_ERROR(SortEntry(*it, folder));
  }
  if (error) {
    return FileSystemError(dir, error);
  }
  for (auto* names :
       {&folder.safetensors, &folder.foreign_weights, &folder.extra, &folder.skipped}) {
    std::sort(names->begin(), names->end());
  }
  return folder;
}

Status CopyAlong(const std::string& from, const std::vector<std::string>& names,
                 const std::string& to) {
  std::error_code error;
  const fs::path source = fs::canonical(from, error);
  if (error) {
    return FileSystemError(from, error);
  }
  const fs::path target = fs::canonical(to, error);
  if (error) {
    return FileSystemError(to, error);
  }
  for (const std::string& name : names) {
    if (IsWithin(target, source / name)) {
      return InvalidArgument("{}: lies inside {}, which is to be copied into it", to,
                             (source / name).string());
    }
    if (fs::is_directory(source / name, error)) {
      RETURN_IF_ERROR(CopyFolder(source / name, target / name));
    } else {
      RETURN_IF_ERROR(CopyFile(source / name, target / name));
    }
  }
  return OkStatus();
}

}  // namespace octavo
