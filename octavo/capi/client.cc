// octavo_client and octavo_update: updates of running servers behind the C ABI.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/capi/boundary.h"
#include "octavo/capi/encoder.h"
#include "octavo/capi/policy.h"
#include "octavo/capi/tensor_in.h"
#include "octavo/capi/threads.h"
#include "octavo/client/http_client.h"
#include "octavo/client/update_client.h"
#include "octavo/client/update_session.h"
#include "octavo/octavo.h"
#include "octavo/policy/manifest.h"

using octavo::Result;
using octavo::Status;

struct octavo_client {
  std::vector<std::string> urls;
  std::string api_key;
  octavo::HttpTimeouts timeouts;
};

struct octavo_update {
  octavo_update(octavo::UpdateSession given_session, std::unique_ptr<octavo::Manifest> given,
                octavo::ThreadPool* pool)
      : session(std::move(given_session)), manifest(std::move(given)) {
    if (manifest != nullptr) {
      encoder.emplace(manifest.get(), pool);
    }
  }

  octavo::UpdateSession session;
  const std::unique_ptr<octavo::Manifest> manifest;  // Null: the engine quantizes.
  std::optional<octavo::capi::Encoder> encoder;
};

namespace octavo::capi {
namespace {

using Json = nlohmann::ordered_json;

std::string TextOr(const char* text, const char* fallback) {
  return text == nullptr ? fallback : text;
}

Result<HttpClient> Connect(const octavo_client& client, const std::string& text) {
  ASSIGN_OR_RETURN(HttpUrl url, ParseHttpUrl(text));
  url.api_key = client.api_key;
  return HttpClient(std::move(url), client.timeouts);
}

Status MakeClient(const octavo_client_options* options, octavo_client* client) {
  RETURN_IF_ERROR(CheckStruct(options, sizeof(octavo_client_options), "options"));
  if (options->num_urls == 0) {
    return InvalidArgument("urls: expected at least one, got none");
  }
  RETURN_IF_ERROR(CheckGiven(options->urls, "urls"));
  for (size_t i = 0; i < options->num_urls; ++i) {
    RETURN_IF_ERROR(CheckGiven(options->urls[i], "url"));
    ASSIGN_OR_RETURN(const HttpUrl url, ParseHttpUrl(options->urls[i]));
    client->urls.emplace_back(options->urls[i]);
  }
  client->api_key = TextOr(options->api_key, "");
  if (!client->api_key.empty() && !IsApiKey(client->api_key)) {
    return InvalidArgument("api_key: expected printable ASCII without blanks");
  }
  if (options->connect_timeout_s > 0.0) {
    client->timeouts.connect_s = options->connect_timeout_s;
  }
  if (options->idle_timeout_s > 0.0) {
    client->timeouts.idle_s = options->idle_timeout_s;
  }
  return OkStatus();
}

// Of the first server; the others must serve the same table.
Result<Manifest> FetchManifest(const octavo_client& client) {
  std::optional<Manifest> first;
  std::string first_hash;
  for (const std::string& url : client.urls) {
    ASSIGN_OR_RETURN(HttpClient http, Connect(client, url));
    ASSIGN_OR_RETURN(const std::string text, GetText(http, "/octavo/v1/manifest"));
    Result<Manifest> manifest = ParseManifest(text);
    if (!manifest) {
      return manifest.error().WithContext(url);
    }
    const std::string hash = manifest->table.Hash();
    if (!first.has_value()) {
      first = std::move(*manifest);
      first_hash = hash;
    } else if (hash != first_hash || manifest->table.layout != first->table.layout) {
      return InvalidArgument("{} and {} serve different policies, {} and {}", client.urls[0], url,
                             first_hash, hash);
    }
  }
  return std::move(*first);
}

// '*' stands for any text.
bool Matches(std::string_view pattern, std::string_view name) {
  const size_t star = pattern.find('*');
  if (star == std::string_view::npos) {
    return pattern == name;
  }
  if (!name.starts_with(pattern.substr(0, star))) {
    return false;
  }
  const std::string_view rest = pattern.substr(star + 1);
  for (size_t i = star; i <= name.size(); ++i) {
    if (Matches(rest, name.substr(i))) {
      return true;
    }
  }
  return false;
}

Result<std::string> FetchChecksum(const octavo_client& client, const char* pattern) {
  ASSIGN_OR_RETURN(HttpClient http, Connect(client, client.urls[0]));
  ASSIGN_OR_RETURN(std::string text, GetLiveDigestJson(http));
  if (pattern == nullptr) {
    return text;
  }
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  const auto tensors = json.is_object() ? json.find("tensors") : json.end();
  if (!json.is_object() || tensors == json.end() || !tensors->is_object()) {
    return Corrupt("{}/octavo/v1/digest: expected tensors, got '{}'", client.urls[0],
                   text.substr(0, 100));
  }
  Json matching = Json::object();
  for (const auto& [name, hex] : tensors->items()) {
    if (Matches(pattern, name)) {
      matching[name] = hex;
    }
  }
  *tensors = std::move(matching);
  return json.dump();
}

Result<std::unique_ptr<octavo_update>> Begin(const octavo_client& client,
                                             const octavo_update_options* options) {
  RETURN_IF_ERROR(CheckStruct(options, sizeof(octavo_update_options), "options"));
  PushOptions push;
  push.api_key = client.api_key;
  push.timeouts = client.timeouts;
  push.in_flight = TextOr(options->in_flight, "retract");
  push.staging = TextOr(options->staging, "shadow");
  if (options->weight_version != nullptr) {
    push.weight_version = options->weight_version;
  }
  if (options->bucket_bytes != 0) {
    push.bucket_bytes = options->bucket_bytes;
  }
  std::unique_ptr<Manifest> manifest;
  if (options->quantize_in == OCTAVO_QUANTIZE_IN_TRAINER) {
    ASSIGN_OR_RETURN(Manifest fetched, FetchManifest(client));
    manifest = std::make_unique<Manifest>(std::move(fetched));
  } else if (options->quantize_in != OCTAVO_QUANTIZE_IN_ENGINE) {
    return InvalidArgument("quantize_in: expected 0 or 1, got {}", options->quantize_in);
  }
  ASSIGN_OR_RETURN(UpdateSession session, UpdateSession::Begin(client.urls, push));
  return std::make_unique<octavo_update>(std::move(session), std::move(manifest),
                                         PoolOf(options->threads));
}

Status Put(octavo_update* update, const char* name, const octavo_tensor* tensor) {
  RETURN_IF_ERROR(CheckGiven(update, "update"));
  RETURN_IF_ERROR(CheckGiven(name, "name"));
  ASSIGN_OR_RETURN(const DenseTensor dense, DenseTensor::From(tensor, name));
  if (!update->encoder.has_value()) {
    return update->session.Put(name, dense.view());
  }
  return update->encoder->Put(name, dense.view(),
                              [&](std::string_view part_name, const ConstTensorView& part) {
                                return update->session.Put(part_name, part);
                              });
}

Status Seal(octavo_update* update) {
  RETURN_IF_ERROR(CheckGiven(update, "update"));
  if (update->encoder.has_value()) {
    RETURN_IF_ERROR(update->encoder->Finish());
  }
  return update->session.Seal();
}

Status Commit(octavo_update* update, octavo_buf* report) {
  const Status sealed = Seal(update);
  if (!sealed.ok()) {
    octavo_update_abort(update);
    return sealed;
  }
  ASSIGN_OR_RETURN(const PushReport pushed, update->session.Commit());
  return report == nullptr ? OkStatus() : GiveText(PushReportJson(pushed), report);
}

}  // namespace
}  // namespace octavo::capi

octavo_status octavo_client_create(const octavo_client_options* options, octavo_client** out,
                                   octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    auto client = std::make_unique<octavo_client>();
    RETURN_IF_ERROR(octavo::capi::MakeClient(options, client.get()));
    *out = client.release();
    return octavo::OkStatus();
  });
}

void octavo_client_free(octavo_client* client) {
  const std::unique_ptr<octavo_client> owner(client);
}

octavo_status octavo_client_manifest(octavo_client* client, octavo_policy** out,
                                     octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(client, "client"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(octavo::Manifest manifest, octavo::capi::FetchManifest(*client));
    *out = std::make_unique<octavo_policy>(std::move(manifest)).release();
    return octavo::OkStatus();
  });
}

octavo_status octavo_client_checksum(octavo_client* client, const char* pattern, octavo_buf* out,
                                     octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(client, "client"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(const std::string text, octavo::capi::FetchChecksum(*client, pattern));
    return octavo::capi::GiveText(text, out);
  });
}

octavo_status octavo_update_begin(octavo_client* client, const octavo_update_options* options,
                                  octavo_update** out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(client, "client"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(std::unique_ptr<octavo_update> update, octavo::capi::Begin(*client, options));
    *out = update.release();
    return octavo::OkStatus();
  });
}

octavo_status octavo_update_put(octavo_update* update, const char* name,
                                const octavo_tensor* tensor, octavo_error* error) {
  return octavo::capi::Run(error, [&] { return octavo::capi::Put(update, name, tensor); });
}

octavo_status octavo_update_seal(octavo_update* update, octavo_error* error) {
  return octavo::capi::Run(error, [&] { return octavo::capi::Seal(update); });
}

octavo_status octavo_update_commit(octavo_update* update, octavo_buf* report, octavo_error* error) {
  return octavo::capi::Run(error, [&] { return octavo::capi::Commit(update, report); });
}

void octavo_update_abort(octavo_update* update) {
  (void)octavo::capi::Run(nullptr, [&] {
    if (update != nullptr) {
      update->session.Abort();
    }
    return octavo::OkStatus();
  });
}

void octavo_update_free(octavo_update* update) {
  octavo_update_abort(update);  // Here, because a destructor must not throw.
  const std::unique_ptr<octavo_update> owner(update);
}
