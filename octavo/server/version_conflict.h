#pragma once
// How a request is told that the weights it demands are not live: 409, worth another try.

#include <string>
#include <string_view>

#include "octavo/engine/version_demand.h"
#include "octavo/server/http.h"

namespace octavo {

// 409 {"object":"error","message":S,"type":"WeightVersionConflict","param":FIELD,"code":409,
// "retryable":true,"demanded_weight_version":S,"weight_version":LIVE}, for /generate and /v1 alike.
// `demand` is one that `live` does not meet.
HttpResponse VersionConflictError(const VersionDemand& demand, std::string_view live);
// The same of a stream that has begun, as an event: {"error":{"message":S,"type":
// "weight_version_conflict", and the rest as above}}.
std::string VersionConflictEvent(const VersionDemand& demand, std::string_view live);

}  // namespace octavo
