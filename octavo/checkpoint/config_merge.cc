#include "octavo/checkpoint/config_merge.h"

#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config_section.h"

namespace octavo {

Result<std::string> MergeConfigJson(std::string_view config_json, std::string_view overrides_json) {
  // For their errors; below each text is known to be an object.
  RETURN_IF_ERROR(HfSection::Parse("config.json", config_json).error());
  RETURN_IF_ERROR(HfSection::Parse("config overrides", overrides_json).error());
  auto config = nlohmann::ordered_json::parse(config_json, nullptr, /*allow_exceptions=*/false);
  const auto overrides =
      nlohmann::ordered_json::parse(overrides_json, nullptr, /*allow_exceptions=*/false);
  if (config.is_discarded() || overrides.is_discarded()) {
    return Corrupt("config.json or its overrides: expected a JSON object");
  }
  config.merge_patch(overrides);
  return config.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace octavo
