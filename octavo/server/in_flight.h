#pragma once
// How requests in flight meet the weights of a trainer's call.

#include "octavo/base/status.h"
#include "octavo/engine/engine.h"

namespace octavo {

// "flush_cache" and "abort_all_requests" of the call.
struct InFlightWish {
  bool flush_cache = true;
  bool abort_all = false;
};

// Retracted, unless all are to be aborted. A paused server may hold frozen requests (pause mode
// in_place); their pages and a flush cannot both be kept.
// Errors: kInvalidArgument for a flush that frozen requests stand against.
Result<InFlight> ChooseInFlight(const InFlightWish& wish, const EngineStats& stats);

}  // namespace octavo
