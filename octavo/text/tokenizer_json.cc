#include "octavo/text/tokenizer_json.h"

#include <fmt/format.h>
#include <simdjson.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <unordered_set>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/added_tokens.h"
#include "octavo/text/bpe.h"
#include "octavo/text/byte_level.h"
#include "octavo/text/nfc.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

using simdjson::dom::array;
using simdjson::dom::element;
using simdjson::dom::object;

// Ids beyond this are taken for damage: each id up to the largest costs memory.
constexpr int64_t kMaxId = (int64_t{1} << 24) - 1;

// ByteLevel's own split when use_regex is on: GPT-2's, as crate tokenizers has it
// (pre_tokenizers/byte_level.rs).
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

// What Digits takes for one: Rust's char::is_numeric. In HF tokenizers 0.23.3 that is Unicode 17,
// one version ahead of the expressions' \p{N}; the 13 characters between them are listed.
constexpr std::string_view kDigitPattern = R"([\p{N}\x{11de0}-\x{11de9}\x{16ff4}-\x{16ff6}])";

using Vocabulary = std::unordered_map<std::string_view, int32_t>;

// --- Fields. `path` names the object in messages.

std::optional<element> Find(const object& from, std::string_view key) {
  element value;
  if (from.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) return std::nullopt;
  return value;
}

template <typename T>
Result<T> As(const element& value, std::string_view path, std::string_view kind) {
  T result;
  if (value.get(result) != simdjson::SUCCESS) return Corrupt("{}: expected {}", path, kind);
  return result;
}

Result<object> AsObject(const element& value, std::string_view path) {
  return As<object>(value, path, "an object");
}

Result<array> AsArray(const element& value, std::string_view path) {
  return As<array>(value, path, "an array");
}

Result<std::string_view> GetString(const object& from, std::string_view path,
                                   std::string_view key) {
  const std::string name = fmt::format("{}.{}", path, key);
  const std::optional<element> value = Find(from, key);
  if (!value.has_value()) return Corrupt("{}: missing", name);
  return As<std::string_view>(*value, name, "a string");
}

Result<bool> GetBool(const object& from, std::string_view path, std::string_view key,
                     bool when_absent) {
  const std::optional<element> value = Find(from, key);
  if (!value.has_value()) return when_absent;
  return As<bool>(*value, fmt::format("{}.{}", path, key), "true or false");
}

Result<array> GetArray(const object& from, std::string_view path, std::string_view key) {
  const std::string name = fmt::format("{}.{}", path, key);
  const std::optional<element> value = Find(from, key);
  if (!value.has_value()) return Corrupt("{}: missing", name);
  return AsArray(*value, name);
}

Result<int32_t> AsId(const element& value, std::string_view path) {
  ASSIGN_OR_RETURN(const int64_t id, As<int64_t>(value, path, "an id"));
  if (id < 0 || id > kMaxId)
    return Corrupt("{}: expected an id up to {}, got {}", path, kMaxId, id);
  return static_cast<int32_t>(id);
}

Status CheckKeys(const object& from, std::string_view path,
                 std::initializer_list<std::string_view> known) {
  for (const auto field : from) {
    if (std::find(known.begin(), known.end(), field.key) == known.end()) {
      return Unsupported("{}.{}: an option that is not built", path, field.key);
    }
  }
  return Status();
}

// An option that must be absent, null, or what it is when it does nothing.
Status CheckOff(const object& from, std::string_view path, std::string_view key) {
  const std::optional<element> value = Find(from, key);
  if (!value.has_value()) return Status();
  bool flag = false;
  double number = 0;
  std::string_view text;
  const bool off = (value->get(flag) == simdjson::SUCCESS && !flag) ||
                   (value->get(number) == simdjson::SUCCESS && number == 0) ||
                   (value->get(text) == simdjson::SUCCESS && text.empty());
  if (!off) return Unsupported("{}.{}: {} is not built", path, key, simdjson::minify(*value));
  return Status();
}

// --- Components.

class Reader {
 public:
  Result<TokenizerSpec> Read(const element& root);

 private:
  Status ReadNormalizer(const element& value, std::string_view path);
  Status ReadPreTokenizer(const element& value);
  Status ReadPreTokenizerStep(const element& value, const std::string& path, bool* byte_level);
  Status ReadSplit(const object& split, std::string_view path);
  Status ReadDigits(const object& digits, std::string_view path);
  Status ReadModel(const element& value);
  Status ReadVocabulary(const object& vocabulary);
  Status ReadMerges(const array& merges);
  Status AddMerge(std::string_view left, std::string_view right, size_t idx);
  Status ReadAddedTokens(const array& tokens);
  Result<AddedToken> ReadAddedToken(const object& token, std::string_view path);
  Status PlaceAddedToken(AddedToken token, int32_t declared_id, std::string_view path);
  Status ReadPostProcessor(const element& value, const std::string& path);
  Status ReadTemplate(const object& processor, std::string_view path);
  Status AppendSpecialToken(const element& piece, const object& processor, std::string_view path,
                            std::vector<int32_t>* ids);
  Status CheckDecoder(const element& value);

  std::string& TokenAt(int32_t id);

  TokenizerSpec spec_;
  Vocabulary vocabulary_;  // As written, in symbols; views into the document.
  std::vector<bool> is_taken_;
  int32_t next_added_id_ = 0;
  std::unordered_set<std::string_view> added_contents_;
  bool has_template_ = false;
};

std::string& Reader::TokenAt(int32_t id) {
  const auto idx = static_cast<size_t>(id);
  if (idx >= spec_.token_bytes.size()) {
    spec_.token_bytes.resize(idx + 1);
    is_taken_.resize(idx + 1);
  }
  return spec_.token_bytes[idx];
}

Result<TokenizerSpec> Reader::Read(const element& root) {
  ASSIGN_OR_RETURN(const object file, AsObject(root, "tokenizer.json"));
  RETURN_IF_ERROR(CheckKeys(file, "tokenizer.json",
                            {"version", "truncation", "padding", "added_tokens", "normalizer",
                             "pre_tokenizer", "post_processor", "decoder", "model"}));
  ASSIGN_OR_RETURN(const std::string_view version, GetString(file, "tokenizer.json", "version"));
  if (version != "1.0") return Unsupported("version: expected 1.0, got {}", version);
  for (const std::string_view key : {"truncation", "padding"}) {
    if (Find(file, key).has_value()) return Unsupported("{}: expected null", key);
  }
  if (const auto value = Find(file, "normalizer")) {
    RETURN_IF_ERROR(ReadNormalizer(*value, "normalizer"));
  }
  for (const std::string_view key : {"pre_tokenizer", "model", "decoder"}) {
    if (!Find(file, key).has_value()) return Unsupported("{}: expected one, got null", key);
  }
  RETURN_IF_ERROR(ReadPreTokenizer(*Find(file, "pre_tokenizer")));
  RETURN_IF_ERROR(ReadModel(*Find(file, "model")));
  RETURN_IF_ERROR(CheckDecoder(*Find(file, "decoder")));
  if (const auto value = Find(file, "added_tokens")) {
    ASSIGN_OR_RETURN(const array tokens, AsArray(*value, "added_tokens"));
    RETURN_IF_ERROR(ReadAddedTokens(tokens));
  }
  if (const auto value = Find(file, "post_processor")) {
    RETURN_IF_ERROR(ReadPostProcessor(*value, "post_processor"));
  }
  return std::move(spec_);
}

Status Reader::ReadNormalizer(const element& value, std::string_view path) {
  ASSIGN_OR_RETURN(const object normalizer, AsObject(value, path));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(normalizer, path, "type"));
  if (type == "NFC") {
    spec_.normalize_nfc = true;
    return CheckKeys(normalizer, path, {"type"});
  }
  if (type != "Sequence" || path != "normalizer") {
    return Unsupported("{}: {} is not built (NFC is)", path, type);
  }
  RETURN_IF_ERROR(CheckKeys(normalizer, path, {"type", "normalizers"}));
  ASSIGN_OR_RETURN(const array steps, GetArray(normalizer, path, "normalizers"));
  for (const element step : steps) {
    RETURN_IF_ERROR(ReadNormalizer(step, "normalizer.normalizers"));
  }
  return Status();
}

Status Reader::ReadPreTokenizer(const element& value) {
  ASSIGN_OR_RETURN(const object pre_tokenizer, AsObject(value, "pre_tokenizer"));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(pre_tokenizer, "pre_tokenizer", "type"));
  bool byte_level = false;
  if (type == "Sequence") {
    RETURN_IF_ERROR(CheckKeys(pre_tokenizer, "pre_tokenizer", {"type", "pretokenizers"}));
    ASSIGN_OR_RETURN(const array steps, GetArray(pre_tokenizer, "pre_tokenizer", "pretokenizers"));
    for (const element step : steps) {
      if (byte_level) return Unsupported("pre_tokenizer: a step behind ByteLevel is not built");
      RETURN_IF_ERROR(ReadPreTokenizerStep(step, "pre_tokenizer.pretokenizers", &byte_level));
    }
  } else {
    RETURN_IF_ERROR(ReadPreTokenizerStep(value, "pre_tokenizer", &byte_level));
  }
  if (!byte_level) return Unsupported("pre_tokenizer: expected ByteLevel as its last step");
  return Status();
}

Status Reader::ReadPreTokenizerStep(const element& value, const std::string& path,
                                    bool* byte_level) {
  ASSIGN_OR_RETURN(const object step, AsObject(value, path));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(step, path, "type"));
  if (type == "Split") return ReadSplit(step, path + ".Split");
  if (type == "Digits") return ReadDigits(step, path + ".Digits");
  if (type != "ByteLevel") {
    return Unsupported("{}: {} is not built (Split, Digits and ByteLevel are)", path, type);
  }
  const std::string name = path + ".ByteLevel";
  RETURN_IF_ERROR(CheckKeys(step, name, {"type", "add_prefix_space", "trim_offsets", "use_regex"}));
  RETURN_IF_ERROR(CheckOff(step, name, "add_prefix_space"));
  ASSIGN_OR_RETURN(const bool use_regex, GetBool(step, name, "use_regex", true));
  if (use_regex) spec_.split_patterns.emplace_back(kByteLevelPattern);
  *byte_level = true;
  return Status();
}

Status Reader::ReadDigits(const object& digits, std::string_view path) {
  RETURN_IF_ERROR(CheckKeys(digits, path, {"type", "individual_digits"}));
  ASSIGN_OR_RETURN(const bool individual, GetBool(digits, path, "individual_digits", false));
  spec_.split_patterns.push_back(std::string(kDigitPattern) + (individual ? "" : "+"));
  return Status();
}

Status Reader::ReadSplit(const object& split, std::string_view path) {
  RETURN_IF_ERROR(CheckKeys(split, path, {"type", "pattern", "behavior", "invert"}));
  RETURN_IF_ERROR(CheckOff(split, path, "invert"));
  ASSIGN_OR_RETURN(const std::string_view behavior, GetString(split, path, "behavior"));
  if (behavior != "Isolated") {
    return Unsupported("{}.behavior: expected Isolated, got {}", path, behavior);
  }
  const std::optional<element> value = Find(split, "pattern");
  if (!value.has_value()) return Corrupt("{}.pattern: missing", path);
  const std::string pattern_path = fmt::format("{}.pattern", path);
  ASSIGN_OR_RETURN(const object pattern, AsObject(*value, pattern_path));
  RETURN_IF_ERROR(CheckKeys(pattern, pattern_path, {"Regex"}));
  ASSIGN_OR_RETURN(const std::string_view regex, GetString(pattern, pattern_path, "Regex"));
  spec_.split_patterns.emplace_back(regex);
  return Status();
}

Status Reader::ReadModel(const element& value) {
  ASSIGN_OR_RETURN(const object model, AsObject(value, "model"));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(model, "model", "type"));
  if (type != "BPE") return Unsupported("model: {} is not built (BPE is)", type);
  RETURN_IF_ERROR(
      CheckKeys(model, "model",
                {"type", "dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix",
                 "fuse_unk", "byte_fallback", "ignore_merges", "vocab", "merges"}));
  // fuse_unk says nothing without an unk_token.
  for (const std::string_view key : {"dropout", "unk_token", "continuing_subword_prefix",
                                     "end_of_word_suffix", "byte_fallback"}) {
    RETURN_IF_ERROR(CheckOff(model, "model", key));
  }
  ASSIGN_OR_RETURN(spec_.ignore_merges, GetBool(model, "model", "ignore_merges", false));
  const std::optional<element> vocab = Find(model, "vocab");
  if (!vocab.has_value()) return Corrupt("model.vocab: missing");
  ASSIGN_OR_RETURN(const object vocabulary, AsObject(*vocab, "model.vocab"));
  RETURN_IF_ERROR(ReadVocabulary(vocabulary));
  ASSIGN_OR_RETURN(const array merges, GetArray(model, "model", "merges"));
  return ReadMerges(merges);
}

Status Reader::ReadVocabulary(const object& vocabulary) {
  for (const auto field : vocabulary) {
    const std::string path = fmt::format("model.vocab[\"{}\"]", field.key);
    ASSIGN_OR_RETURN(const int32_t id, AsId(field.value, path));
    if (!vocabulary_.emplace(field.key, id).second) return Corrupt("{}: twice", path);
    std::string& bytes = TokenAt(id);
    if (is_taken_[static_cast<size_t>(id)]) return Corrupt("{}: id {} is taken", path, id);
    is_taken_[static_cast<size_t>(id)] = true;
    // HF decodes a token with a character outside the alphabet as the text it is.
    if (!BytesOfSymbols(field.key, &bytes)) {
      bytes = field.key;
    } else if (spec_.ignore_merges) {
      spec_.words.emplace_back(bytes, id);
    }
  }
  for (size_t byte = 0; byte < spec_.byte_ids.size(); ++byte) {
    std::string symbol;
    AppendUtf8(SymbolOfByte(static_cast<uint8_t>(byte)), &symbol);
    const auto found = vocabulary_.find(symbol);
    spec_.byte_ids[byte] = found == vocabulary_.end() ? -1 : found->second;
  }
  next_added_id_ = static_cast<int32_t>(vocabulary_.size());
  return Status();
}

Status Reader::ReadMerges(const array& merges) {
  size_t idx = 0;
  for (const element merge : merges) {
    const std::string path = fmt::format("model.merges[{}]", idx);
    std::string_view line;
    if (merge.get(line) == simdjson::SUCCESS) {
      if (line.starts_with("#version")) continue;  // The head of a merges.txt; without a rank.
      const size_t space = std::min(line.find(' '), line.size());
      if (space == line.size() || line.find(' ', space + 1) != line.npos) {
        return Corrupt("{}: expected two symbols, got \"{}\"", path, line);
      }
      RETURN_IF_ERROR(AddMerge(line.substr(0, space), line.substr(space + 1), idx));
    } else {
      ASSIGN_OR_RETURN(const array pair, As<array>(merge, path, "\"a b\" or [\"a\", \"b\"]"));
      if (pair.size() != 2) return Corrupt("{}: expected two symbols, got {}", path, pair.size());
      ASSIGN_OR_RETURN(const auto left, As<std::string_view>(*pair.begin(), path, "strings"));
      ASSIGN_OR_RETURN(const auto right, As<std::string_view>(*++pair.begin(), path, "strings"));
      RETURN_IF_ERROR(AddMerge(left, right, idx));
    }
    ++idx;
  }
  return Status();
}

Status Reader::AddMerge(std::string_view left, std::string_view right, size_t idx) {
  const std::string merged = std::string(left) + std::string(right);
  BpeMerge merge;
  for (const auto& [symbols, id] : {std::pair<std::string_view, int32_t*>(left, &merge.left),
                                    {right, &merge.right},
                                    {merged, &merge.merged}}) {
    const auto found = vocabulary_.find(symbols);
    if (found == vocabulary_.end()) {
      return Corrupt("model.merges[{}]: \"{}\" is not in model.vocab", idx, symbols);
    }
    *id = found->second;
  }
  spec_.merges.push_back(merge);
  return Status();
}

Status Reader::ReadAddedTokens(const array& tokens) {
  size_t idx = 0;
  for (const element value : tokens) {
    const std::string path = fmt::format("added_tokens[{}]", idx++);
    ASSIGN_OR_RETURN(const object object, AsObject(value, path));
    ASSIGN_OR_RETURN(AddedToken token, ReadAddedToken(object, path));
    const int32_t declared_id = token.id;
    RETURN_IF_ERROR(PlaceAddedToken(std::move(token), declared_id, path));
  }
  // HF matches contents after normalization, and fails on two of the same.
  std::unordered_set<std::string_view> contents;
  for (const AddedToken& token : spec_.added_tokens) {
    if (!contents.insert(token.content).second) {
      return Corrupt("added_tokens: \"{}\" twice after normalization", token.content);
    }
  }
  return Status();
}

Result<AddedToken> Reader::ReadAddedToken(const object& object, std::string_view path) {
  RETURN_IF_ERROR(CheckKeys(
      object, path, {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  AddedToken token;
  const std::optional<element> id = Find(object, "id");
  if (!id.has_value()) return Corrupt("{}.id: missing", path);
  ASSIGN_OR_RETURN(token.id, AsId(*id, fmt::format("{}.id", path)));
  ASSIGN_OR_RETURN(const std::string_view content, GetString(object, path, "content"));
  if (content.empty()) return Corrupt("{}.content: empty", path);
  if (!added_contents_.insert(content).second) return Corrupt("{}: \"{}\" twice", path, content);
  token.content = content;
  RETURN_IF_ERROR(CheckOff(object, path, "single_word"));
  ASSIGN_OR_RETURN(token.lstrip, GetBool(object, path, "lstrip", false));
  ASSIGN_OR_RETURN(token.rstrip, GetBool(object, path, "rstrip", false));
  ASSIGN_OR_RETURN(token.special, GetBool(object, path, "special", false));
  ASSIGN_OR_RETURN(token.normalized, GetBool(object, path, "normalized", !token.special));
  return token;
}

// Gives the token the id that HF gives it on loading, which is not always the one declared.
Status Reader::PlaceAddedToken(AddedToken token, int32_t declared_id, std::string_view path) {
  const auto known = vocabulary_.find(token.content);
  token.id = known != vocabulary_.end() ? known->second : next_added_id_++;
  if (token.id != declared_id) {
    return Unsupported("{}: \"{}\" declares id {}, HF would load it as {}", path, token.content,
                       declared_id, token.id);
  }
  std::string& bytes = TokenAt(token.id);
  const bool is_new = known == vocabulary_.end();
  if (is_new && is_taken_[static_cast<size_t>(token.id)]) {
    return Corrupt("{}: id {} is taken", path, token.id);
  }
  is_taken_[static_cast<size_t>(token.id)] = true;
  if (token.normalized && spec_.normalize_nfc) {
    std::string normalized = NormalizeNfc(token.content);
    // HF then forgets that the token is special.
    if (normalized != token.content && token.special) {
      return Unsupported("{}: a special token that the normalizer changes", path);
    }
    token.content = std::move(normalized);
  }
  if (!BytesOfSymbols(token.content, &bytes)) bytes = token.content;
  spec_.added_tokens.push_back(std::move(token));
  return Status();
}

Status Reader::ReadPostProcessor(const element& value, const std::string& path) {
  ASSIGN_OR_RETURN(const object processor, AsObject(value, path));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(processor, path, "type"));
  if (type == "ByteLevel") {  // Concerns offsets only.
    return CheckKeys(processor, path, {"type", "add_prefix_space", "trim_offsets", "use_regex"});
  }
  if (type == "TemplateProcessing") return ReadTemplate(processor, path);
  if (type != "Sequence" || path != "post_processor") {
    return Unsupported("{}: {} is not built (ByteLevel and TemplateProcessing are)", path, type);
  }
  RETURN_IF_ERROR(CheckKeys(processor, path, {"type", "processors"}));
  ASSIGN_OR_RETURN(const array steps, GetArray(processor, path, "processors"));
  for (const element step : steps) {
    RETURN_IF_ERROR(ReadPostProcessor(step, "post_processor.processors"));
  }
  return Status();
}

// Only the template of a single text counts: pairs are never encoded.
Status Reader::ReadTemplate(const object& processor, std::string_view path) {
  RETURN_IF_ERROR(CheckKeys(processor, path, {"type", "single", "pair", "special_tokens"}));
  if (has_template_) return Unsupported("{}: a second TemplateProcessing is not built", path);
  has_template_ = true;
  ASSIGN_OR_RETURN(const array pieces, GetArray(processor, path, "single"));
  bool has_text = false;
  for (const element value : pieces) {
    ASSIGN_OR_RETURN(const object piece, AsObject(value, fmt::format("{}.single", path)));
    if (const auto token = Find(piece, "SpecialToken")) {
      RETURN_IF_ERROR(
          AppendSpecialToken(*token, processor, path, has_text ? &spec_.suffix : &spec_.prefix));
      continue;
    }
    const std::optional<element> sequence = Find(piece, "Sequence");
    if (!sequence.has_value()) return Corrupt("{}.single: an unknown piece", path);
    ASSIGN_OR_RETURN(const object text, AsObject(*sequence, fmt::format("{}.single", path)));
    ASSIGN_OR_RETURN(const std::string_view id, GetString(text, path, "id"));
    if (id != "A" || has_text) return Unsupported("{}.single: expected Sequence A once", path);
    has_text = true;
  }
  if (!has_text) return Unsupported("{}.single: expected Sequence A once", path);
  return Status();
}

Status Reader::AppendSpecialToken(const element& piece, const object& processor,
                                  std::string_view path, std::vector<int32_t>* ids) {
  ASSIGN_OR_RETURN(const object token, AsObject(piece, fmt::format("{}.single", path)));
  ASSIGN_OR_RETURN(const std::string_view name, GetString(token, path, "id"));
  const std::string entry_path = fmt::format("{}.special_tokens[\"{}\"]", path, name);
  const std::optional<element> table = Find(processor, "special_tokens");
  if (!table.has_value()) return Corrupt("{}: missing", entry_path);
  ASSIGN_OR_RETURN(const object entries, AsObject(*table, fmt::format("{}.special_tokens", path)));
  const std::optional<element> found = Find(entries, name);
  if (!found.has_value()) return Corrupt("{}: missing", entry_path);
  ASSIGN_OR_RETURN(const object entry, AsObject(*found, entry_path));
  ASSIGN_OR_RETURN(const array values, GetArray(entry, entry_path, "ids"));
  for (const element value : values) {
    ASSIGN_OR_RETURN(const int32_t id, AsId(value, entry_path));
    if (static_cast<size_t>(id) >= is_taken_.size() || !is_taken_[static_cast<size_t>(id)]) {
      return Corrupt("{}: id {} is no token", entry_path, id);
    }
    ids->push_back(id);
  }
  return Status();
}

Status Reader::CheckDecoder(const element& value) {
  ASSIGN_OR_RETURN(const object decoder, AsObject(value, "decoder"));
  ASSIGN_OR_RETURN(const std::string_view type, GetString(decoder, "decoder", "type"));
  if (type != "ByteLevel") return Unsupported("decoder: {} is not built (ByteLevel is)", type);
  // None of these says anything to a decoder.
  return CheckKeys(decoder, "decoder", {"type", "add_prefix_space", "trim_offsets", "use_regex"});
}

}  // namespace

Result<TokenizerSpec> ParseTokenizerJson(std::string_view json) {
  simdjson::dom::parser parser;
  element root;
  const simdjson::padded_string padded(json);
  if (const auto error = parser.parse(padded).get(root); error != simdjson::SUCCESS) {
    return Corrupt("tokenizer.json: {}", simdjson::error_message(error));
  }
  return Reader().Read(root);
}

}  // namespace octavo
