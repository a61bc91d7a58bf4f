#pragma once
// Byte-level BPE from HF tokenizer.json: normalizer (NFC or none), pre-tokenizer (Split by regular
// expression, Digits, ByteLevel), merges, added tokens, special tokens around a text. Qwen2 and 3,
// Llama 3 and DeepSeek-V2, V3 and R1 are made of these.
//
// Ids equal those of HF `tokenizers` 0.23.3. Its Unicode tables are not those of our libraries, so
// nfc.h and stand_in.h bridge them: NFC of Unicode 9, character properties of Unicode 16.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/tokenizer_config.h"

namespace octavo {

// Move-only; const is thread-safe.
class Tokenizer {
 public:
  // The tokenizer of a checkpoint folder: its tokenizer.json, with the special tokens that its
  // tokenizer_config.json puts around a text where HF takes them from there (tokenizer_config.h).
  // Errors: kNotFound, kCorrupt, kUnsupported (a component that is not built, by name).
  static Result<Tokenizer> LoadFolder(const std::string& folder);
  // The file alone. Errors as above.
  static Result<Tokenizer> Load(const std::string& tokenizer_json_path);
  static Result<Tokenizer> Parse(std::string_view tokenizer_json,
                                 const TokenizerConfig& config = {});

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // Text to ids, special tokens of the post-processor included when `add_special_tokens`. Text
  // that is not UTF-8 is read as HF does: each maximal invalid part becomes U+FFFD.
  std::vector<int32_t> Encode(std::string_view text, bool add_special_tokens = true) const;

  // Ids to UTF-8 text; bytes that do not form UTF-8 become U+FFFD. Ids beyond the vocabulary give
  // nothing.
  std::string Decode(std::span<const int32_t> ids, bool skip_special_tokens) const;

  // The raw bytes that an id stands for; a view that lives as long as the tokenizer. Empty for
  // special tokens when `skip_special_tokens`, and for ids beyond the vocabulary.
  std::string_view TokenBytes(int32_t id, bool skip_special_tokens) const;

  int32_t vocab_size() const;  // Largest id + 1.
  bool IsSpecial(int32_t id) const;

 private:
  struct Impl;
  explicit Tokenizer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Decodes a growing list of ids; an incomplete UTF-8 tail is held back until it is complete or
// Finish turns it into U+FFFD. One thread; `tokenizer` must outlive it.
class IncrementalDecoder {
 public:
  IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens);

  void Append(int32_t id);
  // The text so far that can no longer change.
  const std::string& text() const { return text_; }
  // text() plus one U+FFFD for each invalid part of the held-back tail. May be called at any time.
  std::string Finished() const;

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_tokens_;
  std::string text_;
  std::string pending_;  // Bytes of an unfinished UTF-8 sequence.
};

}  // namespace octavo
