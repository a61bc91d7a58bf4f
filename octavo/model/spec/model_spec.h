#pragma once
// What a model consists of: its dimensions, and one row a weight (HF name, role, shape). Data only:
// policy, loader, updater and forward pass all read this table.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"

namespace octavo {

enum class Role {
  kEmbedding,
  kLmHead,
  kNorm,  // Layer and final norms, q and k norms.
  kAttentionQ,
  kAttentionK,
  kAttentionV,
  kAttentionO,
  kMlpGate,
  kMlpUp,
  kMlpDown,
};

// "embedding", "attention.q", "mlp.gate", ...: for tables and JSON.
std::string_view RoleName(Role role);
// True for the 2-D weights of linear layers, the only ones that a policy may quantize.
bool IsLinearRole(Role role);

struct WeightSpec {
  std::string name;  // HF name, such as "model.layers.0.self_attn.q_proj.weight".
  Role role = Role::kNorm;
  int layer = -1;  // Decoder layer; -1 outside.
  Shape shape;     // [out, in] for linear layers; [n] for norms.
};

struct ModelSpec {
  std::string architecture;
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t intermediate_size = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0.0F;
  double rope_theta = 0.0;
  bool tie_word_embeddings = false;  // No lm_head row; the head is the embedding.
  std::vector<WeightSpec> weights;   // In forward order: embedding, layers, final norm, head.
};

// Errors: kUnsupported for an architecture or an option that is not built, by name.
Result<ModelSpec> MakeModelSpec(const HfConfig& config);

// Position of `name` in spec.weights, or -1. Linear in the number of weights.
int FindWeight(const ModelSpec& spec, std::string_view name);

// "model.layers.0.mlp.up_proj" for "model.layers.0.mlp.up_proj.weight": the module that owns a
// parameter. A name without that last part is its own module.
std::string_view ModuleOfWeight(std::string_view weight_name);

// Weights that engines concatenate into one matrix, so that one precision serves them all
// (docs/policy.md): q/k/v of an attention, gate/up of an MLP.
struct FusedSet {
  std::string module;        // The fused module: "model.layers.0.self_attn.qkv_proj".
  std::vector<int> members;  // Positions in spec.weights, in the order of concatenation.
};

// In forward order.
std::vector<FusedSet> FusedSetsOf(const ModelSpec& spec);

}  // namespace octavo
