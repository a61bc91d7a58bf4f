#pragma once
// The digest of what an engine holds, read back from its live memory.

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/digest.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Unpacks every weight to its canonical bytes, a band of rows at a time, and digests them
// (convert/digest.h): codes, scales, the scale of the tensor and the input scale that the
// checkpoint stores. Equal to the digest of a checkpoint directory that stores the same table in
// the same layout; a kept vector is told in the dtype in which it is held, and an MTP row that is
// not held has no line. `pool` may be null.
// Thread-safe while nothing writes `weights`. Errors: those of Backend::Unpack.
Result<ModelDigest> DigestLiveWeights(const PrecisionTable& table, const ModelWeights& weights,
                                      const Backend& backend, ThreadPool* pool);

// The digest covers the matrices; this, what is computed from them: derived weights must be what
// DeriveWeights makes of the live matrices, byte for byte. Thread-safe as above.
// Errors: kCorrupt when they are not; kExhausted.
Status CheckDerivedWeights(const ModelSpec& spec, const ModelWeights& weights,
                           const Backend& backend);

}  // namespace octavo
