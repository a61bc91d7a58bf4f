#pragma once
// A fleet of HTTP calls: as many in flight as there are ports, on the one thread that asks for
// them. Each call has a connection of its own, as benchmark clients do.

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"

namespace octavo {

struct FleetOptions {
  int64_t num_calls = 0;
  int64_t in_flight_max = 0;  // 0: no bound. Beyond it calls wait, in their order.
  HttpTimeouts timeouts = {};
};

// What the calls of a fleet say and what becomes of them. All methods are called from within
// RunFleet, on its thread; `call_idx` counts from 0 in the order of sending.
class FleetScript {
 public:
  virtual ~FleetScript() = default;

  // Seconds after the start of RunFleet before which the call is not sent; must not fall.
  virtual double SendAfter(int64_t call_idx) = 0;
  // The JSON body of the call, asked for when its turn has come.
  virtual std::string Body(int64_t call_idx) = 0;
  // Right before the connection is opened.
  virtual void OnSend(int64_t call_idx) = 0;
  // The next bytes of the body of a reply with status 200.
  virtual void OnPiece(int64_t call_idx, std::string_view piece) = 0;
  // Once for each call, at its end. OK: the reply had status 200 and came whole. Otherwise the
  // errors of HttpClient::Call, or those of StatusOfReply.
  virtual void OnEnd(int64_t call_idx, const Status& status) = 0;
};

// POSTs every call of `script` to `target` and returns when the last has ended. Also raises the
// soft limit of open files to the hard one.
// Errors: kUnavailable when the host has no address. A call that fails ends through OnEnd alone.
Status RunFleet(const HttpUrl& url, std::string_view target, const FleetOptions& options,
                FleetScript& script);

}  // namespace octavo
