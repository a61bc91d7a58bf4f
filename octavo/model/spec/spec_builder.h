#pragma once
// What the weight tables of all architectures share: checks of a config, and rows in forward order.

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// "config.json: KEY: expected 1 to MAX, got VALUE".
Status CheckSpecDim(std::string_view key, int64_t value);
// "config.json: KEY: expected EXPECTED for ARCHITECTURE, got ACTUAL", kUnsupported.
template <typename T>
Status RefuseSetting(const HfConfig& config, std::string_view key, std::string_view expected,
                     const T& actual) {
  return Unsupported("config.json: {}: expected {} for {}, got {}", key, expected,
                     config.architecture, actual);
}

// Checks what every decoder has, and copies it: everything of ModelSpec but moe, mla and biases.
Result<ModelSpec> MakeBaseSpec(const HfConfig& config, std::string_view prefix);
// Checks and copies the sizes of a mixture of experts, which the config must have; the rest of
// `out` stays. Errors: kInvalidArgument, also when the table would have too many rows.
Status FillMoeSizes(const HfConfig& config, MoeSpec* out);

// Appends rows to a table. One thread; `spec` must outlive it.
class TableBuilder {
 public:
  explicit TableBuilder(ModelSpec* spec) : spec_(spec) {}

  void AddEmbedding();
  void AddFinalNorm();
  void AddHead();  // Nothing when tied.

  // Rows of this layer follow; one at or past num_layers is an MTP layer.
  void BeginLayer(int64_t layer);
  // `module` is relative to the layer, such as "self_attn.q_proj".
  void AddNorm(std::string_view module, int64_t dim);
  void AddLinear(std::string_view module, Role role, int64_t num_out, int64_t num_in);
  void AddBias(std::string_view module, int64_t num_out);
  // Grouped-query attention with the biases and norms that the spec has.
  void AddGqaAttention();
  // Router, routed experts and shared expert, or the dense MLP, as IsSparseLayer says.
  void AddMlp(bool has_router_bias);

 private:
  struct MlpRoles {
    Role gate;
    Role up;
    Role down;
  };
  void Add(std::string_view name, Role role, Shape shape);
  void AddGatedMlp(std::string_view module, MlpRoles roles, int64_t width);

  ModelSpec* spec_;
  std::string layer_prefix_;
  int layer_ = -1;
  int expert_ = -1;
};

}  // namespace octavo
