#include "octavo/server/version_conflict.h"

#include <string>
#include <string_view>

#include "octavo/engine/version_demand.h"
#include "octavo/server/http.h"
#include "octavo/server/json_writer.h"

namespace octavo {
namespace {

void WriteMembers(const VersionDemand& demand, std::string_view live, JsonWriter& json) {
  json.Field("param", demand.kind == VersionDemand::Kind::kExact ? "exact_weight_version"
                                                                 : "min_weight_version");
  json.Field("code", 409).Field("retryable", true);
  json.Field("demanded_weight_version", demand.version).Field("weight_version", live);
}

}  // namespace

HttpResponse VersionConflictError(const VersionDemand& demand, std::string_view live) {
  JsonWriter json;
  json.BeginObject().Field("object", "error").Field("message", demand.Conflict(live));
  json.Field("type", "WeightVersionConflict");
  WriteMembers(demand, live, json);
  json.EndObject();
  return JsonResponse(json.Take(), 409);
}

std::string VersionConflictEvent(const VersionDemand& demand, std::string_view live) {
  JsonWriter json;
  json.BeginObject().Key("error").BeginObject().Field("message", demand.Conflict(live));
  json.Field("type", "weight_version_conflict");
  WriteMembers(demand, live, json);
  json.EndObject().EndObject();
  return SseEvent(json.Take());
}

}  // namespace octavo
