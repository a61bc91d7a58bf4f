#pragma once
// For tests of the config reader: a config, or what parsing says of it.

#include <gtest/gtest.h>

#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"

namespace octavo {

// The config.json of a published model, from tests/data/model_spec.
inline std::string PublishedConfig(const std::string& name) {
  return ReadTextFile("tests/data/model_spec/" + name + ".json").value();
}

inline HfConfig ParseOk(std::string_view json, std::string_view generation = "") {
  auto config = ParseHfConfig(json, generation);
  EXPECT_TRUE(config.has_value()) << config.error().message();
  EXPECT_EQ(config.has_value() ? config->not_served : "", "");
  return config.has_value() ? *std::move(config) : HfConfig();
}

// kOk and "accepted", or the error of reading or of serving.
inline std::pair<StatusCode, std::string> ErrorOf(std::string_view json) {
  const auto config = ParseHfConfig(json, "");
  if (config.has_value() && !CheckServedConfig(*config).ok()) {
    const Status status = CheckServedConfig(*config);
    return {status.code(), status.message()};
  }
  return {config.error().code(), config.has_value() ? "accepted" : config.error().message()};
}

}  // namespace octavo
