#include "octavo/server/router.h"

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/server/http.h"

namespace octavo {
namespace {

constexpr uint8_t kGet = 1;
constexpr uint8_t kPost = 2;
constexpr uint8_t kPut = 4;

struct Route {
  std::string_view path;
  uint8_t methods;
  Access access;
  Endpoint endpoint;
};

constexpr Route kRoutes[] = {
    {"/health", kGet, Access::kOpen, Endpoint::kHealth},
    {"/health_generate", kGet, Access::kOpen, Endpoint::kHealthGenerate},
    {"/ping", kGet, Access::kUser, Endpoint::kPing},
    {"/", kGet, Access::kOpen, Endpoint::kStatusPage},  // The page asks for the key itself.
    {"/metrics", kGet, Access::kOpen, Endpoint::kMetrics},
    {"/generate", kPost | kPut, Access::kUser, Endpoint::kGenerate},
    {"/v1/completions", kPost, Access::kUser, Endpoint::kCompletions},
    {"/v1/chat/completions", kPost, Access::kUser, Endpoint::kChatCompletions},
    {"/tokenize", kPost, Access::kUser, Endpoint::kTokenize},
    {"/v1/tokenize", kPost, Access::kUser, Endpoint::kTokenize},
    {"/detokenize", kPost, Access::kUser, Endpoint::kDetokenize},
    {"/v1/detokenize", kPost, Access::kUser, Endpoint::kDetokenize},
    {"/model_info", kGet, Access::kUser, Endpoint::kModelInfo},
    {"/get_model_info", kGet, Access::kUser, Endpoint::kModelInfo},
    {"/server_info", kGet, Access::kUser, Endpoint::kServerInfo},
    {"/get_server_info", kGet, Access::kUser, Endpoint::kServerInfo},
    {"/v1/models", kGet, Access::kUser, Endpoint::kModels},
    {"/v1/loads", kGet, Access::kUser, Endpoint::kLoads},
    {"/weight_version", kGet, Access::kUser, Endpoint::kWeightVersion},
    {"/get_weight_version", kGet, Access::kUser, Endpoint::kWeightVersion},
    {"/abort_request", kPost, Access::kControl, Endpoint::kAbortRequest},
    {"/flush_cache", kGet | kPost, Access::kControl, Endpoint::kFlushCache},
    {"/pause_generation", kPost, Access::kControl, Endpoint::kPauseGeneration},
    {"/continue_generation", kPost, Access::kControl, Endpoint::kContinueGeneration},
    {"/release_memory_occupation", kGet | kPost, Access::kControl, Endpoint::kReleaseMemory},
    {"/resume_memory_occupation", kGet | kPost, Access::kControl, Endpoint::kResumeMemory},
    {"/update_weights_from_disk", kPost, Access::kControl, Endpoint::kUpdateFromDisk},
    {"/update_weights_from_tensor", kPost, Access::kControl, Endpoint::kUpdateFromTensor},
    {"/pull_weights", kPost, Access::kControl, Endpoint::kPullWeights},
    {"/init_weights_update_group", kPost, Access::kControl, Endpoint::kInitUpdateGroup},
    {"/update_weights_from_distributed", kPost, Access::kControl, Endpoint::kUpdateFromDistributed},
    {"/destroy_weights_update_group", kPost, Access::kControl, Endpoint::kDestroyUpdateGroup},
    {"/update_weight_version", kPost, Access::kControl, Endpoint::kUpdateWeightVersion},
    {"/get_weights_by_name", kGet | kPost, Access::kControl, Endpoint::kWeightsByName},
    {"/weights_checker", kGet | kPost, Access::kControl, Endpoint::kWeightsChecker},
    {"/begin_weight_update", kPost, Access::kControl, Endpoint::kBeginWeightUpdate},
    {"/end_weight_update", kPost, Access::kControl, Endpoint::kEndWeightUpdate},
    {"/post_process_weights", kPost, Access::kControl, Endpoint::kPostProcessWeights},
    {"/start_profile", kGet | kPost, Access::kControl, Endpoint::kStartProfile},
    {"/stop_profile", kGet | kPost, Access::kControl, Endpoint::kStopProfile},
    {"/octavo/v1/update", kGet, Access::kUser, Endpoint::kUpdateStatus},
    {"/octavo/v1/update/begin", kPost, Access::kControl, Endpoint::kUpdateBegin},
    {"/octavo/v1/update/put", kPost, Access::kControl, Endpoint::kUpdatePut},
    {"/octavo/v1/update/seal", kPost, Access::kControl, Endpoint::kUpdateSeal},
    {"/octavo/v1/update/probe", kPost, Access::kControl, Endpoint::kUpdateProbe},
    {"/octavo/v1/update/commit", kPost, Access::kControl, Endpoint::kUpdateCommit},
    {"/octavo/v1/update/abort", kPost, Access::kControl, Endpoint::kUpdateAbort},
    {"/octavo/v1/digest", kGet, Access::kUser, Endpoint::kDigest},
    {"/octavo/v1/policy", kGet, Access::kUser, Endpoint::kPolicy},
    {"/octavo/v1/ready", kGet, Access::kOpen, Endpoint::kReady},
    {"/octavo/v1/weights", kGet, Access::kControl, Endpoint::kWeights},
    {"/octavo/v1/weights/bytes", kGet, Access::kControl, Endpoint::kWeightBytes},
    {"/octavo/v1/manifest", kGet, Access::kUser, Endpoint::kManifest},
};

constexpr std::string_view kModelPrefix = "/v1/models/";
constexpr Route kModelRoute = {kModelPrefix, kGet, Access::kUser, Endpoint::kModel};

uint8_t MethodBit(HttpMethod method) {
  switch (method) {
    case HttpMethod::kGet:
      return kGet;
    case HttpMethod::kPost:
      return kPost;
    case HttpMethod::kPut:
      return kPut;
    case HttpMethod::kOther:
      return 0;
  }
  return 0;
}

const Route* FindRoute(std::string_view path) {
  for (const Route& route : kRoutes) {
    if (route.path == path) {
      return &route;
    }
  }
  const bool is_model = path.starts_with(kModelPrefix) && path.size() > kModelPrefix.size();
  return is_model ? &kModelRoute : nullptr;
}

std::string AllowHeader(uint8_t methods) {
  std::string allow;
  for (const auto& [bit, name] : {std::pair(kGet, "GET"), {kPost, "POST"}, {kPut, "PUT"}}) {
    if ((methods & bit) != 0) {
      allow += allow.empty() ? "" : ", ";
      allow += name;
    }
  }
  return allow;
}

bool EqualsInConstantTime(std::string_view given, std::string_view expected) {
  unsigned difference = given.size() == expected.size() ? 0 : 1;
  for (size_t i = 0; i < given.size(); ++i) {
    const char other = expected.empty() ? '\0' : expected[i % expected.size()];
    difference |= static_cast<unsigned char>(given[i] ^ other);
  }
  return difference == 0;
}

}  // namespace

RouteMatch MatchRoute(HttpMethod method, std::string_view path) {
  const Route* route = FindRoute(path);
  if (route == nullptr) {
    return {.status = 404};
  }
  if ((route->methods & MethodBit(method)) == 0) {
    return {.status = 405,
            .access = route->access,
            .route = route->path,
            .allow = AllowHeader(route->methods)};
  }
  RouteMatch match{.endpoint = route->endpoint, .access = route->access, .route = route->path};
  if (route->endpoint == Endpoint::kModel) {
    match.suffix = path.substr(kModelPrefix.size());
  }
  return match;
}

std::vector<RouteInfo> ListRoutes() {
  std::vector<RouteInfo> routes;
  for (const Route& route : kRoutes) {
    routes.push_back({std::string(route.path), AllowHeader(route.methods), route.access});
  }
  routes.push_back({fmt::format("{}{{id}}", kModelPrefix), AllowHeader(kModelRoute.methods),
                    kModelRoute.access});
  return routes;
}

bool IsAuthorized(Access access, std::string_view authorization, const ApiKeys& keys) {
  const bool wants_admin = access == Access::kControl && !keys.admin_api_key.empty();
  if (access == Access::kOpen || (!wants_admin && keys.api_key.empty())) {
    return true;
  }
  constexpr std::string_view kScheme = "Bearer ";
  if (!authorization.starts_with(kScheme)) {
    return false;
  }
  const auto is_key = [&](const std::string& key) {
    return !key.empty() && EqualsInConstantTime(authorization.substr(kScheme.size()), key);
  };
  // Who may change the server may ask it too: a push does both.
  return is_key(keys.admin_api_key) || (!wants_admin && is_key(keys.api_key));
}

}  // namespace octavo
