#include "octavo/server/openai_defaults.h"

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_sampling.h"

namespace octavo {
namespace {

constexpr std::string_view kDefaults[] = {"temperature", "top_p", "top_k", "min_p",
                                          "repetition_penalty"};

}  // namespace

Result<SamplingFields> ParseChatDefaults(std::string_view generation_config_json,
                                         int64_t vocab_size) {
  ASSIGN_OR_RETURN(const JsonValue config, ParseJson(generation_config_json));
  if (config.object() == nullptr) {
    return Corrupt("expected a JSON object, got {}", config.KindName());
  }
  SamplingFields fields;
  for (const std::string_view key : kDefaults) {
    const JsonValue* value = config.Find(key);
    const bool is_all =
        key == "top_k" && value != nullptr && value->integer() != nullptr && *value->integer() == 0;
    if (value != nullptr && !is_all) {
      RETURN_IF_ERROR(
          ApplySamplingKey({.key = key, .native_key = key}, *value, vocab_size, fields));
    }
  }
  return fields;
}

Result<SamplingFields> ReadChatDefaults(const std::string& model_dir, int64_t vocab_size) {
  const std::string path = std::filesystem::path(model_dir) / "generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) {
    return SamplingFields{};
  }
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  Result<SamplingFields> fields = ParseChatDefaults(text, vocab_size);
  return fields.has_value() ? fields : fields.error().WithContext(path);
}

}  // namespace octavo
