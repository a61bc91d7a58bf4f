#include "octavo/client/weights_client.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/http_client.h"

namespace octavo {
namespace {

using Json = nlohmann::json;

constexpr int kConflict = 409;
constexpr uint64_t kElementsMax = uint64_t{1} << 40;  // Of one tensor.

std::string TextOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_string() ? found->get<std::string>() : std::string();
}

int64_t IntOf(const Json& object, const char* key) {
  const auto found = object.find(key);
  return found != object.end() && found->is_number_integer() ? found->get<int64_t>() : -1;
}

Result<RemoteTensor> ParseTensor(const Json& json) {
  if (!json.is_object()) {
    return Corrupt("expected an object");
  }
  RemoteTensor tensor{.name = TextOf(json, "name"),
                      .begin_bytes = IntOf(json, "begin"),
                      .end_bytes = IntOf(json, "end"),
                      .digest = TextOf(json, "digest")};
  const std::optional<DType> dtype = ParseDType(TextOf(json, "dtype"));
  if (tensor.name.empty() || !dtype.has_value() || !json.contains("shape") ||
      !json["shape"].is_array()) {
    return Corrupt("\"{}\": expected a name, a dtype and a shape", tensor.name);
  }
  tensor.dtype = *dtype;
  uint64_t num_elements = 1;
  for (const Json& extent : json["shape"]) {
    if (!extent.is_number_unsigned() || extent.get<uint64_t>() > kElementsMax / num_elements) {
      return Corrupt("{}: expected the extents of at most {} elements", tensor.name, kElementsMax);
    }
    num_elements = std::max<uint64_t>(num_elements * extent.get<uint64_t>(), 1);
    tensor.shape.push_back(extent.get<int64_t>());
  }
  const int64_t num_bytes = NumElements(tensor.shape) * DTypeBytes(tensor.dtype);
  if (tensor.begin_bytes < 0 || tensor.end_bytes - tensor.begin_bytes != num_bytes) {
    return Corrupt("{}: expected {} bytes, got {} to {}", tensor.name, num_bytes,
                   tensor.begin_bytes, tensor.end_bytes);
  }
  return tensor;
}

Result<RemoteWeights> ParseWeights(std::string_view text) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || !json.contains("tensors") || !json["tensors"].is_array()) {
    return Corrupt("expected an object with tensors, got '{}'", text.substr(0, 200));
  }
  RemoteWeights weights{.weight_version = TextOf(json, "weight_version"),
                        .weight_digest = TextOf(json, "weight_digest"),
                        .weight_format = TextOf(json, "weight_format"),
                        .policy_hash = TextOf(json, "policy_hash"),
                        .recipe = TextOf(json, "recipe"),
                        .tensors = {}};
  for (const Json& entry : json["tensors"]) {
    ASSIGN_OR_RETURN(RemoteTensor tensor, ParseTensor(entry));
    if (!weights.tensors.empty() && weights.tensors.back().end_bytes != tensor.begin_bytes) {
      return Corrupt("{}: expected it to begin at {}, where the one before it ends, got {}",
                     tensor.name, weights.tensors.back().end_bytes, tensor.begin_bytes);
    }
    weights.tensors.push_back(std::move(tensor));
  }
  if (weights.weight_digest.empty() || weights.tensors.empty()) {
    return Corrupt("expected a weight_digest and tensors, got '{}'", text.substr(0, 200));
  }
  return weights;
}

}  // namespace

Result<RemoteWeights> ListRemoteWeights(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/octavo/v1/weights"));
  Result<RemoteWeights> weights = ParseWeights(text);
  if (!weights.has_value()) {
    return weights.error().WithContext(client.url().ToString() + "/octavo/v1/weights");
  }
  return weights;
}

Result<RemoteVersion> GetRemoteVersion(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/server_info"));
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt("{}/server_info: expected an object", client.url().ToString());
  }
  return RemoteVersion{TextOf(json, "weight_version"), TextOf(json, "weight_digest")};
}

Status ReadRemoteWeights(HttpClient& client, std::string_view weight_digest, int64_t begin_bytes,
                         std::span<std::byte> out) {
  const std::string target =
      fmt::format("/octavo/v1/weights/bytes?digest={}&begin={}&end={}", weight_digest, begin_bytes,
                  begin_bytes + static_cast<int64_t>(out.size()));
  const HttpCall call = {.target = target};
  ASSIGN_OR_RETURN(const HttpReply reply, client.Call(call));
  if (reply.status != 200) {
    const Status status = StatusOfReply(client.url(), call, reply);
    return reply.status == kConflict ? Cancelled("{}", status.message()) : status;
  }
  if (reply.body.size() != out.size()) {
    return Corrupt("GET {}{}: expected {} bytes, got {}", client.url().ToString(), target,
                   out.size(), reply.body.size());
  }
  if (!out.empty()) {
    std::memcpy(out.data(), reply.body.data(), out.size());
  }
  return OkStatus();
}

}  // namespace octavo
