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

// What a weight is for. The policy decides by role, never by parts of a name.
enum class Role {
  kEmbedding,
  kLmHead,
  kNorm,  // Every RMS norm, those of q, k and of MLA's latents included.
  kBias,  // Of linear layers.
  kAttentionQ,
  kAttentionK,
  kAttentionV,
  kAttentionO,
  kMlaQA,   // q_a_proj: hidden to the latent of q.
  kMlaQB,   // q_b_proj; q_proj of an MLA without q_lora_rank has role kAttentionQ.
  kMlaKvA,  // kv_a_proj_with_mqa.
  kMlaKvB,  // kv_b_proj: split into W_UK and W_UV at load.
  kMlpGate,
  kMlpUp,
  kMlpDown,
  kRouter,      // mlp.gate of a mixture of experts.
  kRouterBias,  // e_score_correction_bias; F32 in checkpoints.
  kExpertGate,  // Routed experts.
  kExpertUp,
  kExpertDown,
  kSharedExpertGate,
  kSharedExpertUp,
  kSharedExpertDown,
  kMtpProjection,  // eh_proj of a multi-token-prediction layer.
};

// "embedding", "attention.q", "mlp.gate", ...: for tables and JSON.
std::string_view RoleName(Role role);
// True for the 2-D weights that a policy may quantize: attention, MLA, MLP and experts; false for
// routers, embeddings, heads, norms, biases and eh_proj.
bool IsLinearRole(Role role);
// True for the routed experts: the scope of nvfp4 in a mixture of experts.
bool IsExpertRole(Role role);

struct WeightSpec {
  std::string name;  // HF name, such as "model.layers.0.self_attn.q_proj.weight".
  Role role = Role::kNorm;
  int layer = -1;   // Decoder layer, MTP layers included; -1 outside.
  Shape shape;      // [out, in] for linear layers; [n] for norms and biases.
  int expert = -1;  // Routed expert; -1 for everything else.
  // Of a multi-token-prediction layer (index >= num_hidden_layers). --keep-first and --keep-last
  // never count those. A checkpoint may leave all of them out.
  bool is_mtp = false;
};

struct ModelSpec {
  std::string architecture;
  // What stands before "layers.N." in the names of `weights`: "model." as a rule, or
  // "language_model.model.", "model.language_model.", "".
  std::string prefix = "model.";
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

// The weight table of a model whose tensors are named with `prefix`.
// Errors: kUnsupported for an architecture or an option that is not built, by name.
Result<ModelSpec> MakeModelSpec(const HfConfig& config, std::string_view prefix = "model.");

// Position of `name` in spec.weights, or -1. Linear in the number of weights.
int FindWeight(const ModelSpec& spec, std::string_view name);

// "model.layers.0.mlp.up_proj" for "model.layers.0.mlp.up_proj.weight": the module that owns a
// parameter. A name without that last part is its own module.
std::string_view ModuleOfWeight(std::string_view weight_name);

// Weights that engines concatenate into one matrix, so that one precision serves them all and
// formats with SharesScale give them one scale (docs/policy.md): q/k/v of an attention, q_a/kv_a of
// an MLA, gate/up of an MLP, of a shared expert and of each routed expert.
struct FusedSet {
  std::string module;        // The fused module: "model.layers.0.self_attn.qkv_proj".
  std::vector<int> members;  // Positions in spec.weights, in the order of concatenation.
};

// In forward order.
std::vector<FusedSet> FusedSetsOf(const ModelSpec& spec);

}  // namespace octavo
