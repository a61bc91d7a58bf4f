#include "octavo/capi/policy.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/capi/boundary.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/octavo.h"
#include "octavo/policy/manifest.h"
#include "octavo/policy/policy_file.h"
#include "octavo/policy/precision_table.h"

using octavo::Result;
using octavo::Status;

namespace octavo::capi {
namespace {

std::unordered_map<std::string, size_t> RowsByName(const Manifest& manifest) {
  std::unordered_map<std::string, size_t> rows;
  for (size_t i = 0; i < manifest.table.rows.size(); ++i) {
    rows.emplace(manifest.table.rows[i].name, i);
  }
  return rows;
}

// With the names that the tensors have; a folder of config.json alone has a policy too.
Result<ModelSpec> SpecOfFolder(const std::string& model_dir, const HfConfig& config) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(model_dir);
  if (checkpoint) {
    return MakeCheckpointSpec(*checkpoint);
  }
  return checkpoint.error().code() == StatusCode::kNotFound ? MakeModelSpec(config)
                                                            : Result<ModelSpec>(checkpoint.error());
}

Result<Manifest> LoadManifest(const char* model_dir, const char* policy_toml) {
  RETURN_IF_ERROR(CheckGiven(model_dir, "model_dir"));
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(model_dir));
  ASSIGN_OR_RETURN(const ModelSpec spec, SpecOfFolder(model_dir, config));
  if (policy_toml == nullptr) {
    ASSIGN_OR_RETURN(const PrecisionTable table,
                     TableFromQuantizationConfig(spec, config.quantization_config));
    return MakeManifest(spec, table, {});
  }
  ASSIGN_OR_RETURN(const PolicyOptions options, ParsePolicyFile(policy_toml, "policy"));
  ASSIGN_OR_RETURN(const PrecisionTable table, CompilePolicy(spec, options));
  return MakeManifest(spec, table, {});
}

octavo_weight WeightAt(const Manifest& manifest, size_t row_idx) {
  const PrecisionRow& row = manifest.table.rows[row_idx];
  return {.name = row.name.c_str(),
          .role = RoleName(row.role).data(),
          .layer = row.layer,
          .format = static_cast<octavo_format>(row.format),
          .group = manifest.group_of[row_idx],
          .is_optional = manifest.is_optional[row_idx] ? 1 : 0,
          .ndim = static_cast<int32_t>(row.shape.size()),
          .shape = row.shape.data()};
}

}  // namespace
}  // namespace octavo::capi

octavo_policy::octavo_policy(octavo::Manifest given)
    : manifest(std::move(given)), row_of(octavo::capi::RowsByName(manifest)) {}

octavo_status octavo_policy_load(const char* model_dir, const char* policy_toml,
                                 octavo_policy** out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(octavo::Manifest manifest, octavo::capi::LoadManifest(model_dir, policy_toml));
    *out = std::make_unique<octavo_policy>(std::move(manifest)).release();
    return octavo::OkStatus();
  });
}

octavo_status octavo_policy_parse(const char* json, size_t size, octavo_policy** out,
                                  octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(json, "json"));
    ASSIGN_OR_RETURN(octavo::Manifest manifest,
                     octavo::ParseManifest(std::string_view(json, size)));
    *out = std::make_unique<octavo_policy>(std::move(manifest)).release();
    return octavo::OkStatus();
  });
}

octavo_status octavo_policy_manifest(const octavo_policy* policy, octavo_buf* out,
                                     octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(policy, "policy"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    return octavo::capi::GiveText(octavo::ManifestToJson(policy->manifest), out);
  });
}

int64_t octavo_policy_num_weights(const octavo_policy* policy) {
  return policy == nullptr ? 0 : static_cast<int64_t>(policy->manifest.table.rows.size());
}

octavo_status octavo_policy_weight(const octavo_policy* policy, int64_t weight_idx,
                                   octavo_weight* out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    if (weight_idx < 0 || weight_idx >= octavo_policy_num_weights(policy)) {
      return octavo::NotFound("weight_idx: expected 0 to {}, got {}",
                              octavo_policy_num_weights(policy) - 1, weight_idx);
    }
    *out = octavo::capi::WeightAt(policy->manifest, static_cast<size_t>(weight_idx));
    return octavo::OkStatus();
  });
}

octavo_status octavo_policy_find(const octavo_policy* policy, const char* name, octavo_weight* out,
                                 octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(policy, "policy"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(name, "name"));
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    const auto found = policy->row_of.find(name);
    if (found == policy->row_of.end()) {
      return octavo::NotFound("{}: the model has no such weight", name);
    }
    *out = octavo::capi::WeightAt(policy->manifest, found->second);
    return octavo::OkStatus();
  });
}

void octavo_policy_free(octavo_policy* policy) {
  const std::unique_ptr<octavo_policy> owner(policy);
}
