#pragma once
// A version of the weights as slime and miles publish it on a shared disk: a folder weight_vNNNNNN
// that is either a whole checkpoint or, when its index says so, what changed since the version
// before.
//
//   model.safetensors.index.json  {"metadata": {"version", "base_version", "delta_encoding",
//                                  "compression_format", "checksum_format"}, "weight_map"}
//   *.safetensors                 one U8 tensor a changed weight, under its name: a zstd frame.
//                                 __metadata__: the checksum of the weight as it becomes
//
// delta_encoding "xor": the frame holds new ^ old, of the weight's size. "overwrite": a count and
// as many positions, uint32 little-endian, then the bytes that stand there from now on. Source:
// slime 624b824a, docs/en/advanced/delta-weight-sync.md, slime/utils/disk_delta.py; miles 31f1ca96,
// miles/utils/disk_delta.py.

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/sync/checksum.h"

namespace octavo {

// "SOURCE/weight_v000007".
std::string WeightVersionDir(const std::string& source_dir, int64_t version);

// Move-only; const is thread-safe.
class WeightDelta {
 public:
  enum class Encoding {
    kXor,
    kOverwrite,
  };
  // Of one weight.
  struct Change {
    std::span<const std::byte> compressed;
    std::string checksum;
  };

  // Opens the version in `dir`, every header checked; nullopt when it is a whole checkpoint.
  // Errors: kNotFound naming the folder or file; kCorrupt for an index that is none, another
  // version than `version`, a tensor that is not where the index says, is there twice or has no
  // checksum; kUnsupported for an encoding, compression or checksum, by name.
  static Result<std::optional<WeightDelta>> Open(const std::string& dir, int64_t version);

  int64_t base_version() const { return base_version_; }
  const std::map<std::string, Change>& changes() const { return changes_; }

  // Brings one weight up to this version, in place, and checks what it has become. `scratch` is
  // room that calls share.
  // Errors: kCorrupt naming the weight: a frame that is truncated or of another size, a position
  // outside of the weight, another checksum. `bytes` are then unspecified.
  Status Apply(const std::string& name, std::span<std::byte> bytes,
               std::vector<std::byte>* scratch) const;

 private:
  WeightDelta() = default;
  Status ReadFiles(const ShardIndex& index);

  std::string dir_;
  int64_t base_version_ = 0;
  Encoding encoding_ = Encoding::kXor;
  ChecksumKind checksum_ = ChecksumKind::kXxh3;
  std::vector<SafetensorsFile> files_;
  std::map<std::string, Change> changes_;  // Parts of files_.
};

}  // namespace octavo
