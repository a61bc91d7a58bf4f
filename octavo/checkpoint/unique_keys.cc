#include "octavo/checkpoint/unique_keys.h"

#include <algorithm>
#include <optional>
#include <string_view>
#include <vector>

namespace octavo {

std::optional<std::string_view> FirstDuplicate(std::vector<std::string_view> keys) {
  std::sort(keys.begin(), keys.end());
  const auto twin = std::adjacent_find(keys.begin(), keys.end());
  return twin == keys.end() ? std::nullopt : std::optional(*twin);
}

}  // namespace octavo
