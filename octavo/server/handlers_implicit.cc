// Updates that a trainer's buckets have opened, and the calls that end them. A framework that knows
// no transaction says by other calls that it has sent everything: miles by /end_weight_update,
// slime and AReaL by /continue_generation, NeMo-RL by taking the memory of the KV cache again.

#include <functional>
#include <string>

#include "octavo/base/check.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/engine/engine.h"
#include "octavo/server/application.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// Requests that a pause has frozen go on as they are; there are none that run otherwise.
InFlight InFlightOf(const EngineStats& stats) {
  return stats.paused && stats.num_running > 0 ? InFlight::kInPlace : InFlight::kRetract;
}

// Whatever happens, the update is over.
Status SealAndCommit(Serving* serving, const std::string& id) {
  Status status = serving->updater->Seal(id);
  if (status.ok()) {
    status = serving->updater->Commit(id, InFlightOf(serving->engine->Stats())).error();
  }
  if (!status.ok()) {
    serving->updater->Abort(id);
  }
  AwaitBoundary(serving->engine.get());
  return status;
}

}  // namespace

bool Application::HasImplicitUpdate() const { return update_.has_value() && update_->is_implicit; }

void Application::EndImplicitUpdate(const std::function<void(const Status&)>& then) {
  CHECK(HasImplicitUpdate());
  const std::string id = update_->id;
  if (update_->num_busy > 0) {
    return then(Unavailable("weight update {}: a bucket is still being staged", id));
  }
  ++update_->num_busy;
  const bool accepted = reactor_->RunBlocking([this, reactor = reactor_, id, then] {
    const Status status = SealAndCommit(serving_, id);
    reactor->Post([this, id, status, then] {
      if (update_.has_value() && update_->id == id) {
        update_.reset();
      }
      if (!status.ok()) {
        LOG(WARNING, "weight update dropped id={} reason=\"{}\"", id, status.message());
      }
      then(status);
    });
  });
  if (!accepted) {
    ReleaseUpdate(id);
    then(Exhausted("too many weight calls are waiting for their turn"));
  }
}

}  // namespace octavo
