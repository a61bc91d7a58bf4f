#pragma once
// LiveWeights: the weights that an engine serves, as a whole: updates put others in their place,
// checks read them, and their memory can be given back to the system and taken again.

#include <memory>
#include <mutex>
#include <optional>
#include <string>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_file.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

struct LiveWeightsOptions {
  // Releasing the weights keeps a copy in a file, so that resuming brings them back bit for bit.
  // Without one they are lost, and requests are held until an update has brought new ones.
  bool keep_backup = false;
  std::string backup_dir = "/var/tmp";
};

// Thread-safe; every call blocks until it is done, one after the other.
class LiveWeights {
 public:
  // All outlive it; `backend` is the engine's (only what is const is used).
  LiveWeights(Engine* engine, const Backend* backend, const WeightPlan* plan,
              LiveWeightsOptions options);

  // What an update keeps of them when it does not bring it; also when they were released.
  LiveBase Base();
  // Makes `weights` live at a step boundary, whatever there was; a copy of others is dropped.
  SwapReport Swap(std::unique_ptr<ModelWeights> weights, const std::string& version,
                  InFlight in_flight);
  // Takes them away for an update in place: requests are held until a Swap. Null: none were live.
  // Errors: kUnavailable while a request holds KV pages.
  Result<std::unique_ptr<ModelWeights>> TakeForUpdate();
  // Untouched ones come back as they were; else nobody may use what is left.
  void GiveBack(std::unique_ptr<ModelWeights> weights);
  void Poison();
  // Engine::VoidWeights.
  Status Void(std::unique_ptr<ModelWeights> weights);

  // Engine::ReleaseMemory and ResumeMemory; what the process frees goes back to the system.
  // Errors: theirs, and those of WeightFile; then nothing has changed.
  Status Release(MemoryParts parts);
  Status Resume(MemoryParts parts);

  // Calls `read` with what is there, while serving goes on. Errors: kUnavailable when the weights
  // are released; those of `read`.
  Status Read(FunctionRef<Status(const ModelWeights& live)> read);
  // Read, with the digest. Errors: also kCorrupt when derived weights are not what the others give.
  Result<ModelDigest> Digest();

  const LiveWeightsOptions& options() const { return options_; }
  const WeightPlan& plan() const { return plan_; }
  const Backend& backend() const { return backend_; }

 private:
  template <typename T>
  T BetweenSteps(T (*fn)(const ModelWeights& live)) const;
  SwapReport SwapLocked(std::unique_ptr<ModelWeights> weights, const std::string& version,
                        InFlight in_flight);
  Result<std::unique_ptr<ModelWeights>> TakeFromEngine(MemoryParts parts);
  Status KeepBackup(std::unique_ptr<ModelWeights> weights);

  Engine& engine_;
  const Backend& backend_;
  const WeightPlan& plan_;
  const LiveWeightsOptions options_;

  std::mutex mutex_;  // Held while weights are exchanged or read; guards what follows.
  std::optional<WeightFile> backup_;  // Of weights that are released.
  std::optional<LiveBase> base_;      // Of weights that were released.
};

}  // namespace octavo
