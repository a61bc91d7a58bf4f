#pragma once
// The live weights of a server, in canonical bytes: GET /octavo/v1/weights and its bytes
// (docs/api.md).

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/http_client.h"

namespace octavo {

struct RemoteTensor {
  std::string name;
  DType dtype = DType::kBf16;
  Shape shape = {};
  int64_t begin_bytes = 0;  // Of the file of all of them.
  int64_t end_bytes = 0;
  std::string digest;
};

struct RemoteWeights {
  std::string weight_version;
  std::string weight_digest;
  std::string weight_format;
  std::string policy_hash;
  std::string recipe;
  std::vector<RemoteTensor> tensors;  // In the order of the file, without gaps between them.
};

// Errors: those of GetText; kCorrupt for a reply that is not one.
Result<RemoteWeights> ListRemoteWeights(HttpClient& client);

// Which weights are live now, without reading them.
struct RemoteVersion {
  std::string weight_version;
  std::string weight_digest;  // Empty: none are.
};
Result<RemoteVersion> GetRemoteVersion(HttpClient& client);

// Fills `out` with the file's bytes from `begin_bytes` on. Errors: kCancelled when other weights
// than those of `weight_digest` are live by now; those of HttpClient::Call; kCorrupt for a reply of
// another size.
Status ReadRemoteWeights(HttpClient& client, std::string_view weight_digest, int64_t begin_bytes,
                         std::span<std::byte> out);

}  // namespace octavo
