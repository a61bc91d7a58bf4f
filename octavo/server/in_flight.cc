#include "octavo/server/in_flight.h"

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"

namespace octavo {

Result<InFlight> ChooseInFlight(const InFlightWish& wish, const EngineStats& stats) {
  if (wish.abort_all) {
    return InFlight::kAbort;
  }
  const bool frozen = stats.paused && stats.num_running > 0;
  if (!frozen) {
    return InFlight::kRetract;
  }
  if (wish.flush_cache) {
    return InvalidArgument(
        "flush_cache: {} requests are frozen and hold KV pages; send flush_cache false to keep "
        "them, abort_all_requests true to end them, or pause with mode retract",
        stats.num_running);
  }
  return InFlight::kInPlace;
}

}  // namespace octavo
