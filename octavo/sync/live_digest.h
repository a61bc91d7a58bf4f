#pragma once
// The digest of what an engine holds, read back from its live memory.

#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Unpacks every weight to its canonical bytes, a band of rows at a time, and digests them
// (convert/digest.h). Equal to the digest of a checkpoint directory that stores the same table.
// Thread-safe while nothing writes `weights`. Errors: those of Backend::Unpack.
Result<ModelDigest> DigestLiveWeights(const PrecisionTable& table, const ModelWeights& weights,
                                      const Backend& backend);

}  // namespace octavo
