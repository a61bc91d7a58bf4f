#pragma once
// A checkpoint directory, read: config.json and the tensors of its safetensors files, mapped.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"

namespace octavo {

// config.json of a folder, and what lies beside it: generation_config.json, hf_quant_config.json.
// `config_overrides`, a JSON object, is merged into config.json first (config_merge.h); empty:
// none. Errors: kNotFound (no config.json), those of MergeConfigJson and ParseHfConfig; all name
// the folder.
Result<HfConfig> ReadHfConfig(const std::string& dir, const std::string& config_overrides = "");

// One tensor as it stands in a file; the view lives as long as the Checkpoint.
struct StoredTensor {
  std::string name;
  ConstTensorView view;
  int shard_idx = 0;  // Into Checkpoint::shard_files().
};

// Move-only; const is thread-safe.
class Checkpoint {
 public:
  // Opens DIR: model.safetensors.index.json with its shards, or a single model.safetensors, or
  // several *.safetensors without index (consolidated*.safetensors beside model*.safetensors is
  // ignored). Every header is checked before this returns (docs/formats.md). config() is that of
  // ReadHfConfig.
  // Errors: kNotFound, kCorrupt, kInvalidArgument, kUnsupported, naming file and tensor.
  static Result<Checkpoint> Open(const std::string& dir, const std::string& config_overrides = "");

  Checkpoint(Checkpoint&&) noexcept;
  Checkpoint& operator=(Checkpoint&&) noexcept;
  ~Checkpoint();

  const std::string& dir() const;
  const HfConfig& config() const;
  // Sorted by name as bytes.
  std::span<const StoredTensor> tensors() const;
  // Null when there is no such tensor.
  const StoredTensor* Find(std::string_view name) const;
  // File names (not paths), in the order of shard_idx.
  std::span<const std::string> shard_files() const;
  // Regular files and folders beside the weights that a converter copies along (docs/formats.md).
  std::span<const std::string> extra_files() const;
  // Sentences about things that were ignored on purpose, such as files the index does not name.
  std::span<const std::string> warnings() const;

 private:
  struct Impl;
  explicit Checkpoint(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
