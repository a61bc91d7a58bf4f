// The first byte chooses. 'J': the rest is a tokenizer.json; what parses must encode and decode a
// fixed text. 'P': the rest is an Oniguruma expression up to the first NUL and a text to split; the
// parts must make up the text. 'D': each byte behind it is an id for the decoders, which must
// agree. 'N': a text for a small tokenizer with NFC. Anything else: a text for the same one without
// a normalizer, which must come back.

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/text/byte_level.h"
#include "octavo/text/split_pattern.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/utf8.h"

namespace {

constexpr std::string_view kFixedText = "He said:  it's 12\u00e9 <end>\n\xFF tool";

// All bytes, a few merges and added tokens, Qwen's expression.
octavo::Tokenizer SmallTokenizer(std::string_view normalizer) {
  std::string vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    octavo::AppendUtf8(octavo::SymbolOfByte(static_cast<uint8_t>(byte)), &symbol);
    if (symbol == "\"" || symbol == "\\") symbol.insert(0, "\\");
    vocabulary += fmt::format("\"{}\":{},", symbol, byte);
  }
  auto tokenizer = octavo::Tokenizer::Parse(fmt::format(
      R"({{"version":"1.0","added_tokens":[{{"id":260,"content":"<end>","normalized":false,)"
      R"("special":true}},{{"id":261,"content":"tool","normalized":true}}],"normalizer":{},)"
      R"("pre_tokenizer":{{"type":"Sequence","pretokenizers":[{{"type":"Split","pattern":)"
      R"({{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{{L}}\\p{{N}}]?\\p{{L}}+|\\p{{N}}|)"
      R"( ?[^\\s\\p{{L}}\\p{{N}}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"}},)"
      R"("behavior":"Isolated"}},{{"type":"ByteLevel","add_prefix_space":false,)"
      R"("use_regex":false}}]}},"decoder":{{"type":"ByteLevel"}},"model":{{"type":"BPE",)"
      R"("vocab":{{{}"aa":256,"aaaa":257,"\u0120a":258,"he":259}},)"
      R"("merges":["a a","aa aa","\u0120 a","h e"]}}}})",
      normalizer, vocabulary));
  CHECK(tokenizer.has_value());
  return *std::move(tokenizer);
}

void CheckDecoders(const octavo::Tokenizer& tokenizer, const std::vector<int32_t>& ids) {
  for (const bool skip : {false, true}) {
    octavo::IncrementalDecoder decoder(&tokenizer, skip);
    size_t num_seen = 0;
    for (const int32_t id : ids) {
      decoder.Append(id);
      CHECK(decoder.text().size() >= num_seen);
      num_seen = decoder.text().size();
    }
    const std::string whole = tokenizer.Decode(ids, skip);
    CHECK(octavo::IsValidUtf8(whole));
    CHECK(decoder.Finished() == whole);
    CHECK(whole.starts_with(decoder.text()));
  }
}

std::vector<int32_t> CheckedEncode(const octavo::Tokenizer& tokenizer, std::string_view text) {
  std::vector<int32_t> ids = tokenizer.Encode(text);
  for (const int32_t id : ids) {
    CHECK(id >= 0);
    CHECK(id < tokenizer.vocab_size());
  }
  CheckDecoders(tokenizer, ids);
  return ids;
}

void FuzzJson(std::string_view json) {
  const auto tokenizer = octavo::Tokenizer::Parse(json);
  if (!tokenizer.has_value()) {
    CHECK(!tokenizer.error().message().empty());
    return;
  }
  CheckedEncode(*tokenizer, kFixedText);
}

void FuzzPattern(std::string_view input) {
  const size_t nul = input.find('\0');
  // Three repeats in a row are cubic in the text: short ones show as much.
  const auto pattern = octavo::SplitPattern::Compile(input.substr(0, nul).substr(0, 64));
  if (!pattern.has_value()) return;
  const std::string text =
      octavo::ReplaceInvalidUtf8(nul == input.npos ? kFixedText : input.substr(nul + 1, 64));
  const std::vector<std::string_view> pieces = {text};
  std::vector<std::string_view> parts;
  pattern->Split(pieces, &parts);
  std::string joined;
  for (const std::string_view part : parts) {
    CHECK(!part.empty());
    CHECK(octavo::IsValidUtf8(part));
    joined += part;
  }
  CHECK(joined == text);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  static const octavo::Tokenizer plain = SmallTokenizer("null");
  static const octavo::Tokenizer nfc = SmallTokenizer(R"({"type":"NFC"})");
  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  const char choice = input.empty() ? '\0' : input.front();
  const std::string_view rest = input.substr(input.empty() ? 0 : 1);
  if (choice == 'J') {
    FuzzJson(rest);
  } else if (choice == 'P') {
    FuzzPattern(rest);
  } else if (choice == 'D') {
    std::vector<int32_t> ids;
    for (const char c : rest) ids.push_back(static_cast<uint8_t>(c) * 265 / 255 - 1);
    CheckDecoders(plain, ids);
  } else if (choice == 'N') {
    CheckedEncode(nfc, rest);
  } else {
    const std::vector<int32_t> ids = CheckedEncode(plain, input);
    CHECK(plain.Decode(ids, /*skip_special_tokens=*/false) == octavo::ReplaceInvalidUtf8(input));
  }
  return 0;
}
