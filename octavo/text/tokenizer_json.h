#pragma once
// tokenizer.json of HF `tokenizers`, read and checked.

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/added_tokens.h"
#include "octavo/text/bpe.h"

namespace octavo {

// What a tokenizer is made of, in our terms: ids and bytes.
struct TokenizerSpec {
  bool normalize_nfc = false;
  std::vector<std::string> split_patterns;  // Oniguruma expressions, applied one after the other.
  std::vector<AddedToken> added_tokens;

  std::vector<std::string> token_bytes;                // By id; empty for ids without a token.
  std::array<int32_t, 256> byte_ids;                   // -1: the vocabulary lacks the byte.
  std::vector<BpeMerge> merges;                        // By rank.
  bool ignore_merges = false;                          // A word that is a token is that token.
  std::vector<std::pair<std::string, int32_t>> words;  // For ignore_merges: bytes and id.

  std::vector<int32_t> prefix;  // Special ids around a text.
  std::vector<int32_t> suffix;
};

// Errors: kCorrupt (not JSON, or a field with a wrong type or value), kUnsupported (a component or
// option that is not built); both name the field.
Result<TokenizerSpec> ParseTokenizerJson(std::string_view json);

}  // namespace octavo
