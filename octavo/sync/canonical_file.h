#pragma once
// CanonicalFile: live weights as one safetensors file that exists nowhere: every stored tensor of
// the served table in the order of its name, with the bytes that `octavo convert` would write. Any
// range of it can be read, so it can be sent in pieces, and a piece is all that is ever held.

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// A tensor with its place in the file.
struct CanonicalEntry {
  TensorDigestLine line;
  int64_t begin_bytes = 0;  // Of the file, header included.
  int64_t end_bytes = 0;
};

// Const is thread-safe.
class CanonicalFile {
 public:
  // `lines` are those of a ModelDigest, in its order: equal digests have equal files.
  explicit CanonicalFile(std::vector<TensorDigestLine> lines);

  const std::vector<CanonicalEntry>& entries() const { return entries_; }
  int64_t num_bytes() const;

  // Fills `out` with the bytes from `begin_bytes` on. `weights` are those of the digest.
  // Errors: kInvalidArgument for a range that the file does not have; those of Backend::Unpack.
  Status Read(const WeightPlan& plan, const ModelWeights& weights, const Backend& backend,
              int64_t begin_bytes, std::span<std::byte> out) const;

 private:
  std::string header_;  // With its length in front.
  std::vector<CanonicalEntry> entries_;
};

}  // namespace octavo
