// Method: the routes of the program against docs/openapi.json and docs/api.md, both ways, so that
// neither can be forgotten when the other changes.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "octavo/base/file.h"
#include "octavo/server/router.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

Json OpenApi() {
  const Result<std::string> text = ReadTextFile("docs/openapi.json");
  EXPECT_TRUE(text.has_value()) << text.error().message();
  return Json::parse(*text);
}

// "get" of "GET, POST" and so on.
std::set<std::string> MethodsOf(const RouteInfo& route) {
  std::set<std::string> methods;
  for (const auto& [upper, lower] : {std::pair("GET", "get"), {"POST", "post"}, {"PUT", "put"}}) {
    if (route.methods.find(upper) != std::string::npos) {
      methods.insert(lower);
    }
  }
  return methods;
}

TEST(RouteDocs, TheOpenApiFileHasEveryRouteWithItsMethodsAndNoOther) {
  std::map<std::string, std::set<std::string>> documented;
  const Json document = OpenApi();
  for (const auto& [path, operations] : document["paths"].items()) {
    for (const auto& [method, operation] : operations.items()) {
      documented[path].insert(method);
    }
  }
  std::map<std::string, std::set<std::string>> served;
  for (const RouteInfo& route : ListRoutes()) {
    served[route.path] = MethodsOf(route);
  }
  EXPECT_EQ(documented, served);
}

TEST(RouteDocs, TheOpenApiFileSaysWhereAKeyIsAskedFor) {
  const Json document = OpenApi();
  for (const RouteInfo& route : ListRoutes()) {
    for (const std::string& method : MethodsOf(route)) {
      const Json& operation = document["paths"][route.path][method];
      const bool is_open = route.access == Access::kOpen;
      EXPECT_EQ(operation.contains("security"), is_open) << method << " " << route.path;
      EXPECT_EQ(operation["responses"].contains("401"), !is_open) << method << " " << route.path;
    }
  }
}

// What the connection itself answers while it reads a body.
TEST(RouteDocs, TheOpenApiFileSaysWhereABodyMayBeTooSlowOrTooLarge) {
  const Json document = OpenApi();
  for (const auto& [path, operations] : document["paths"].items()) {
    for (const auto& [method, operation] : operations.items()) {
      const bool has_body = operation.contains("requestBody");
      for (const char* status : {"408", "413"}) {
        EXPECT_EQ(operation["responses"].contains(status), has_body)
            << method << " " << path << " " << status;
      }
    }
  }
}

TEST(RouteDocs, TheApiPageSaysWhatTheConnectionAnswers) {
  const Result<std::string> page = ReadTextFile("docs/api.md");
  ASSERT_TRUE(page.has_value());
  for (const char* status : {"| 408 |", "| 413 |", "| 431 |", "| 503 |"}) {
    EXPECT_THAT(*page, testing::HasSubstr(status));
  }
}

TEST(RouteDocs, EveryReferenceOfTheOpenApiFileIsThere) {
  const Json document = OpenApi();
  std::set<std::string> used;
  const std::string text = document.dump();
  for (size_t at = text.find("\"#/"); at != std::string::npos; at = text.find("\"#/", at + 1)) {
    used.insert(text.substr(at + 2, text.find('"', at + 1) - at - 2));
  }
  for (const std::string& pointer : used) {
    EXPECT_TRUE(document.contains(Json::json_pointer(pointer))) << pointer;
  }
  for (const char* kind : {"schemas", "responses", "requestBodies"}) {
    for (const auto& [name, value] : document["components"][kind].items()) {
      EXPECT_TRUE(used.contains("/components/" + std::string(kind) + "/" + name)) << name;
    }
  }
}

TEST(RouteDocs, TheApiPageNamesEveryRoute) {
  const Result<std::string> page = ReadTextFile("docs/api.md");
  ASSERT_TRUE(page.has_value());
  // The table of routes: "| `/a`, `/b` | GET, POST | what |", to the first empty line.
  const size_t table = page->find("| path | methods |");
  ASSERT_NE(table, std::string::npos);
  std::map<std::string, std::string> documented;
  for (size_t begin = table; page->at(begin) == '|'; begin = page->find('\n', begin) + 1) {
    const std::string line = page->substr(begin, page->find('\n', begin) - begin);
    if (!line.starts_with("| `/")) {
      continue;
    }
    const size_t second = line.find(" | ");
    const std::string methods = line.substr(second + 3, line.find(" | ", second + 3) - second - 3);
    for (size_t at = line.find('`'); at < second; at = line.find('`', at + 1)) {
      const size_t end = line.find('`', at + 1);
      documented[line.substr(at + 1, end - at - 1)] = methods;
      at = end;
    }
  }
  for (const RouteInfo& route : ListRoutes()) {
    EXPECT_EQ(documented[route.path], route.methods) << route.path;
    documented.erase(route.path);
  }
  EXPECT_THAT(documented, testing::IsEmpty());
}

}  // namespace
}  // namespace octavo
