#pragma once
// octavo_policy of the C ABI.

#include <cstddef>
#include <memory>
#include <string>
#include <unordered_map>

#include "octavo/octavo.h"
#include "octavo/policy/manifest.h"

struct octavo_policy {
  explicit octavo_policy(octavo::Manifest given);

  const octavo::Manifest manifest;
  const std::unordered_map<std::string, size_t> row_of;  // By the weight's name.
};
