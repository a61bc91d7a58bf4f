#pragma once
// Which endpoint a request is for, and who may call it.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/server/http.h"

namespace octavo {

enum class Endpoint {
  kHealth,
  kHealthGenerate,
  kPing,
  kStatusPage,
  kMetrics,
  kGenerate,
  kCompletions,
  kChatCompletions,
  kTokenize,
  kDetokenize,
  kModelInfo,
  kServerInfo,
  kModels,
  kModel,  // /v1/models/{id}
  kLoads,
  kWeightVersion,
  kAbortRequest,
  kFlushCache,
  kPauseGeneration,
  kContinueGeneration,
  kReleaseMemory,
  kResumeMemory,
  kUpdateFromDisk,
  kUpdateFromTensor,
  kPullWeights,
  kInitUpdateGroup,
  kUpdateFromDistributed,
  kDestroyUpdateGroup,
  kUpdateWeightVersion,
  kWeightsByName,
  kWeightsChecker,
  kBeginWeightUpdate,  // miles' bracket around a disk update.
  kEndWeightUpdate,
  kPostProcessWeights,
  kStartProfile,
  kStopProfile,
  kUpdateStatus,  // The native calls: /octavo/v1/...
  kUpdateBegin,
  kUpdatePut,
  kUpdateSeal,
  kUpdateProbe,
  kUpdateCommit,
  kUpdateAbort,
  kDigest,
  kPolicy,
  kManifest,
  kReady,
  kWeights,
  kWeightBytes,
};

enum class Access : uint8_t {
  kOpen,     // Never asks for a key.
  kUser,     // Asks for the API key when one is set.
  kControl,  // Asks for the admin key when one is set, else for the API key.
};

struct RouteMatch {
  int status = 200;  // 404 and 405 match no endpoint.
  Endpoint endpoint = Endpoint::kHealth;
  Access access = Access::kUser;
  std::string_view route = {};  // As the table has it; "" for 404.
  std::string allow = {};       // For 405: "GET, POST".
  std::string suffix = {};      // The {id} of kModel.
};

RouteMatch MatchRoute(HttpMethod method, std::string_view path);

// One path that is answered, for what is checked against the documentation.
struct RouteInfo {
  std::string path;     // "/v1/models/{id}" for the one with a suffix.
  std::string methods;  // As in Allow: "GET, POST".
  Access access = Access::kUser;
};
std::vector<RouteInfo> ListRoutes();

struct ApiKeys {
  std::string api_key;        // Empty: none is asked for.
  std::string admin_api_key;  // Empty: control endpoints take the API key.
};

// `authorization` is the header's value. The time it takes does not depend on where a wrong key
// differs.
bool IsAuthorized(Access access, std::string_view authorization, const ApiKeys& keys);

}  // namespace octavo
