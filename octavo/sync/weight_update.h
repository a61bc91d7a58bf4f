#pragma once
// Weight updates as one transaction: begin, put tensors, seal, commit (or abort). A cold load is
// transaction 0. State machine: IDLE -> OPEN -> SEALED -> IDLE (docs/design/0003).

#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/engine/engine.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// One line of a model digest.
struct TensorDigestLine {
  std::string name;
  DType dtype = DType::kU8;
  Shape shape;
  std::string hex;
};
struct ModelDigest {
  std::vector<TensorDigestLine> tensors;  // Sorted by name as bytes.
  std::string hex;                        // XXH3-128 over the lines "NAME DTYPE D0,D1,... HEX\n".
};

struct CommitReport {
  std::string version;
  SwapReport swap;
  int64_t bytes_in = 0;       // As received.
  int64_t bytes_staged = 0;   // Canonical bytes of what was staged.
  double put_seconds = 0.0;   // Spent quantizing and packing.
  double seal_seconds = 0.0;
  double commit_seconds = 0.0;  // From the commit call to the swap having happened.
};

// Packs checkpoint tensors for `backend` by `table`: transaction 0. BF16, F16 and F32 sources go
// through the transform; tensors already in their stored form are adopted.
Result<std::unique_ptr<ModelWeights>> LoadWeights(const Checkpoint& checkpoint,
                                                  const ModelSpec& spec,
                                                  const PrecisionTable& table, Backend& backend);
// Random weights of the right shapes (--load-format dummy): N(0, 0.02), seeded by tensor name.
Result<std::unique_ptr<ModelWeights>> DummyWeights(const ModelSpec& spec,
                                                   const PrecisionTable& table, Backend& backend);

// Reads the canonical bytes back out of packed weights and digests them.
Result<ModelDigest> DigestLiveWeights(const ModelSpec& spec, const PrecisionTable& table,
                                      const ModelWeights& weights, const Backend& backend);

// Thread-safe. One update at a time.
class WeightUpdater {
 public:
  // `engine`, `backend` outlive the updater; `backend` is the engine's (only its const,
  // thread-safe packing is used here).
  WeightUpdater(Engine* engine, const Backend* backend, const ModelSpec& spec,
                const PrecisionTable& table);
  ~WeightUpdater();

  // Opens an update; returns its id. Errors: kUnavailable when one is open (the message says which
  // and since when), kExhausted when staging memory cannot be had.
  Result<std::string> Begin(const std::string& version);
  // Stages one tensor under its HF name: a weight in BF16, F16 or F32, or stored parts (codes and
  // scales, in any order). Idempotent for equal bytes.
  // Errors: kInvalidArgument naming the tensor (unknown name, shape, dtype, NaN, a second value),
  // kNotFound for another id or none open. An error leaves the update open; the caller aborts.
  Status Put(const std::string& id, std::string_view name, const ConstTensorView& tensor);
  // The ledger must close: every weight of the table staged. Errors: kInvalidArgument naming the
  // first missing tensors and how many.
  Status Seal(const std::string& id);
  // Swaps; blocks until it has happened.
  Result<CommitReport> Commit(const std::string& id, InFlight in_flight);
  // Drops the staging; a no-op when that update is not open.
  void Abort(const std::string& id);

  // Begin, Put all, Seal, Commit from a checkpoint directory. A low-precision source must have the
  // served table: kInvalidArgument naming the first tensor that differs, nothing changed.
  Result<CommitReport> UpdateFromDisk(const std::string& dir, const std::string& version,
                                      InFlight in_flight);

  // Digest of what is live now, read between two steps.
  Result<ModelDigest> LiveDigest();

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
