#pragma once
// What one peer may take of the server: bytes, connections, seconds. docs/serving.md lists them.

#include <cstdint>

namespace octavo {

struct HttpLimits {
  int64_t body_bytes_max = int64_t{256} << 20;      // Of one request. Beyond: 413.
  int64_t all_bodies_bytes_max = int64_t{4} << 30;  // Of the bodies being read now. Beyond: 503.
  int64_t header_bytes_max = 64 << 10;              // Request line included. Beyond: 431.
  int64_t header_fields_max = 256;                  // Beyond: 431.
  int64_t connections_max = 65536;                  // Beyond: closed at once.
  // Of a connection without a request; then it is closed. Never applied while one is in flight.
  double idle_seconds = 120.0;
  double header_seconds = 60.0;  // For a whole head, from its first byte. Beyond: 408.
  // For a body, and one more second for each body_bytes_per_second_min that came. Beyond: 408.
  double body_seconds = 60.0;
  int64_t body_bytes_per_second_min = 64 << 10;
  // Without the peer taking a byte of its answer. Long: a trainer may be busy elsewhere.
  double write_stall_seconds = 600.0;
  int64_t pending_bytes_max = int64_t{512} << 20;  // Of answers that a peer does not take.
  // After an answer to a request that was not read to its end: what else comes is dropped.
  double linger_seconds = 5.0;
};

}  // namespace octavo
