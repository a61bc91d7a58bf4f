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

class Checkpoint;

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

enum class RouterScoring {
  kSoftmax,  // Over all experts, in FP32; the top k of the probabilities.
  kSigmoid,  // Of each logit; chosen by sigmoid + router bias within the best groups.
};

// A mixture of experts; num_experts 0: a dense model.
struct MoeSpec {
  int64_t num_experts = 0;
  int64_t top_k = 0;                     // Experts that a token is sent to.
  int64_t intermediate_size = 0;         // Of one routed expert.
  int64_t shared_intermediate_size = 0;  // Of the shared expert; 0: there is none.
  RouterScoring scoring = RouterScoring::kSoftmax;
  bool norm_topk_prob = false;         // Weights of the chosen are divided by their sum.
  int64_t num_groups = 1;              // Experts are chosen from top_groups of num_groups groups.
  int64_t top_groups = 1;              // A group's rank: the sum of its two best choices.
  double routed_scaling_factor = 1.0;  // On the routed sum, after the division.
  std::vector<bool> is_sparse;         // [num_layers + num_mtp_layers]: which layers have experts.
};

// Multi-head latent attention; kv_lora_rank 0: grouped-query attention.
struct MlaSpec {
  int64_t q_lora_rank = 0;  // 0: q_proj alone, without a latent.
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  // Of q_a_layernorm and kv_a_layernorm: HF builds them with this default whatever rms_norm_eps is.
  float latent_norm_eps = 1e-6F;
  // Rotary pairs of q's and k's rope parts are (2i, 2i + 1) in the checkpoint; else half-split.
  bool is_rope_interleaved = false;
};

struct ModelSpec {
  std::string architecture;
  // What stands before "layers.N." in the names of `weights`: "model." as a rule, or
  // "language_model.model.", "model.language_model.", "model.text_model.", "".
  std::string prefix = "model.";
  int64_t hidden_size = 0;
  int64_t num_layers = 0;
  int64_t num_mtp_layers = 0;  // Multi-token prediction: layers num_layers and up.
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;       // With MLA num_heads.
  int64_t head_dim = 0;           // Of q and k; with MLA qk_nope_head_dim + qk_rope_head_dim.
  int64_t intermediate_size = 0;  // Of dense MLPs.
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  float rms_norm_eps = 0.0F;
  double rope_theta = 0.0;
  RopeScaling rope_scaling;
  bool has_qk_norm = false;   // RMS norms of each head of q and k, before the rotary embedding.
  bool has_qkv_bias = false;  // q, k, v have biases; with MLA q_a and kv_a.
  bool has_o_bias = false;
  bool tie_word_embeddings = false;  // No lm_head row; the head is the embedding.
  MoeSpec moe;
  MlaSpec mla;
  // In forward order: embedding, layers, final norm, head, MTP layers.
  std::vector<WeightSpec> weights;
  // Positions in `weights` sorted by name, for FindWeight. IndexWeights makes it; who changes
  // `weights` calls that again or clears this.
  std::vector<int> by_name;
};

// The weight table of a model whose tensors are named with `prefix`: Qwen3ForCausalLM,
// Qwen3MoeForCausalLM, LlamaForCausalLM, Qwen2ForCausalLM or DeepseekV3ForCausalLM. The head is
// "language_model.lm_head.weight" beside "language_model.model." and "lm_head.weight" beside the
// others. MTP layers have rows of their own for the embedding and the head that they share.
// Errors: kUnsupported for an architecture, a prefix or an option that is not built, by name;
// kInvalidArgument for dimensions that do not fit together, with expected and actual.
Result<ModelSpec> MakeModelSpec(const HfConfig& config, std::string_view prefix = "model.");

// The table of a checkpoint: with the prefix that its tensors have (text_prefix.h).
// Errors: those of MakeModelSpec.
Result<ModelSpec> MakeCheckpointSpec(const Checkpoint& checkpoint);

// True for a layer (MTP layers included) whose MLP is a mixture of experts.
bool IsSparseLayer(const ModelSpec& spec, int64_t layer);

// Makes spec.by_name.
void IndexWeights(ModelSpec* spec);

// Position of `name` in spec.weights, or -1. Logarithmic in the number of weights; linear without
// by_name.
int FindWeight(const ModelSpec& spec, std::string_view name);

// "model.layers.0.mlp.up_proj" for "model.layers.0.mlp.up_proj.weight": the module that owns a
// parameter. A name without that last part is its own module.
std::string_view ModuleOfWeight(std::string_view weight_name);

// Weights that engines concatenate into one matrix, so that one precision serves them all and
// formats with SharesScale give them one scale (docs/policy.md): q/k/v of an attention, q_a/kv_a of
// an MLA (none when q has no latent), gate/up of an MLP, of a shared expert and of each routed
// expert. Biases are no members.
struct FusedSet {
  // The fused module: "…self_attn.qkv_proj", "…self_attn.fused_qkv_a_proj_with_mqa",
  // "…mlp.gate_up_proj", "…mlp.experts.7.gate_up_proj".
  std::string module;
  std::vector<int> members;  // Positions in spec.weights, in the order of concatenation.
};

// In forward order.
std::vector<FusedSet> FusedSetsOf(const ModelSpec& spec);

}  // namespace octavo
