#pragma once
// The JSON of the endpoints that only report: /model_info, /server_info, /v1/models, /v1/loads.

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/server/server.h"
#include "octavo/sync/serving.h"

namespace octavo {

// The pointers outlive the call.
struct InfoContext {
  const ServerOptions* options = nullptr;
  const Serving* serving = nullptr;
  EngineStats stats = {};
  bool has_tokenizer = false;
  bool draining = false;
  int64_t created_unix_s = 0;
  int64_t live_prompt_tokens = 0;  // Of the requests in flight.
  int64_t num_clamped_logprobs = 0;
};

// The name under which /v1/models lists the model.
std::string ServedModelName(const InfoContext& info);

std::string ModelInfoJson(const InfoContext& info);
std::string ServerInfoJson(const InfoContext& info);
std::string ModelsJson(const InfoContext& info);
std::string ModelCardJson(const InfoContext& info);

// Which sections /v1/loads adds: the comma list of its `include` parameter.
struct LoadSections {
  bool memory = false;
  bool spec = false;
  bool lora = false;
  bool disagg = false;
  bool queues = false;
};
// Errors: kInvalidArgument for an unknown section, by name.
Result<LoadSections> ParseLoadSections(std::string_view include);

std::string LoadsJson(const InfoContext& info, const LoadSections& sections);
// The same figures as Prometheus text.
std::string LoadsPrometheus(const InfoContext& info);

}  // namespace octavo
