// Any bytes as config.json, and what follows the first NUL as generation_config.json: refused, or
// dimensions within their bounds. The same text is then edited as the converter does it; what comes
// out must be JSON again, and the edit must undo and repeat itself.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/check.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/writer.h"

namespace {

void CheckMoe(const octavo::HfConfig& config) {
  const octavo::HfMoeConfig& moe = config.moe;
  CHECK(moe.num_experts >= 0);
  if (moe.num_experts > 0) {
    CHECK(moe.num_experts_per_tok > 0);
  }
  CHECK(moe.decoder_sparse_step > 0);
  CHECK(moe.moe_layer_freq > 0);
  int64_t elements = 0;
  CHECK(!__builtin_mul_overflow(moe.num_experts * moe.moe_intermediate_size, config.hidden_size,
                                &elements));
  for (const int64_t layer : moe.mlp_only_layers) {
    CHECK(layer >= 0);
    CHECK(layer < config.num_layers);
  }
}

void CheckRope(const octavo::RopeScaling& rope) {
  if (rope.type == octavo::RopeType::kDefault) {
    const bool is_plain = rope == octavo::RopeScaling();
    CHECK(is_plain);
    return;
  }
  CHECK(rope.factor >= 1.0);
  CHECK(rope.original_max_position_embeddings > 0);
  CHECK(rope.beta_fast >= rope.beta_slow);
}

void CheckParsed(const octavo::HfConfig& config) {
  CHECK(config.hidden_size > 0);
  CHECK(config.num_layers > 0);
  CHECK(config.num_heads % config.num_kv_heads == 0);
  CHECK(config.head_dim % 2 == 0);
  CHECK(config.vocab_size > 0);
  CHECK(config.rms_norm_eps > 0.0);
  int64_t elements = 0;
  CHECK(!__builtin_mul_overflow(config.num_heads * config.head_dim, config.hidden_size, &elements));
  CHECK(!__builtin_mul_overflow(config.vocab_size, config.hidden_size, &elements));
  CheckMoe(config);
  if (config.not_served.empty()) {
    CHECK(config.rope_theta > 0.0);
    CheckRope(config.rope_scaling);
  }
  CHECK(config.num_mtp_layers >= 0);
  CHECK(config.mla.kv_lora_rank >= 0);
  if (config.mla.kv_lora_rank > 0) {
    CHECK(config.head_dim == config.mla.qk_rope_head_dim);
  }
  for (size_t i = 1; i < config.eos_token_ids.size(); ++i) {
    CHECK(config.eos_token_ids[i - 1] < config.eos_token_ids[i]);
  }
}

void CheckEdits(std::string_view text) {
  const auto bare = octavo::ConfigJsonWithQuantization(text, "");
  if (!bare.has_value()) {
    return;
  }
  const auto bare_again = octavo::ConfigJsonWithQuantization(*bare, "");
  CHECK(bare_again.has_value());
  CHECK(*bare_again == *bare);
  const auto quantized = octavo::ConfigJsonWithQuantization(text, R"({"quant_method": "fp8"})");
  CHECK(quantized.has_value());
  const auto quantized_again =
      octavo::ConfigJsonWithQuantization(*quantized, R"({"quant_method": "fp8"})");
  CHECK(quantized_again.has_value());
  CHECK(*quantized_again == *quantized);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  const size_t split = input.find('\0');
  const std::string_view text = input.substr(0, split);
  const std::string_view generation =
      split == std::string_view::npos ? std::string_view() : input.substr(split + 1);
  const auto config = octavo::ParseHfConfig(text, generation);
  if (config.has_value()) {
    CheckParsed(*config);
  } else {
    CHECK(!config.error().message().empty());
  }
  CheckEdits(text);
  return 0;
}
