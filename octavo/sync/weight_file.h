#pragma once
// WeightFile: a copy of packed weights outside of memory, in a temporary file without a name:
// nothing is left of it when it is destroyed or the process ends, however that happens.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"

namespace octavo {

// Move-only; const is thread-safe. Every block is read back with its hash checked, so the disk
// cannot change a weight unseen.
class WeightFile {
 public:
  // Writes everything of `weights` to a file in `dir`. Errors: kInternal naming `dir`, such as for
  // a disk that is full.
  static Result<WeightFile> Write(const ModelWeights& weights, const std::string& dir);
  WeightFile(WeightFile&& other) noexcept;
  WeightFile& operator=(WeightFile&& other) noexcept;
  ~WeightFile();

  // The same weights again. Errors: kExhausted; kCorrupt for bytes that are not those written;
  // kInternal.
  Result<std::unique_ptr<ModelWeights>> Read() const;
  // One of ModelWeights::matrices, and its stored_input_scales. Errors: as Read.
  Result<PackedMatrix> ReadMatrix(size_t row_idx) const;
  float stored_input_scale(size_t row_idx) const;

  int64_t num_bytes() const { return num_bytes_; }

 private:
  struct Block {
    int64_t offset = 0;
    int64_t num_bytes = 0;
    Hash128 hash = {};
  };
  struct Entry {
    PackedMatrix form;  // Without bytes.
    Block codes;
    Block scales;
  };
  WeightFile() = default;

  Result<Block> Append(const Buffer& bytes);
  Result<std::vector<Entry>> AppendAll(const std::vector<PackedMatrix>& matrices);
  Result<Buffer> ReadBlock(const Block& block) const;
  Result<PackedMatrix> ReadEntry(const Entry& entry) const;

  std::string dir_;
  int fd_ = -1;
  int64_t num_bytes_ = 0;
  ModelWeights form_;  // What is neither a matrix nor derived.
  std::vector<Entry> matrices_;
  std::vector<Entry> derived_;
};

}  // namespace octavo
