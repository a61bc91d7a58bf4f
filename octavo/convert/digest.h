#pragma once
// The digest of a tensor, of a model and of a checkpoint folder.
//
//   tensor  XXH3-128 over the canonical XXH3-128 values of its 64 KiB chunks (base/hash.h)
//   model   XXH3-128 over the lines "NAME DTYPE D0,D1,... HEX\n", sorted by name as bytes; a
//           scalar has no extents, so two blanks stand between DTYPE and HEX
//
// Source: docs/formats.md. scripts/digest.py computes the same from the files by the definition.

#include <string>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"

namespace octavo {

// One line of a model digest.
struct TensorDigestLine {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  std::string hex;  // HashHex(TensorDigest(bytes)).
};

struct ModelDigest {
  std::vector<TensorDigestLine> tensors;  // Sorted by name as bytes.
  std::string hex;
  Hash128 hash = {};  // The same.
};

// Digests the bytes of `tensor`. Thread-safe.
TensorDigestLine DigestTensor(std::string name, const ConstTensorView& tensor);
// Sorts the lines, which have distinct names, and digests them. A pure function.
ModelDigest ModelDigestOf(std::vector<TensorDigestLine> lines);

// All tensors of the files, as they are stored. `pool` may be null.
ModelDigest DigestCheckpoint(const Checkpoint& checkpoint, ThreadPool* pool);

// {"digest": HEX, "tensors": {NAME: HEX, ...}}
std::string ModelDigestJson(const ModelDigest& digest);

}  // namespace octavo
