#include "octavo/server/model_root.h"

#include <algorithm>
#include <filesystem>
#include <string>
#include <system_error>

#include "octavo/base/status.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

// Whether the canonical `path` is `root` or lies below it; by components, so that /models2 is not
// below /models.
bool IsBelow(const fs::path& root, const fs::path& path) {
  const auto [rest, unused] = std::mismatch(root.begin(), root.end(), path.begin(), path.end());
  return rest == root.end();
}

// Links inside a folder lead out of it as well as the path to it: caches of model hubs are made of
// them.
Status CheckEntries(const fs::path& root, const fs::path& folder) {
  std::error_code error;
  for (fs::recursive_directory_iterator entry(folder, error), end; !error && entry != end;
       entry.increment(error)) {
    if (!entry->is_symlink(error)) {
      continue;
    }
    const fs::path target = fs::canonical(entry->path(), error);
    if (error || !IsBelow(root, target)) {
      return InvalidArgument("{}: expected a link to below the model root {}",
                             entry->path().string(), root.string());
    }
  }
  if (error) {
    return InvalidArgument("{}: {}", folder.string(), error.message());
  }
  return OkStatus();
}

}  // namespace

Result<std::string> CanonicalFolder(const std::string& folder) {
  std::error_code error;
  const fs::path path = fs::canonical(folder, error);
  if (error || !fs::is_directory(path, error)) {
    return InvalidArgument("{}: expected a folder", folder);
  }
  return path.string();
}

Result<std::string> ResolveBelow(const std::string& root, const std::string& path) {
  if (root.empty()) {
    return path;
  }
  std::error_code error;
  const fs::path resolved = fs::canonical(path, error);
  if (error || !IsBelow(root, resolved)) {
    return InvalidArgument("{}: expected a folder below the model root {}", path, root);
  }
  if (fs::is_directory(resolved, error)) {
    RETURN_IF_ERROR(CheckEntries(root, resolved));
  }
  return resolved.string();
}

}  // namespace octavo
