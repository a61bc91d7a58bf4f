#pragma once
// Writing a checkpoint: shards, their index, config.json, and what is copied along.
//
// Every file appears whole or not at all (base/file.h). A converter writes the shards first, the
// index and config.json last, so that an interrupted run never looks complete.

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"

namespace octavo {

struct TensorHeader {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
};

// One safetensors file: Create with all headers, then the bytes of the tensors, in the order of the
// headers (Append) or in any (WriteAt), then Commit. Destroyed without Commit, it leaves nothing
// behind.
//
// The bytes depend on the headers and tensors alone. The buffer begins at a multiple of 8, and
// every tensor at a multiple of its element size, which PyTorch's loader needs. For that, tensors
// whose bytes are no multiple of 8 stand behind all others, wide elements first.
//
// Move-only. One thread, but for WriteAt.
class ShardWriter {
 public:
  // Errors: kInvalidArgument naming the tensor (a repeated or malformed name, a shape without a
  // size); those of AtomicFile::Create.
  static Result<ShardWriter> Create(const std::string& path, std::vector<TensorHeader> headers);

  // The bytes of the next header's tensor. Errors: kInvalidArgument when its dtype or shape are not
  // those of the header, or there is no header left; those of AtomicFile::WriteAt.
  Status Append(const ConstTensorView& tensor);

  // A piece of the tensor of headers[header_idx], from `offset_bytes` in it on; it must fit. Every
  // byte is written once. Several threads may call this at a time.
  // Errors: those of AtomicFile::WriteAt.
  Status WriteAt(size_t header_idx, int64_t offset_bytes, std::span<const std::byte> bytes);

  // Where the tensor begins in the file.
  int64_t FileOffset(size_t header_idx) const { return offsets_[header_idx]; }
  // See AtomicFile; offsets are those of the file.
  void StartWriteBack(int64_t offset_bytes, int64_t num_bytes) const {
    file_.StartWriteBack(offset_bytes, num_bytes);
  }

  // Errors: kInvalidArgument naming the first tensor of which bytes are missing; those of
  // AtomicFile::Commit.
  Status Commit();

  // Sum of the bytes of all tensors.
  int64_t tensor_bytes() const { return tensor_bytes_; }

 private:
  ShardWriter() = default;

  std::string path_;
  AtomicFile file_;
  std::vector<TensorHeader> headers_;
  std::vector<int64_t> offsets_;                     // In the file, of headers_.
  std::vector<std::atomic<int64_t>> bytes_written_;  // Of headers_.
  size_t next_ = 0;  // Into headers_: the tensor that Append expects.
  int64_t tensor_bytes_ = 0;
};

// One written file of a checkpoint, for the index.
struct ShardContents {
  std::string file;  // Name, not path.
  std::vector<TensorHeader> tensors;
};

// The text of model.safetensors.index.json: metadata.total_size is the sum of the tensors' bytes,
// weight_map is sorted by tensor name as bytes.
// Errors: kInvalidArgument for a tensor in two files, a shape without a size, or a file name that
// is no plain *.safetensors name.
Result<std::string> IndexJson(std::span<const ShardContents> shards);

// Writes IndexJson(shards) into `dir` under its name.
Status WriteIndex(const std::string& dir, std::span<const ShardContents> shards);

// The text of a config.json whose quantization_config is replaced whole (at its place, or at the
// end), without compression_config and text_config.quantization_config, which would contradict it.
// All other members keep their text: order, spelling of numbers, indentation. An empty
// `quantization_config_json` removes the key: the checkpoint is not quantized.
// Errors: kCorrupt when either text is not a JSON object, or has a member twice.
Result<std::string> ConfigJsonWithQuantization(std::string_view config_json,
                                               std::string_view quantization_config_json);

// Copies checkpoint.extra_files() into `out_dir`, which exists.
// Errors: kInvalidArgument when out_dir lies inside a folder to be copied; those of files.
Status CopyExtraFiles(const Checkpoint& checkpoint, const std::string& out_dir);

}  // namespace octavo
