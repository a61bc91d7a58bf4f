#include "octavo/text/tokenizer.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/text/added_tokens.h"
#include "octavo/text/bpe.h"
#include "octavo/text/nfc.h"
#include "octavo/text/split_pattern.h"
#include "octavo/text/tokenizer_config.h"
#include "octavo/text/tokenizer_json.h"
#include "octavo/text/utf8.h"

namespace octavo {

struct Tokenizer::Impl {
  Impl(TokenizerSpec spec, std::vector<SplitPattern> split_patterns);

  // One stretch between added tokens, normalized.
  void EncodeText(std::string_view text, std::vector<int32_t>* ids) const;
  void EncodeWord(std::string_view word, std::vector<int32_t>* ids) const;

  bool normalize_nfc;
  AddedTokenMatcher raw_tokens;         // Found in the text as given,
  AddedTokenMatcher normalized_tokens;  // and in the normalized text between those.
  std::vector<SplitPattern> patterns;
  Bpe bpe;
  std::unordered_map<std::string, int32_t> words;  // With ignore_merges; otherwise empty.
  std::vector<std::string> token_bytes;            // By id.
  std::vector<bool> is_special;                    // By id.
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

namespace {

std::vector<AddedToken> TokensWith(const std::vector<AddedToken>& tokens, bool normalized) {
  std::vector<AddedToken> selected;
  std::copy_if(tokens.begin(), tokens.end(), std::back_inserter(selected),
               [normalized](const AddedToken& token) { return token.normalized == normalized; });
  return selected;
}

// Replaces what the post-processor puts around a text by what the config does.
Status PutAround(const SpecialTokensAround& around, TokenizerSpec* spec) {
  struct Side {
    std::string_view token;
    std::vector<int32_t>* ids;
  };
  for (const Side& side :
       {Side{around.before, &spec->prefix}, Side{around.behind, &spec->suffix}}) {
    side.ids->clear();
    if (side.token.empty()) continue;
    const auto found =
        std::find_if(spec->added_tokens.begin(), spec->added_tokens.end(),
                     [&side](const AddedToken& token) { return token.content == side.token; });
    if (found == spec->added_tokens.end()) {
      // HF would add it, with an id that the model may not have.
      return Unsupported("tokenizer_config.json: {} goes around each text, but is no added token",
                         side.token);
    }
    side.ids->push_back(found->id);
  }
  return Status();
}

Result<Tokenizer> LoadWith(const std::string& path, const TokenizerConfig& config) {
  ASSIGN_OR_RETURN(const std::string json, ReadTextFile(path));
  Result<Tokenizer> tokenizer = Tokenizer::Parse(json, config);
  if (!tokenizer.has_value()) return tokenizer.error().WithContext(path);
  return tokenizer;
}

}  // namespace

Tokenizer::Impl::Impl(TokenizerSpec spec, std::vector<SplitPattern> split_patterns)
    : normalize_nfc(spec.normalize_nfc),
      raw_tokens(TokensWith(spec.added_tokens, /*normalized=*/false)),
      normalized_tokens(TokensWith(spec.added_tokens, /*normalized=*/true)),
      patterns(std::move(split_patterns)),
      bpe(spec.byte_ids, spec.merges),
      words(spec.words.begin(), spec.words.end()),
      token_bytes(std::move(spec.token_bytes)),
      is_special(token_bytes.size()),
      prefix(std::move(spec.prefix)),
      suffix(std::move(spec.suffix)) {
  for (const AddedToken& token : spec.added_tokens) {
    is_special[static_cast<size_t>(token.id)] = token.special;
  }
}

void Tokenizer::Impl::EncodeText(std::string_view text, std::vector<int32_t>* ids) const {
  std::vector<std::string_view> pieces = {text};
  for (const SplitPattern& pattern : patterns) {
    std::vector<std::string_view> parts;
    pattern.Split(pieces, &parts);
    pieces = std::move(parts);
  }
  for (const std::string_view piece : pieces) EncodeWord(piece, ids);
}

void Tokenizer::Impl::EncodeWord(std::string_view word, std::vector<int32_t>* ids) const {
  if (!words.empty()) {
    const auto found = words.find(std::string(word));
    if (found != words.end()) {
      ids->push_back(found->second);
      return;
    }
  }
  bpe.Encode(word, ids);
}

Tokenizer::Tokenizer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Result<Tokenizer> Tokenizer::LoadFolder(const std::string& folder) {
  ASSIGN_OR_RETURN(const TokenizerConfig config, LoadTokenizerConfig(folder));
  return LoadWith(std::filesystem::path(folder) / "tokenizer.json", config);
}

Result<Tokenizer> Tokenizer::Load(const std::string& tokenizer_json_path) {
  return LoadWith(tokenizer_json_path, {});
}

Result<Tokenizer> Tokenizer::Parse(std::string_view tokenizer_json, const TokenizerConfig& config) {
  ASSIGN_OR_RETURN(TokenizerSpec spec, ParseTokenizerJson(tokenizer_json));
  if (config.around.has_value()) RETURN_IF_ERROR(PutAround(*config.around, &spec));
  std::vector<SplitPattern> patterns;
  for (const std::string& source : spec.split_patterns) {
    ASSIGN_OR_RETURN(SplitPattern pattern, SplitPattern::Compile(source));
    patterns.push_back(std::move(pattern));
  }
  return Tokenizer(std::make_unique<Impl>(std::move(spec), std::move(patterns)));
}

std::vector<int32_t> Tokenizer::Encode(std::string_view text, bool add_special_tokens) const {
  std::string valid;
  if (!IsValidUtf8(text)) {
    valid = ReplaceInvalidUtf8(text);
    text = valid;
  }
  std::vector<int32_t> ids;
  if (add_special_tokens) ids = impl_->prefix;
  std::vector<AddedTokenMatcher::Part> raw_parts;
  impl_->raw_tokens.Split(text, &raw_parts);
  for (const AddedTokenMatcher::Part& raw_part : raw_parts) {
    if (raw_part.id >= 0) {
      ids.push_back(raw_part.id);
      continue;
    }
    std::string_view stretch = raw_part.text;
    std::string normalized;
    if (impl_->normalize_nfc && MayChangeUnderNfc(stretch)) {
      normalized = NormalizeNfc(stretch);
      stretch = normalized;
    }
    std::vector<AddedTokenMatcher::Part> parts;
    impl_->normalized_tokens.Split(stretch, &parts);
    for (const AddedTokenMatcher::Part& part : parts) {
      if (part.id >= 0) {
        ids.push_back(part.id);
      } else {
        impl_->EncodeText(part.text, &ids);
      }
    }
  }
  if (add_special_tokens) ids.insert(ids.end(), impl_->suffix.begin(), impl_->suffix.end());
  return ids;
}

std::string Tokenizer::Decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids) bytes.append(TokenBytes(id, skip_special_tokens));
  return IsValidUtf8(bytes) ? bytes : ReplaceInvalidUtf8(bytes);
}

std::string_view Tokenizer::TokenBytes(int32_t id, bool skip_special_tokens) const {
  if (id < 0 || id >= vocab_size()) return {};
  if (skip_special_tokens && IsSpecial(id)) return {};
  return impl_->token_bytes[static_cast<size_t>(id)];
}

int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(impl_->token_bytes.size()); }

bool Tokenizer::IsSpecial(int32_t id) const {
  return id >= 0 && id < vocab_size() && impl_->is_special[static_cast<size_t>(id)];
}

IncrementalDecoder::IncrementalDecoder(const Tokenizer* tokenizer, bool skip_special_tokens)
    : tokenizer_(tokenizer), skip_special_tokens_(skip_special_tokens) {}

void IncrementalDecoder::Append(int32_t id) {
  pending_.append(tokenizer_->TokenBytes(id, skip_special_tokens_));
  size_t pos = 0;
  while (pos < pending_.size()) {
    const Utf8Step step = ReadUtf8(pending_, pos);
    if (step.kind == Utf8Kind::kIncomplete) break;
    if (step.kind == Utf8Kind::kValid) {
      text_.append(pending_, pos, step.num_bytes);
    } else {
      text_.append(kReplacementUtf8);
    }
    pos += step.num_bytes;
  }
  pending_.erase(0, pos);
}

std::string IncrementalDecoder::Finished() const {
  // What is held back is one sequence that broke off, hence one invalid part.
  return pending_.empty() ? text_ : text_ + std::string(kReplacementUtf8);
}

}  // namespace octavo
