// Method: targets and queries by hand, each error body against the table of docs/api.md, and the
// routing table by method, path and key.

#include "octavo/server/http.h"

#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/server/router.h"

namespace octavo {
namespace {

TEST(SplitTarget, DecodesThePathAndLeavesTheQuery) {
  EXPECT_EQ(*SplitTarget("/a%20b?x=1%20"), std::pair(std::string("/a b"), std::string("x=1%20")));
  EXPECT_EQ(SplitTarget("http://host:1/p?q")->first, "/p");
  EXPECT_EQ(SplitTarget("http://host")->first, "/");
  EXPECT_EQ(SplitTarget("/p#frag")->first, "/p");
  EXPECT_EQ(SplitTarget("/v1/models/a%2Fb")->first, "/v1/models/a/b");
  for (const std::string_view bad : {"", "x", "*", "/%", "/%2", "/%zz"}) {
    EXPECT_FALSE(SplitTarget(bad).has_value()) << bad;
  }
}

TEST(QueryValue, FindsTheFirstAndDecodes) {
  EXPECT_EQ(QueryValue("a=1&b=x%20y+z&a=2", "a"), "1");
  EXPECT_EQ(QueryValue("a=1&b=x%20y+z&a=2", "b"), "x y z");
  EXPECT_EQ(QueryValue("flag&b=", "flag"), "");
  EXPECT_EQ(QueryValue("flag&b=", "b"), "");
  EXPECT_EQ(QueryValue("ab=1", "a"), std::nullopt);
  EXPECT_EQ(QueryValue("", "a"), std::nullopt);
  EXPECT_EQ(QueryValue("a=%zz", "a"), std::nullopt);
}

TEST(SseEvent, IsOneLineAndABlankOne) { EXPECT_EQ(SseEvent("{}"), "data: {}\n\n"); }

TEST(ErrorBodies, HaveTheShapesThatClientsKnow) {
  EXPECT_EQ(RequestError(Corrupt("x")).body,
            R"({"object":"error","message":"x","type":"Bad Request","param":null,"code":400})");
  EXPECT_EQ(RequestError(Corrupt("x")).status, 400);
  EXPECT_EQ(RequestError(InvalidArgument("x")).body, R"({"error":{"message":"x"}})");
  EXPECT_EQ(RequestError(Unsupported("x")).status, 400);
  EXPECT_EQ(RequestError(Unavailable("x")).body,
            R"({"object":"error","message":"x","type":"503","param":null,"code":503})");
  EXPECT_EQ(RequestError(Exhausted("x")).status, 503);
  EXPECT_EQ(RequestError(Internal("x")).status, 500);
  EXPECT_EQ(WeightError(Corrupt("x"), true).body,
            R"({"success":false,"message":"x","num_paused_requests":0})");
  EXPECT_EQ(WeightError(Corrupt("x"), true).status, 400);
  EXPECT_EQ(NativeError(Unavailable("x")).status, 409);
  EXPECT_EQ(NativeError(NotFound("x")).status, 404);
  EXPECT_EQ(NativeError(Unavailable("x")).body, R"({"success":false,"message":"x"})");
  EXPECT_EQ(DetailError("Not Found", 404).body, R"({"detail":"Not Found"})");
  EXPECT_TRUE(EmptyResponse(503).body.empty());
}

TEST(MatchRoute, KnowsBothNamesAndBothMethods) {
  EXPECT_EQ(MatchRoute(HttpMethod::kGet, "/model_info").endpoint, Endpoint::kModelInfo);
  EXPECT_EQ(MatchRoute(HttpMethod::kGet, "/get_model_info").endpoint, Endpoint::kModelInfo);
  EXPECT_EQ(MatchRoute(HttpMethod::kPut, "/generate").endpoint, Endpoint::kGenerate);
  EXPECT_EQ(MatchRoute(HttpMethod::kPost, "/flush_cache").endpoint, Endpoint::kFlushCache);
  EXPECT_EQ(MatchRoute(HttpMethod::kGet, "/flush_cache").endpoint, Endpoint::kFlushCache);
  const RouteMatch model = MatchRoute(HttpMethod::kGet, "/v1/models/a/b");
  EXPECT_EQ(model.endpoint, Endpoint::kModel);
  EXPECT_EQ(model.suffix, "a/b");
}

TEST(MatchRoute, Says404And405Apart) {
  for (const std::string_view path :
       {"/nope", "/v1/models/", "/generate/", "", "/load_lora_adapter", "/update_weights_from_ipc",
        "/v1/embeddings"}) {
    EXPECT_EQ(MatchRoute(HttpMethod::kPost, path).status, 404) << path;
  }
  const RouteMatch wrong = MatchRoute(HttpMethod::kGet, "/generate");
  EXPECT_EQ(wrong.status, 405);
  EXPECT_EQ(wrong.allow, "POST, PUT");
  EXPECT_EQ(MatchRoute(HttpMethod::kPost, "/health").status, 405);
  EXPECT_EQ(MatchRoute(HttpMethod::kOther, "/health").status, 405);
}

TEST(IsAuthorized, WithoutKeysIgnoresTheHeader) {
  for (const Access access : {Access::kOpen, Access::kUser, Access::kControl}) {
    EXPECT_TRUE(IsAuthorized(access, "Bearer None", {}));
    EXPECT_TRUE(IsAuthorized(access, "", {}));
  }
}

TEST(IsAuthorized, TheAdminKeyAloneOpensControlAndAllElse) {
  const ApiKeys keys = {.api_key = "user", .admin_api_key = "admin"};
  EXPECT_TRUE(IsAuthorized(Access::kOpen, "", keys));
  EXPECT_TRUE(IsAuthorized(Access::kUser, "Bearer user", keys));
  EXPECT_TRUE(IsAuthorized(Access::kUser, "Bearer admin", keys));
  EXPECT_FALSE(IsAuthorized(Access::kControl, "Bearer user", keys));
  EXPECT_TRUE(IsAuthorized(Access::kControl, "Bearer admin", keys));
  EXPECT_FALSE(IsAuthorized(Access::kUser, "Bearer use", keys));
  EXPECT_FALSE(IsAuthorized(Access::kUser, "Bearer useruser", keys));
  EXPECT_FALSE(IsAuthorized(Access::kUser, "user", keys));
  EXPECT_FALSE(IsAuthorized(Access::kUser, "", keys));
  EXPECT_FALSE(IsAuthorized(Access::kUser, "Bearer ", {.api_key = "user", .admin_api_key = ""}));
  EXPECT_TRUE(
      IsAuthorized(Access::kControl, "Bearer user", {.api_key = "user", .admin_api_key = ""}));
}

}  // namespace
}  // namespace octavo
