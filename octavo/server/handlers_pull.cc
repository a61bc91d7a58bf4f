// /pull_weights: a checkpoint folder of this host, brought up to a version that a trainer
// published.

#include <filesystem>
#include <string>
#include <string_view>
#include <system_error>

#include "octavo/base/status.h"
#include "octavo/server/application.h"
#include "octavo/server/http.h"
#include "octavo/server/json.h"
#include "octavo/server/json_writer.h"
#include "octavo/server/model_root.h"
#include "octavo/sync/pull_weights.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

Result<std::string> RequiredFolder(const JsonValue& body, std::string_view key) {
  ASSIGN_OR_RETURN(std::string folder, StringField(body, key, ""));
  if (folder.empty()) {
    return Corrupt("{}: expected the path of a folder, got none", key);
  }
  return folder;
}

Result<PullOptions> ParsePull(std::string_view text) {
  ASSIGN_OR_RETURN(const JsonValue body, ParseJsonBody(text));
  PullOptions pull;
  ASSIGN_OR_RETURN(pull.local_dir, RequiredFolder(body, "local_checkpoint_dir"));
  ASSIGN_OR_RETURN(pull.source_dir, RequiredFolder(body, "source_dir"));
  if (body.Find("target_version") == nullptr) {
    return Corrupt("target_version: expected a number, got none");
  }
  ASSIGN_OR_RETURN(pull.target_version, IntField(body, "target_version", 0));
  return pull;
}

// A folder that may not exist yet: then the one it will be in must lie below the root.
Result<std::string> ResolveNew(const std::string& root, const std::string& path) {
  namespace fs = std::filesystem;
  std::error_code error;
  const fs::path folder(path);
  if (root.empty() || fs::exists(folder, error)) {
    return ResolveBelow(root, path);
  }
  ASSIGN_OR_RETURN(const std::string parent, ResolveBelow(root, folder.parent_path().string()));
  const std::string name = folder.filename().string();
  if (name.empty() || name == "." || name == "..") {
    return InvalidArgument("{}: expected a folder below the model root {}", path, root);
  }
  return (fs::path(parent) / name).string();
}

HttpResponse RunPull(const std::string& model_root, PullOptions pull) {
  const Result<std::string> local = ResolveNew(model_root, pull.local_dir);
  if (!local.has_value()) {
    return WeightError(local.error().WithContext("local_checkpoint_dir"), /*with_paused=*/false);
  }
  const Result<std::string> source = ResolveBelow(model_root, pull.source_dir);
  if (!source.has_value()) {
    return WeightError(source.error().WithContext("source_dir"), /*with_paused=*/false);
  }
  pull.local_dir = *local;
  pull.source_dir = *source;
  const Result<PullReport> report = PullWeights(pull);
  if (!report.has_value()) {
    return WeightError(report.error(), /*with_paused=*/false);
  }
  JsonWriter json;
  json.BeginObject().Field("success", true);
  json.Field("message", fmt::format("{} is at version {}", pull.local_dir, pull.target_version));
  json.Field("from_version", report->from_version).Field("seed_version", report->seed_version);
  json.Field("deltas", report->num_deltas).Field("tensors", report->num_tensors);
  json.Field("bytes", report->bytes_written).EndObject();
  return JsonResponse(json.Take());
}

}  // namespace

void Application::PullWeightVersion(const HttpRequest& request, const WriterPtr& writer) {
  Result<PullOptions> pull = ParsePull(request.body);
  if (!pull.has_value()) {
    return writer->Send(RequestError(pull.error()));
  }
  if (draining_) {
    return writer->Send(WeightError(Unavailable("the server is stopping"), false));
  }
  pull->base_dir = serving_->model_dir;
  AnswerFromWorker(writer,
                   [root = options_.model_root, pull = *pull] { return RunPull(root, pull); });
}

}  // namespace octavo
