#include "octavo/client/probe_client.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/client/http_client.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kTarget = "/octavo/v1/update/probe";

// The server checks the values; here a line that cannot be is named by its number.
Status CheckLine(std::string_view line) {
  const Json json = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt(
        "expected a JSON object, got something else (NaN and infinities are not JSON): '{}'",
        line.substr(0, 80));
  }
  for (const char* key : {"input_ids", "logprobs"}) {
    const auto found = json.find(key);
    const bool is_list =
        found != json.end() && found->is_array() &&
        std::all_of(found->begin(), found->end(), [](const Json& x) { return x.is_number(); });
    if (!is_list) {
      return Corrupt("{}: expected a list of numbers", key);
    }
  }
  return OkStatus();
}

std::string NumberJson(const std::optional<double>& number) {
  return number.has_value() ? Json(*number).dump() : std::string("null");
}

}  // namespace

Result<Probe> ReadProbeFile(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  Probe probe;
  std::string_view rest = text;
  for (int64_t line_idx = 1; !rest.empty(); ++line_idx) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    RETURN_IF_ERROR(CheckLine(line).WithContext(fmt::format("{}, line {}", path, line_idx)));
    probe.sequences_json += probe.num_sequences++ == 0 ? "[" : ",";
    probe.sequences_json += line;
  }
  if (probe.num_sequences == 0) {
    return InvalidArgument("{}: expected a sequence a line, got none", path);
  }
  probe.sequences_json += "]";
  return probe;
}

Result<ProbeReport> RunProbe(HttpClient& client, std::string_view update_id, const Probe& probe) {
  const std::string body =
      fmt::format(R"({{"update_id":{},"max_dlogp":{},"max_mean_dlogp":{},"sequences":{}}})",
                  Json(update_id).dump(), NumberJson(probe.max_dlogp),
                  NumberJson(probe.max_mean_dlogp), probe.sequences_json);
  ASSIGN_OR_RETURN(const std::string text, PostJson(client, kTarget, body));
  const Json reply = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto number = [&](const char* key) {
    return reply.is_object() && reply.contains(key) && reply[key].is_number()
               ? reply[key].get<double>()
               : -1.0;
  };
  const ProbeReport report{.num_sequences = static_cast<int64_t>(number("sequences")),
                           .num_tokens = static_cast<int64_t>(number("tokens")),
                           .mean_dlogp = number("mean_dlogp"),
                           .max_dlogp = number("max_dlogp"),
                           .k3 = number("k3")};
  if (report.num_sequences != probe.num_sequences || report.num_tokens < 1 ||
      report.mean_dlogp < 0.0 || report.max_dlogp < 0.0 || report.k3 < 0.0) {
    return Corrupt("{}{}: expected the figures of {} sequences, got '{}'", client.url().ToString(),
                   kTarget, probe.num_sequences, text.substr(0, 200));
  }
  return report;
}

}  // namespace octavo
