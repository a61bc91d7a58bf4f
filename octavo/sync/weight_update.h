#pragma once
// Weight updates as one transaction: begin, put tensors, seal, commit (or abort). State machine:
// IDLE -> OPEN -> SEALED -> IDLE (docs/design/0003-weight-updates.md).

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/staging_budget.h"
#include "octavo/sync/version_record.h"
#include "octavo/sync/weight_change.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// Where new weights are built up.
enum class StagingMode {
  kShadow,   // Beside the live ones, which serve meanwhile; an abort changes nothing.
  kInPlace,  // In the memory of the live ones, which are taken away; an abort leaves no weights.
};

// Which weights an update has to bring. The others stay what they are, but a set that shares a
// scale changes as a whole: its members were encoded together.
enum class Require {
  kAll,   // Every weight of the table.
  kSeen,  // Those that the first update of this run brought, for a trainer that freezes some; that
          // one may bring any.
  kAny,   // None.
};
// "all", "seen", "any".
std::optional<Require> ParseRequire(std::string_view name);

struct CommitReport {
  std::string version;
  std::string digest = {};  // Of the new weights, sealed before the swap: 32 hex digits.
  SwapReport swap;
  int64_t num_tensors = 0;                     // Weights of the table that were staged.
  int64_t bytes_in = 0;                        // As received.
  int64_t bytes_staged = 0;                    // Canonical bytes of what was staged.
  std::vector<std::string> carried_over = {};  // Weights that stayed what they were.
  WeightChange change;                         // Of all weights ...
  std::vector<WeightChange> changes = {};      // ... and of each row of the table.
  double put_seconds = 0.0;                    // Spent quantizing and packing.
  double seal_seconds = 0.0;                   // Spent on the ledger and the digest.
  double commit_seconds = 0.0;                 // From the commit call to the swap having happened.
  double open_seconds = 0.0;  // From begin to the swap: what lies between the others is transfer.
  int64_t unix_seconds = 0;   // When the swap had happened.
  bool from_disk = false;     // By UpdateFromDisk.
};

// What all updates so far came to.
struct UpdateTotals {
  int64_t num_committed = 0;
  int64_t num_failed = 0;   // From disk, and refused.
  int64_t num_dropped = 0;  // Aborted, or displaced by another.
  // Of those that were committed:
  double put_seconds = 0.0;
  double seal_seconds = 0.0;
  double commit_seconds = 0.0;
  double pause_seconds = 0.0;
  int64_t bytes_in = 0;
  int64_t bytes_staged = 0;
  // From begin to swap of the last one of each source; 0: there was none.
  double last_disk_seconds = 0.0;
  double last_push_seconds = 0.0;
};

// Thread-safe. One update at a time.
class WeightUpdater {
 public:
  struct Options {
    // An open update that nobody touched for this long may be displaced by the next Begin.
    double idle_timeout_s = 300.0;
    // Of one update, StagingBudgetArgs::waiting_bytes_max.
    int64_t waiting_bytes_max = int64_t{4} << 30;
    // What may have been received and wait for its turn: the server's largest body.
    int64_t bucket_bytes_max = int64_t{256} << 20;
    // ServingOptions::config_overrides: a source on disk is read as the served folder was.
    std::string config_overrides = {};
    LiveWeightsOptions live = {};
    // Versions must grow from one run of the server to the next (VersionRecord), and every commit
    // is recorded before it happens. Outlives the updater; null: any version may follow any.
    VersionRecord* versions = nullptr;
  };

  // `engine` and `backend` outlive the updater; `backend` is the engine's (only its const,
  // thread-safe packing is used here). So does `plan`.
  WeightUpdater(Engine* engine, const Backend* backend, const WeightPlan* plan);
  WeightUpdater(Engine* engine, const Backend* backend, const WeightPlan* plan, Options options);
  ~WeightUpdater();
  WeightUpdater(const WeightUpdater&) = delete;
  WeightUpdater& operator=(const WeightUpdater&) = delete;

  // Opens an update; returns its id. In place it takes the live weights away: requests are held
  // until the commit, and none may hold KV pages now. An empty version is NextVersion of
  // the live one, or of the recorded one where that is later. Errors: kUnavailable when one is open
  // (the message says which, and how long it has been idle), or when the weights cannot be taken
  // away; kExhausted when the memory does not hold what is staged; VersionRecord::CheckNext's.
  Result<std::string> Begin(const std::string& version, StagingMode mode = StagingMode::kShadow,
                            Require require = Require::kAll);
  // Labels the open update anew. Errors: kNotFound, kUnavailable while a call works on it;
  // VersionRecord::CheckNext's.
  Status SetVersion(const std::string& id, const std::string& version);
  // What the open update takes of the memory, at most. Errors: kNotFound.
  Result<StagingBudget> BudgetOf(const std::string& id) const;
  // So many bytes of a bucket are about to lie in memory at once, which may be more than Begin
  // counted for what is received: a trainer's group decides that. Counts them in the budget of the
  // open update, if there is one. Errors: kExhausted when the memory does not hold them beside what
  // the update still has to stage.
  Status CountBucket(int64_t num_bytes);
  // Stages one tensor under its HF name, or rows of it: a weight in BF16, F16 or F32, or its stored
  // parts (codes and scales, in any order), or an input scale (Staging::Put). Idempotent for equal
  // bytes. The source is never written.
  // Errors: those of Staging::Put, kNotFound for an id that is not open. An error leaves the update
  // open and the live weights untouched.
  Status Put(const std::string& id, std::string_view name, const ConstTensorView& tensor);
  // The ledger must close (Staging::Seal): every weight that is required staged, with all its
  // parts. Input scales that the update does not bring are carried over from the live weights.
  // Errors: kInvalidArgument naming the first missing tensors and how many, kNotFound.
  Status Seal(const std::string& id);
  // Of the sealed weights, as they will be live. Errors: kInvalidArgument when they are not sealed,
  // kNotFound, kUnavailable while a call works on them.
  Result<ModelDigest> SealedDigest(const std::string& id);
  // Lends the sealed weights to `use`, which puts them back as they were. When it fails the update
  // is refused at the commit, with this error, until `use` of a later call succeeds.
  // Errors: those of `use` and of SealedDigest.
  Status TrySealed(const std::string& id,
                   FunctionRef<Status(std::unique_ptr<ModelWeights>* weights)> use);
  // Swaps a sealed update at a step boundary; blocks until it has happened.
  // Errors: kInvalidArgument when it is not sealed, or a TrySealed failed; kNotFound; kUnavailable
  // when the engine stops; those of VersionRecord::Write, and then the old weights stay.
  Result<CommitReport> Commit(const std::string& id, InFlight in_flight);
  // Drops the staging; a no-op when that update is not open. Of one in place: the weights are as
  // they were if none had been put, else they are poisoned (WeightState).
  void Abort(const std::string& id);

  // Begin, Put all, Seal, Commit from a checkpoint directory; on error nothing has changed. A BF16
  // source is quantized by the served table; a low-precision source must have the served table:
  // kInvalidArgument naming the first tensor that differs.
  Result<CommitReport> UpdateFromDisk(const std::string& dir, const std::string& version,
                                      InFlight in_flight);

  // The last commit that succeeded; absent before the first.
  std::optional<CommitReport> LastCommit() const;
  UpdateTotals Totals() const;

  // Digest of what is live now, read from the live memory while serving goes on; commits wait.
  // Errors: kCorrupt when weights derived from the live ones are not what those give.
  Result<ModelDigest> LiveDigest();
  // What the updates are updates of.
  LiveWeights& live();

 private:
  struct Impl;
  Result<CommitReport> StageAndCommit(const std::string& dir, const std::string& version,
                                      InFlight in_flight);

  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
