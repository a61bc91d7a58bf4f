#include "octavo/checkpoint/checkpoint.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <system_error>
#include <tuple>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/config_merge.h"
#include "octavo/checkpoint/folder.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"

namespace octavo {

struct Checkpoint::Impl {
  std::string dir;
  HfConfig config;
  std::vector<std::string> shard_names;
  std::vector<SafetensorsFile> shards;  // Of shard_names; what the views look into.
  std::vector<StoredTensor> tensors;
  std::vector<std::string> extra_files;
  std::vector<std::string> warnings;
};

namespace {

constexpr int64_t kConfigBytesMax = int64_t{16} << 20;
constexpr int64_t kIndexBytesMax = int64_t{256} << 20;

std::string PathOf(const std::string& dir, std::string_view name) {
  return (std::filesystem::path(dir) / name).string();
}

Status NoWeights(const std::string& dir, const CheckpointFolder& folder) {
  if (!folder.foreign_weights.empty()) {
    return Unsupported("{}: expected *.safetensors, got {}: convert it to safetensors first", dir,
                       folder.foreign_weights.front());
  }
  return NotFound("{}: expected *.safetensors, got none", dir);
}

// Empty when there is no such file.
Result<std::string> ReadBeside(const std::string& dir, std::string_view name) {
  Result<std::string> text = ReadTextFile(PathOf(dir, name), kConfigBytesMax);
  const bool is_absent = !text && text.error().code() == StatusCode::kNotFound;
  return is_absent ? Result<std::string>(std::string()) : text;
}

Result<std::optional<ShardIndex>> ReadIndex(const std::string& dir,
                                            const CheckpointFolder& folder) {
  if (!folder.has_index) {
    return std::optional<ShardIndex>();
  }
  const std::string path = PathOf(dir, kShardIndexFile);
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path, kIndexBytesMax));
  auto index = ParseShardIndex(text);
  if (!index) {
    return index.error().WithContext(path);
  }
  return std::optional(*std::move(index));
}

// A name such as model-00002-of-00007.safetensors promises its siblings.
Status CheckSiblings(const std::string& dir, const std::vector<std::string>& files) {
  constexpr std::string_view kPattern = "-NNNNN-of-NNNNN.safetensors";
  constexpr size_t kDigits = 5;
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  for (const std::string& file : files) {
    if (file.size() < kPattern.size()) {
      continue;
    }
    const std::string stem = file.substr(0, file.size() - kPattern.size());
    const std::string tail = file.substr(stem.size());
    const std::string total = tail.substr(10, kDigits);
    if (tail[0] != '-' || tail.substr(6, 4) != "-of-" ||
        !std::all_of(tail.begin() + 1, tail.begin() + 6, is_digit) ||
        !std::all_of(total.begin(), total.end(), is_digit)) {
      continue;
    }
    const int num_files = std::stoi(total);
    for (int i = 1; i <= num_files; ++i) {
      const std::string sibling = fmt::format("{}-{:05}-of-{}.safetensors", stem, i, total);
      if (!std::binary_search(files.begin(), files.end(), sibling)) {
        return NotFound("{}: expected {} beside {}, got none", dir, sibling, file);
      }
    }
  }
  return OkStatus();
}

// The files to read, sorted; warns about those that are left out.
Result<std::vector<std::string>> ChooseFiles(const std::string& dir, const CheckpointFolder& folder,
                                             const ShardIndex* index,
                                             std::vector<std::string>& warnings) {
  std::vector<std::string> files;
  if (index != nullptr) {
    files = index->Files();
    for (const std::string& file : files) {
      if (!std::binary_search(folder.safetensors.begin(), folder.safetensors.end(), file)) {
        return NotFound("{}: {} names {}, which is not there", dir, kShardIndexFile, file);
      }
    }
    for (const std::string& file : folder.safetensors) {
      if (!std::binary_search(files.begin(), files.end(), file)) {
        warnings.push_back(
            fmt::format("{}: ignored, for {} does not name it", file, kShardIndexFile));
      }
    }
    return files;
  }
  const auto is_model = [](const std::string& file) { return file.starts_with("model"); };
  const bool has_model =
      std::any_of(folder.safetensors.begin(), folder.safetensors.end(), is_model);
  for (const std::string& file : folder.safetensors) {
    if (has_model && file.starts_with("consolidated")) {
      warnings.push_back(fmt::format("{}: ignored beside model*.safetensors", file));
    } else {
      files.push_back(file);
    }
  }
  RETURN_IF_ERROR(CheckSiblings(dir, files));
  return files;
}

// The tensors of all shards, sorted by name; each name once.
Result<std::vector<StoredTensor>> CollectTensors(const std::string& dir,
                                                 const std::vector<std::string>& files,
                                                 const std::vector<SafetensorsFile>& shards) {
  std::vector<StoredTensor> tensors;
  for (size_t i = 0; i < shards.size(); ++i) {
    for (const SafetensorsEntry& entry : shards[i].header().entries) {
      tensors.push_back({entry.name, shards[i].View(entry), static_cast<int>(i)});
    }
  }
  std::sort(tensors.begin(), tensors.end(), [](const auto& a, const auto& b) {
    return std::tie(a.name, a.shard_idx) < std::tie(b.name, b.shard_idx);
  });
  const auto twin =
      std::adjacent_find(tensors.begin(), tensors.end(),
                         [](const auto& a, const auto& b) { return a.name == b.name; });
  if (twin != tensors.end()) {
    return Corrupt("{}: tensor {} stands in both {} and {}", dir, twin->name,
                   files[static_cast<size_t>(twin->shard_idx)],
                   files[static_cast<size_t>((twin + 1)->shard_idx)]);
  }
  return tensors;
}

// The index and the shards name the same tensors in the same files.
Status CheckIndex(const std::string& dir, const ShardIndex& index, const Checkpoint& checkpoint) {
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    const std::string& file = checkpoint.shard_files()[static_cast<size_t>(tensor.shard_idx)];
    const std::string* expected = index.FileOf(tensor.name);
    if (expected == nullptr) {
      return Corrupt("{}: tensor {} stands in {}, but {} does not name it", dir, tensor.name, file,
                     kShardIndexFile);
    }
    if (*expected != file) {
      return Corrupt("{}: tensor {}: {} puts it into {}, but it stands in {}", dir, tensor.name,
                     kShardIndexFile, *expected, file);
    }
  }
  for (const auto& [name, file] : index.weight_map) {
    if (checkpoint.Find(name) == nullptr) {
      return Corrupt("{}: tensor {}: {} puts it into {}, which does not hold it", dir, name,
                     kShardIndexFile, file);
    }
  }
  return OkStatus();
}

void WarnAboutTotal(const ShardIndex& index, std::span<const StoredTensor> tensors,
                    std::vector<std::string>& warnings) {
  int64_t bytes = 0;
  for (const StoredTensor& tensor : tensors) {
    bytes += tensor.view.NumBytes();
  }
  if (index.total_bytes && *index.total_bytes != bytes) {
    warnings.push_back(fmt::format("{}: total_size: expected the {} bytes of the tensors, got {}",
                                   kShardIndexFile, bytes, *index.total_bytes));
  }
}

}  // namespace

Checkpoint::Checkpoint(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

Result<HfConfig> ReadHfConfig(const std::string& dir, const std::string& config_overrides) {
  std::error_code error;
  if (!std::filesystem::exists(dir, error)) {
    return NotFound("{}: no such folder", dir);
  }
  Result<std::string> config = ReadTextFile(PathOf(dir, "config.json"), kConfigBytesMax);
  if (!config && config.error().code() == StatusCode::kNotFound) {
    return NotFound("{}: expected config.json, got none", dir);
  }
  ASSIGN_OR_RETURN(std::string text, std::move(config));
  if (!config_overrides.empty()) {
    Result<std::string> merged = MergeConfigJson(text, config_overrides);
    if (!merged.has_value()) {
      return merged.error().WithContext(dir);
    }
    text = *std::move(merged);
  }
  ASSIGN_OR_RETURN(const std::string generation, ReadBeside(dir, "generation_config.json"));
  ASSIGN_OR_RETURN(const std::string hf_quant, ReadBeside(dir, "hf_quant_config.json"));
  auto parsed =
      ParseHfConfig(text, {.generation_config_json = generation, .hf_quant_config_json = hf_quant});
  return parsed ? std::move(parsed) : parsed.error().WithContext(dir);
}

Result<Checkpoint> Checkpoint::Open(const std::string& dir, const std::string& config_overrides) {
  ASSIGN_OR_RETURN(CheckpointFolder folder, ListCheckpointFolder(dir));
  if (folder.safetensors.empty() && !folder.has_index) {
    return NoWeights(dir, folder);
  }
  auto impl = std::make_unique<Impl>();
  impl->dir = dir;
  ASSIGN_OR_RETURN(impl->config, ReadHfConfig(dir, config_overrides));
  ASSIGN_OR_RETURN(const std::optional<ShardIndex> index, ReadIndex(dir, folder));
  ASSIGN_OR_RETURN(impl->shard_names,
                   ChooseFiles(dir, folder, index ? &*index : nullptr, impl->warnings));
  for (const std::string& file : impl->shard_names) {
    ASSIGN_OR_RETURN(SafetensorsFile shard, SafetensorsFile::Open(PathOf(dir, file)));
    impl->shards.push_back(std::move(shard));
  }
  ASSIGN_OR_RETURN(impl->tensors, CollectTensors(dir, impl->shard_names, impl->shards));
  impl->extra_files = std::move(folder.extra);
  for (const std::string& name : folder.foreign_weights) {
    impl->warnings.push_back(fmt::format("{}: ignored beside *.safetensors", name));
  }
  for (const std::string& name : folder.skipped) {
    impl->warnings.push_back(fmt::format(
        "{}: left alone: a link to nothing, a hidden folder or one with weights", name));
  }
  Checkpoint checkpoint(std::move(impl));
  if (index) {
    RETURN_IF_ERROR(CheckIndex(dir, *index, checkpoint));
    WarnAboutTotal(*index, checkpoint.tensors(), checkpoint.impl_->warnings);
  }
  return checkpoint;
}

const std::string& Checkpoint::dir() const { return impl_->dir; }
const HfConfig& Checkpoint::config() const { return impl_->config; }
std::span<const StoredTensor> Checkpoint::tensors() const { return impl_->tensors; }
std::span<const std::string> Checkpoint::shard_files() const { return impl_->shard_names; }
std::span<const std::string> Checkpoint::extra_files() const { return impl_->extra_files; }
std::span<const std::string> Checkpoint::warnings() const { return impl_->warnings; }

const StoredTensor* Checkpoint::Find(std::string_view name) const {
  const auto place = std::lower_bound(
      impl_->tensors.begin(), impl_->tensors.end(), name,
      [](const StoredTensor& tensor, std::string_view key) { return tensor.name < key; });
  return place != impl_->tensors.end() && place->name == name ? &*place : nullptr;
}

}  // namespace octavo
