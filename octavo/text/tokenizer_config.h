#pragma once
// tokenizer_config.json of HF transformers: what it changes about a tokenizer.json, and the chat
// template.
//
// transformers 4 replaces the post-processor of tokenizer.json for the class LlamaTokenizer(Fast)
// by bos_token (unless add_bos_token is false) and eos_token (if add_eos_token is true); the
// DeepSeek models rely on it (models/llama/tokenization_llama_fast.py, update_post_processor).
// transformers 5 drops both flags when there is a tokenizer.json, which loses DeepSeek's BOS;
// SGLang restores what version 4 did, and so do we. The classes PreTrainedTokenizerFast,
// Qwen2Tokenizer(Fast) and TokenizersBackend never looked at the flags.
//
// clean_up_tokenization_spaces is not honoured: SGLang switches it off, since it would take spaces
// out of what a model wrote.

#include <map>
#include <optional>
#include <string>
#include <string_view>

#include "octavo/base/status.h"

namespace octavo {

// What takes the place of tokenizer.json's post-processor. Empty: nothing there.
struct SpecialTokensAround {
  std::string before;
  std::string behind;
};

struct TokenizerConfig {
  // By name ("bos_token", "eos_token", "pad_token", "unk_token"), those that are there.
  std::map<std::string, std::string> special_tokens;
  std::optional<SpecialTokensAround> around;  // Absent: tokenizer.json's own holds.
  std::string chat_template;                  // Of several, the one named "default".
};

// Errors: kCorrupt (not JSON, or a field with a wrong type), kUnsupported (a tokenizer_class that
// may change the tokenizer in other ways, or an option that is not built); both name the field.
Result<TokenizerConfig> ParseTokenizerConfig(std::string_view json);

// Of a checkpoint folder; without the file, a TokenizerConfig that changes nothing. A
// chat_template.jinja beside it goes before the template inside it, as in HF.
Result<TokenizerConfig> LoadTokenizerConfig(const std::string& folder);

}  // namespace octavo
