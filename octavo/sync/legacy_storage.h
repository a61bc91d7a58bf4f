#pragma once
// A storage in the bytes that pickle.dumps(tensor) puts around it: torch.save's format from before
// zip files, with one storage. Five pickles (a magic number, a protocol, facts about the sender's
// machine, the storage's description, a list of keys), then the elements' count and bytes.
// Source: torch/serialization.py, _legacy_save.

#include <cstddef>
#include <span>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"

namespace octavo {

struct LegacyStorage {
  std::span<const std::byte> bytes;  // Parts of the input.
  DType dtype = DType::kU8;          // kU8 for an untyped one.
};

// Errors: kCorrupt, kUnsupported (a big-endian sender, a view of another storage); those of
// ReadPickle.
Result<LegacyStorage> ReadLegacyStorage(std::string_view bytes);

}  // namespace octavo
