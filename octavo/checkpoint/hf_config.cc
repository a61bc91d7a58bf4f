#include "octavo/checkpoint/hf_config.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config_rope.h"
#include "octavo/checkpoint/hf_config_section.h"

namespace octavo {
namespace {

// Bounds far above any published model and low enough that no product of two or three dimensions
// below leaves int64_t: vocab * hidden <= 2^44, heads * head_dim * hidden <= 2^48.
constexpr int64_t kHiddenMax = int64_t{1} << 20;
constexpr int64_t kLayersMax = 4096;
constexpr int64_t kMtpLayersMax = 64;
constexpr int64_t kHeadsMax = int64_t{1} << 16;
constexpr int64_t kHeadDimMax = 4096;
constexpr int64_t kExpertsMax = 4096;
constexpr int64_t kVocabMax = int64_t{1} << 24;
constexpr int64_t kPositionsMax = int64_t{1} << 30;
constexpr int64_t kTokenIdMax = std::numeric_limits<int32_t>::max();

// HF's Qwen3 has this head_dim when the file has none, whatever hidden_size is.
constexpr int64_t kQwen3HeadDim = 128;

// The text model inside a wrapper rarely names its class: HF builds it from its model_type.
std::string_view ArchitectureOfModelType(std::string_view model_type) {
  constexpr std::pair<std::string_view, std::string_view> kKnown[] = {
      {"qwen2", "Qwen2ForCausalLM"},
      {"qwen3", "Qwen3ForCausalLM"},
      {"qwen3_moe", "Qwen3MoeForCausalLM"},
      {"llama", "LlamaForCausalLM"},
      {"deepseek_v3", "DeepseekV3ForCausalLM"},
      {"kimi_k2", "DeepseekV3ForCausalLM"},
  };
  for (const auto& [type, architecture] : kKnown) {
    if (type == model_type) {
      return architecture;
    }
  }
  return {};
}

Result<std::string> FirstArchitecture(const HfSection& config) {
  constexpr std::string_view kKey = "architectures";
  constexpr std::string_view kExpected = "a list that begins with a class name";
  if (!config.Has(kKey)) {
    return config.Missing(kKey, kExpected);
  }
  std::vector<std::string> names;
  if (!config.Strings(kKey, names) || names.empty() || names[0].empty()) {
    return config.Wrong(kKey, kExpected);
  }
  return names[0];
}

// `text` is `root` unless the text model is nested.
Status ParseArchitecture(const HfSection& root, const HfSection& text, HfConfig& out) {
  ASSIGN_OR_RETURN(out.architecture, FirstArchitecture(root));
  RETURN_IF_ERROR(text.OptionalString("model_type", out.model_type));
  if (&root == &text) {
    return OkStatus();
  }
  out.wrapper_architecture = out.architecture;
  if (text.Has("architectures")) {
    ASSIGN_OR_RETURN(out.architecture, FirstArchitecture(text));
  } else if (const auto known = ArchitectureOfModelType(out.model_type); !known.empty()) {
    out.architecture = known;
  }
  return OkStatus();
}

Status ParseMla(const HfSection& config, HfConfig& out) {
  HfMlaConfig& mla = out.mla;
  RETURN_IF_ERROR(config.OptionalCount("kv_lora_rank", kHiddenMax, mla.kv_lora_rank));
  if (mla.kv_lora_rank == 0) {
    return OkStatus();
  }
  RETURN_IF_ERROR(config.OptionalCount("q_lora_rank", kHiddenMax, mla.q_lora_rank));
  RETURN_IF_ERROR(config.Count("qk_nope_head_dim", kHeadDimMax, mla.qk_nope_head_dim));
  RETURN_IF_ERROR(config.Count("qk_rope_head_dim", kHeadDimMax, mla.qk_rope_head_dim));
  RETURN_IF_ERROR(config.Count("v_head_dim", kHeadDimMax, mla.v_head_dim));
  const int64_t qk_head_dim = mla.qk_nope_head_dim + mla.qk_rope_head_dim;
  int64_t given = qk_head_dim;
  RETURN_IF_ERROR(config.OptionalCount("qk_head_dim", 2 * kHeadDimMax, given));
  if (given != qk_head_dim) {
    return config.Wrong("qk_head_dim",
                        fmt::format("qk_nope_head_dim + qk_rope_head_dim = {}", qk_head_dim));
  }
  if (config.Has("rope_interleave")) {
    bool interleave = false;
    RETURN_IF_ERROR(config.OptionalBool("rope_interleave", interleave));
    mla.rope_interleave = interleave;
  }
  return OkStatus();
}

Status ParseHeads(const HfSection& config, HfConfig& out) {
  RETURN_IF_ERROR(config.Count("num_attention_heads", kHeadsMax, out.num_heads));
  out.num_kv_heads = out.num_heads;
  RETURN_IF_ERROR(config.OptionalCount("num_key_value_heads", kHeadsMax, out.num_kv_heads));
  if (out.num_heads % out.num_kv_heads != 0) {
    return InvalidArgument(
        "{}: num_key_value_heads: expected a divisor of num_attention_heads {}, "
        "got {}",
        config.name(), out.num_heads, out.num_kv_heads);
  }
  RETURN_IF_ERROR(config.OptionalCount("head_dim", kHeadDimMax, out.head_dim));
  if (out.mla.kv_lora_rank != 0) {
    // Published DeepSeek configs have none; some write what another attention would have.
    out.head_dim = out.mla.qk_rope_head_dim;
  }
  if (out.head_dim == 0 && out.architecture == "Qwen3ForCausalLM") {
    out.head_dim = kQwen3HeadDim;
  }
  if (out.head_dim == 0) {
    if (out.hidden_size % out.num_heads != 0) {
      return InvalidArgument(
          "{}: head_dim: absent, and hidden_size {} is no multiple of "
          "num_attention_heads {}",
          config.name(), out.hidden_size, out.num_heads);
    }
    out.head_dim = out.hidden_size / out.num_heads;
  }
  if (out.head_dim % 2 != 0 || out.head_dim > kHeadDimMax) {
    return InvalidArgument("{}: {}: expected an even number up to {}, got {}", config.name(),
                           out.mla.kv_lora_rank != 0 ? "qk_rope_head_dim" : "head_dim", kHeadDimMax,
                           out.head_dim);
  }
  return OkStatus();
}

Status ParseDimensions(const HfSection& config, HfConfig& out) {
  RETURN_IF_ERROR(config.Count("hidden_size", kHiddenMax, out.hidden_size));
  RETURN_IF_ERROR(config.Count("num_hidden_layers", kLayersMax, out.num_layers));
  RETURN_IF_ERROR(ParseMla(config, out));
  RETURN_IF_ERROR(ParseHeads(config, out));
  RETURN_IF_ERROR(config.Count("intermediate_size", kVocabMax, out.intermediate_size));
  RETURN_IF_ERROR(config.Count("vocab_size", kVocabMax, out.vocab_size));
  RETURN_IF_ERROR(
      config.Count("max_position_embeddings", kPositionsMax, out.max_position_embeddings));
  RETURN_IF_ERROR(config.Positive("rms_norm_eps", 1.0, out.rms_norm_eps));
  RETURN_IF_ERROR(config.OptionalInteger("num_nextn_predict_layers",
                                         {.min = 0, .max = kMtpLayersMax}, out.num_mtp_layers));
  return config.OptionalBool("attention_bias", out.attention_bias);
}

// The number of experts goes by three names; those that are there must agree.
Status ParseNumExperts(const HfSection& config, HfMoeConfig& moe) {
  for (const std::string_view key : {"num_experts", "num_local_experts", "n_routed_experts"}) {
    int64_t count = moe.num_experts;
    RETURN_IF_ERROR(config.OptionalCount(key, kExpertsMax, count));
    if (moe.num_experts != 0 && count != moe.num_experts) {
      return config.Wrong(key, fmt::format("{} as elsewhere in the file", moe.num_experts));
    }
    moe.num_experts = count;
  }
  return OkStatus();
}

template <typename T>
Status ParseOptionalInteger(const HfSection& config, std::string_view key, Bounds<T> bounds,
                            std::optional<T>& out) {
  if (!config.Has(key)) {
    return OkStatus();
  }
  T number = 0;
  RETURN_IF_ERROR(config.OptionalInteger(key, bounds, number));
  out = number;
  return OkStatus();
}

Status ParseMlpOnlyLayers(const HfSection& config, int64_t num_layers, HfMoeConfig& moe) {
  constexpr std::string_view kKey = "mlp_only_layers";
  std::vector<int64_t>& layers = moe.mlp_only_layers;
  const bool is_list = !config.Has(kKey) || config.IsArray(kKey);
  bool is_good = is_list && config.Integers(kKey, layers);
  std::sort(layers.begin(), layers.end());
  layers.erase(std::unique(layers.begin(), layers.end()), layers.end());
  is_good = is_good && (layers.empty() || (layers.front() >= 0 && layers.back() < num_layers));
  return is_good ? OkStatus()
                 : config.Wrong(kKey, fmt::format("a list of layers from 0 to {}", num_layers - 1));
}

Status ParseMoe(const HfSection& config, HfConfig& out) {
  HfMoeConfig& moe = out.moe;
  RETURN_IF_ERROR(ParseNumExperts(config, moe));
  if (moe.num_experts == 0) {
    return OkStatus();
  }
  RETURN_IF_ERROR(config.Count("num_experts_per_tok", kExpertsMax, moe.num_experts_per_tok));
  RETURN_IF_ERROR(config.Count("moe_intermediate_size", kVocabMax, moe.moe_intermediate_size));
  RETURN_IF_ERROR(config.OptionalCount("decoder_sparse_step", kLayersMax, moe.decoder_sparse_step));
  RETURN_IF_ERROR(ParseMlpOnlyLayers(config, out.num_layers, moe));
  if (config.IsArray("moe_layer_freq")) {
    return config.NotBuilt("moe_layer_freq", "one number for all layers");
  }
  RETURN_IF_ERROR(config.OptionalCount("moe_layer_freq", kLayersMax, moe.moe_layer_freq));
  constexpr Bounds<int64_t> kLayers = {.min = 0, .max = kLayersMax};
  constexpr Bounds<int64_t> kGroups = {.min = 1, .max = kExpertsMax};
  RETURN_IF_ERROR(
      ParseOptionalInteger(config, "first_k_dense_replace", kLayers, moe.first_k_dense_replace));
  RETURN_IF_ERROR(ParseOptionalInteger(config, "n_group", kGroups, moe.n_group));
  RETURN_IF_ERROR(ParseOptionalInteger(config, "topk_group", kGroups, moe.topk_group));
  RETURN_IF_ERROR(ParseOptionalInteger(config, "n_shared_experts", {.min = 0, .max = kExpertsMax},
                                       moe.n_shared_experts));
  if (config.Has("routed_scaling_factor")) {
    double factor = 0.0;
    RETURN_IF_ERROR(config.OptionalPositive("routed_scaling_factor", 1e6, factor));
    moe.routed_scaling_factor = factor;
  }
  if (config.Has("norm_topk_prob")) {
    bool norm = false;
    RETURN_IF_ERROR(config.OptionalBool("norm_topk_prob", norm));
    moe.norm_topk_prob = norm;
  }
  RETURN_IF_ERROR(config.OptionalString("scoring_func", moe.scoring_func));
  return config.OptionalString("topk_method", moe.topk_method);
}

Status RefuseSlidingWindow(const HfSection& config) {
  bool use_sliding_window = false;
  RETURN_IF_ERROR(config.OptionalBool("use_sliding_window", use_sliding_window));
  if (use_sliding_window) {
    return config.NotBuilt("use_sliding_window", "false");
  }
  // Families without the flag slide whenever a width is given; Qwen writes a width that the flag
  // turns off.
  if (config.Has("sliding_window") && !config.Has("use_sliding_window")) {
    return config.NotBuilt("sliding_window", "null, or use_sliding_window false beside it");
  }
  return OkStatus();
}

Status RefuseLayerTypes(const HfSection& config, int64_t num_layers) {
  std::vector<std::string> types;
  if (!config.Strings("layer_types", types)) {
    return config.Wrong("layer_types", "a list of strings");
  }
  for (size_t i = 0; i < types.size(); ++i) {
    if (types[i] != "full_attention") {
      return Unsupported("{}: layer_types[{}]: expected \"full_attention\", got \"{}\"",
                         config.name(), i, std::string_view(types[i]).substr(0, 80));
    }
  }
  if (config.Has("layer_types") && std::cmp_not_equal(types.size(), num_layers)) {
    return InvalidArgument("{}: layer_types: expected num_hidden_layers {} of them, got {}",
                           config.name(), num_layers, types.size());
  }
  return OkStatus();
}

// Settings that change the forward pass of an architecture that we know, without changing a shape.
Status RefuseVariants(const HfSection& config, int64_t num_layers) {
  RETURN_IF_ERROR(RefuseSlidingWindow(config));
  RETURN_IF_ERROR(RefuseLayerTypes(config, num_layers));
  std::string act = "silu";
  if (!config.OptionalString("hidden_act", act).ok() || act != "silu") {
    return config.NotBuilt("hidden_act", "\"silu\"");
  }
  for (const std::string_view key : {"mlp_bias", "use_mrope", "use_qk_norm", "qk_layernorm"}) {
    bool is_on = false;
    RETURN_IF_ERROR(config.OptionalBool(key, is_on));
    if (is_on) {
      return config.NotBuilt(key, "false");
    }
  }
  // Chunked and sparse attention, caps on scores and logits, layers without rotary embedding.
  for (const std::string_view key :
       {"dual_chunk_attention_config", "attention_chunk_size", "index_topk",
        "attn_logit_softcapping", "final_logit_softcapping", "no_rope_layers"}) {
    if (config.Has(key)) {
      return config.NotBuilt(key, "null");
    }
  }
  return OkStatus();
}

Result<std::string> ParseDType(const HfSection& config) {
  constexpr std::string_view kPrefix = "torch.";
  std::string old_name;  // Of transformers 4.
  std::string name;
  RETURN_IF_ERROR(config.OptionalString("torch_dtype", old_name));
  RETURN_IF_ERROR(config.OptionalString("dtype", name));
  for (std::string* text : {&old_name, &name}) {
    if (text->starts_with(kPrefix)) {
      text->erase(0, kPrefix.size());
    }
  }
  if (!name.empty() && !old_name.empty() && old_name != name) {
    return InvalidArgument("{}: torch_dtype: expected \"{}\" as in dtype, got \"{}\"",
                           config.name(), name, old_name);
  }
  return name.empty() ? old_name : name;
}

// Adds the ids of `config`'s eos_token_id: an integer or a list of them.
Status AddEosIds(const HfSection& config, std::set<int32_t>& ids) {
  constexpr std::string_view kKey = "eos_token_id";
  std::vector<int64_t> items;
  bool is_good = config.Integers(kKey, items);
  for (const int64_t id : items) {
    is_good = is_good && id >= 0 && id <= kTokenIdMax;
  }
  if (!is_good) {
    return config.Wrong(kKey,
                        fmt::format("an integer from 0 to {} or a list of them", kTokenIdMax));
  }
  for (const int64_t id : items) {
    ids.insert(static_cast<int32_t>(id));
  }
  return OkStatus();
}

// The first that is there, in the order in which SGLang looks (docs/formats.md).
Status ParseQuantization(const HfSection& root, const HfSection& text, HfConfig& out) {
  const std::pair<const HfSection*, std::string_view> places[] = {
      {&root, "quantization_config"},
      {&text, "quantization_config"},
      {&root, "compression_config"},
  };
  for (const auto& [section, key] : places) {
    if (!section->Has(key)) {
      continue;
    }
    if (!section->IsObject(key)) {
      return section->Wrong(key, "an object or null");
    }
    out.quantization_config = section->Json(key);
    return OkStatus();
  }
  return OkStatus();
}

// ModelOpt's own file. One that is broken or names no algorithm declares nothing: an auditor says
// so, and codes without a declaration are refused where they are met.
bool DeclaresQuantization(std::string_view hf_quant_config_json) {
  const auto file = HfSection::Parse("hf_quant_config.json", hf_quant_config_json);
  if (!file || !file->IsObject("quantization")) {
    return false;
  }
  const auto quantization = file->Object("quantization");
  return quantization && quantization->Has("quant_algo");
}

// Keeps the first refusal of a setting that concerns the forward pass alone; every other error is
// passed on.
Status KeepNotServed(const Status& status, HfConfig& out) {
  if (status.code() != StatusCode::kUnsupported) {
    return status;
  }
  if (out.not_served.empty()) {
    out.not_served = status.message();
  }
  return OkStatus();
}

// Everything but the architecture. `text` is `root` unless the text model is nested; what wrappers
// repeat or keep to themselves is then looked for in both.
Status ParseMembers(const HfSection& root, const HfSection& text, HfConfig& out) {
  RETURN_IF_ERROR(ParseDimensions(text, out));
  RETURN_IF_ERROR(KeepNotServed(ParseHfRope(text, out), out));
  RETURN_IF_ERROR(ParseMoe(text, out));
  RETURN_IF_ERROR(KeepNotServed(RefuseVariants(text, out.num_layers), out));
  const HfSection& ties = text.Has("tie_word_embeddings") ? text : root;
  RETURN_IF_ERROR(ties.OptionalBool("tie_word_embeddings", out.tie_word_embeddings));
  ASSIGN_OR_RETURN(out.dtype, ParseDType(text));
  if (out.dtype.empty()) {
    ASSIGN_OR_RETURN(out.dtype, ParseDType(root));
  }
  return ParseQuantization(root, text, out);
}

}  // namespace

Result<HfConfig> ParseHfConfig(std::string_view config_json,
                               std::string_view generation_config_json) {
  return ParseHfConfig(config_json,
                       HfConfigFiles{.generation_config_json = generation_config_json});
}

Result<HfConfig> ParseHfConfig(std::string_view config_json, const HfConfigFiles& files) {
  HfConfig out;
  std::set<int32_t> eos_ids;
  ASSIGN_OR_RETURN(const HfSection root, HfSection::Parse("config.json", config_json));
  if (root.Has("text_config") && !root.Has("hidden_size")) {
    ASSIGN_OR_RETURN(const HfSection text, root.Object("text_config"));
    RETURN_IF_ERROR(ParseArchitecture(root, text, out));
    RETURN_IF_ERROR(ParseMembers(root, text, out));
    RETURN_IF_ERROR(AddEosIds(text, eos_ids));
  } else {
    RETURN_IF_ERROR(ParseArchitecture(root, root, out));
    RETURN_IF_ERROR(ParseMembers(root, root, out));
  }
  RETURN_IF_ERROR(AddEosIds(root, eos_ids));
  if (!files.generation_config_json.empty()) {
    ASSIGN_OR_RETURN(const HfSection generation,
                     HfSection::Parse("generation_config.json", files.generation_config_json));
    RETURN_IF_ERROR(AddEosIds(generation, eos_ids));
  }
  if (out.quantization_config.empty() && DeclaresQuantization(files.hf_quant_config_json)) {
    out.quantization_config = files.hf_quant_config_json;
  }
  out.eos_token_ids.assign(eos_ids.begin(), eos_ids.end());
  out.config_json = config_json;
  return out;
}

Status CheckServedConfig(const HfConfig& config) {
  return config.not_served.empty() ? OkStatus() : Unsupported("{}", config.not_served);
}

}  // namespace octavo
