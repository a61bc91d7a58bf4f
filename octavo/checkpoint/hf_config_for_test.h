#pragma once
// For tests of the config reader: parse, or the error that follows from one changed member.

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"

namespace octavo {

using Json = nlohmann::ordered_json;

// A published config.json under tests/data/model_spec.
inline Json PublishedJson(const std::string& name) {
  return Json::parse(ReadTextFile("tests/data/model_spec/" + name + ".json").value());
}

inline HfConfig ParseOk(const Json& json, std::string_view generation = "") {
  auto config = ParseHfConfig(json.dump(), generation);
  EXPECT_TRUE(config.has_value()) << config.error().message();
  return config.has_value() ? *std::move(config) : HfConfig();
}

// What parsing says: kOk and "accepted", or the error.
inline std::pair<StatusCode, std::string> ErrorOf(const Json& json) {
  const auto config = ParseHfConfig(json.dump(), "");
  return {config.error().code(), config.has_value() ? "accepted" : config.error().message()};
}

inline std::pair<StatusCode, std::string> ErrorWith(Json json, const std::string& key,
                                                    const Json& value) {
  json[key] = value;
  return ErrorOf(json);
}

inline std::pair<StatusCode, std::string> ErrorWithout(Json json, const std::string& key) {
  json.erase(key);
  return ErrorOf(json);
}

}  // namespace octavo
