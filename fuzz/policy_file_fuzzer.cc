// A policy file. Whatever is accepted must compile to a whole table or be refused with a reason,
// and the stored configuration of a table must read back as the same table.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/policy_file.h"
#include "octavo/policy/precision_table.h"

namespace {

// Two layers of a small mixture of experts: attention, routers and experts occur.
octavo::ModelSpec SmallSpec() {
  return octavo::MakeModelSpec(
             octavo::ParseHfConfig(
                 R"({"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
                     "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
                     "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96,
                     "moe_intermediate_size": 32, "num_experts": 2, "num_experts_per_tok": 1,
                     "decoder_sparse_step": 1, "mlp_only_layers": [], "norm_topk_prob": true,
                     "vocab_size": 10, "max_position_embeddings": 64, "rms_norm_eps": 1e-6,
                     "rope_theta": 10000.0, "tie_word_embeddings": true})",
                 "")
                 .value())
      .value();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const octavo::ModelSpec spec = SmallSpec();
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  const auto options = octavo::ParsePolicyFile(text, "policy.toml");
  if (!options) {
    CHECK(options.error().message().starts_with("policy.toml"));
    return 0;
  }
  const auto table = octavo::CompilePolicy(spec, *options);
  if (!table) {
    CHECK(!table.error().message().empty());
    return 0;
  }
  CHECK(table->rows.size() == spec.weights.size());
  const std::string config = octavo::QuantizationConfigJson(*table);
  if (config.empty()) {
    return 0;
  }
  const auto read = octavo::TableFromQuantizationConfig(spec, config);
  CHECK(read.has_value());
  CHECK(read->Hash() == table->Hash());
  return 0;
}
