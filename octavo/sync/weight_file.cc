#include "octavo/sync/weight_file.h"

#include <fcntl.h>
#include <sys/types.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/sync/pack_row.h"

namespace octavo {
namespace {

// The most that Linux transfers in one call is a little less than 2 GiB.
constexpr size_t kTransferBytes = size_t{1} << 30;

}  // namespace

WeightFile::WeightFile(WeightFile&& other) noexcept
    : dir_(std::move(other.dir_)),
      fd_(std::exchange(other.fd_, -1)),
      num_bytes_(other.num_bytes_),
      form_(std::move(other.form_)),
      matrices_(std::move(other.matrices_)),
      derived_(std::move(other.derived_)) {}

WeightFile& WeightFile::operator=(WeightFile&& other) noexcept {
  std::swap(dir_, other.dir_);
  std::swap(fd_, other.fd_);
  std::swap(num_bytes_, other.num_bytes_);
  std::swap(form_, other.form_);
  std::swap(matrices_, other.matrices_);
  std::swap(derived_, other.derived_);
  return *this;
}

WeightFile::~WeightFile() {
  if (fd_ >= 0) {
    close(fd_);
  }
}

Result<WeightFile::Block> WeightFile::Append(const Buffer& bytes) {
  const Block block = {
      .offset = num_bytes_, .num_bytes = bytes.num_bytes(), .hash = HashBytes(bytes.bytes())};
  for (size_t done = 0; done < bytes.bytes().size();) {
    const size_t wanted = std::min(bytes.bytes().size() - done, kTransferBytes);
    const ssize_t written =
        pwrite(fd_, bytes.data() + done, wanted, num_bytes_ + static_cast<off_t>(done));
    if (written <= 0 && errno != EINTR) {
      return Internal("{}: could not write a copy of the weights: {}", dir_,
                      written < 0 ? strerror(errno) : "the disk is full");
    }
    done += written > 0 ? static_cast<size_t>(written) : 0;
  }
  num_bytes_ += block.num_bytes;
  return block;
}

Result<std::vector<WeightFile::Entry>> WeightFile::AppendAll(
    const std::vector<PackedMatrix>& matrices) {
  std::vector<Entry> entries;
  for (const PackedMatrix& matrix : matrices) {
    Entry& entry = entries.emplace_back();
    entry.form = FormOf(matrix);
    ASSIGN_OR_RETURN(entry.codes, Append(matrix.codes));
    ASSIGN_OR_RETURN(entry.scales, Append(matrix.scales));
  }
  return entries;
}

Result<WeightFile> WeightFile::Write(const ModelWeights& weights, const std::string& dir) {
  WeightFile file;
  file.dir_ = dir;
  std::string path = dir + "/octavo-weights-XXXXXX";
  file.fd_ = mkostemp(path.data(), O_CLOEXEC);
  if (file.fd_ < 0) {
    return Internal("{}: could not make a file for a copy of the weights: {}", dir,
                    strerror(errno));
  }
  unlink(path.c_str());
  ASSIGN_OR_RETURN(file.matrices_, file.AppendAll(weights.matrices));
  ASSIGN_OR_RETURN(file.derived_, file.AppendAll(weights.derived));
  file.form_.stored_input_scales = weights.stored_input_scales;
  file.form_.digest = weights.digest;
  return file;
}

Result<Buffer> WeightFile::ReadBlock(const Block& block) const {
  ASSIGN_OR_RETURN(Buffer bytes, Buffer::AllocateHost(block.num_bytes));
  for (size_t done = 0; done < bytes.bytes().size();) {
    const size_t wanted = std::min(bytes.bytes().size() - done, kTransferBytes);
    const ssize_t got =
        pread(fd_, bytes.data() + done, wanted, block.offset + static_cast<off_t>(done));
    if (got <= 0 && errno != EINTR) {
      return Internal("{}: could not read the copy of the weights: {}", dir_,
                      got < 0 ? strerror(errno) : "it ends too early");
    }
    done += got > 0 ? static_cast<size_t>(got) : 0;
  }
  if (HashBytes(bytes.bytes()) != block.hash) {
    return Corrupt("{}: the copy of the weights: {} bytes at {} are not what was written", dir_,
                   block.num_bytes, block.offset);
  }
  return bytes;
}

Result<PackedMatrix> WeightFile::ReadEntry(const Entry& entry) const {
  PackedMatrix matrix = FormOf(entry.form);
  ASSIGN_OR_RETURN(matrix.codes, ReadBlock(entry.codes));
  ASSIGN_OR_RETURN(matrix.scales, ReadBlock(entry.scales));
  return matrix;
}

Result<std::unique_ptr<ModelWeights>> WeightFile::Read() const {
  auto weights = std::make_unique<ModelWeights>();
  for (const Entry& entry : matrices_) {
    ASSIGN_OR_RETURN(weights->matrices.emplace_back(), ReadEntry(entry));
  }
  for (const Entry& entry : derived_) {
    ASSIGN_OR_RETURN(weights->derived.emplace_back(), ReadEntry(entry));
  }
  weights->stored_input_scales = form_.stored_input_scales;
  weights->digest = form_.digest;
  return weights;
}

Result<PackedMatrix> WeightFile::ReadMatrix(size_t row_idx) const {
  return ReadEntry(matrices_[row_idx]);
}

float WeightFile::stored_input_scale(size_t row_idx) const {
  const std::vector<float>& scales = form_.stored_input_scales;
  return scales.empty() ? 0.0F : scales[row_idx];
}

}  // namespace octavo
