// The first byte chooses. 'J': the rest is a tokenizer.json; what parses must encode and decode a
// fixed text. 'P': the rest is an Oniguruma expression up to the first NUL and a text to split; the
// parts must make up the text. 'D': each byte behind it is an id for the decoders, which must
// agree. 'N': a text for a small tokenizer with NFC. 'L' and 'S': a text for one that is built as
// Llama-3's or DeepSeek-V2's, which must come back. 'C': a tokenizer_config.json. 'T': a chat
// template up to the first NUL and the messages to render with it. Anything else: a text for the
// small one without a normalizer, which must come back.

#include <fmt/format.h>

#include <cstddef>
#include <cstdint>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/text/byte_level.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/split_pattern.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/tokenizer_config.h"
#include "octavo/text/utf8.h"

namespace {

constexpr std::string_view kFixedText = "He said:  it's 12\u00e9 <end>\n\xFF tool";

// Pre-tokenizer steps, as they stand in JSON.
constexpr std::string_view kQwen =
    R"({"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+)"
    R"(|\\p{N}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)"
    R"("behavior":"Isolated"})";
constexpr std::string_view kLlama3 =
    R"({"type":"Split","pattern":{"Regex":"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+)"
    R"(|\\p{N}{1,3}| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"},)"
    R"("behavior":"Isolated"})";
constexpr std::string_view kDeepSeek =
    R"({"type":"Split","pattern":{"Regex":"[\r\n]"},"behavior":"Isolated"},)"
    R"({"type":"Split","pattern":{"Regex":"\\s?[A-Za-z\u00b5\u00c0-\u00d6]+"},"behavior":"Isolated"},)"
    R"({"type":"Split","pattern":{"Regex":"\\s+$"},"behavior":"Isolated"},)"
    R"({"type":"Split","pattern":{"Regex":"[\u4e00-\u9fa5\u0800-\u4e00]+"},"behavior":"Isolated"},)"
    R"({"type":"Digits","individual_digits":true})";

// All bytes, a few merges and added tokens.
octavo::Tokenizer SmallTokenizer(std::string_view normalizer, std::string_view steps) {
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
      R"("pre_tokenizer":{{"type":"Sequence","pretokenizers":[{},{{"type":"ByteLevel",)"
      R"("add_prefix_space":false,"use_regex":false}}]}},"decoder":{{"type":"ByteLevel"}},)"
      R"("model":{{"type":"BPE","ignore_merges":{},"vocab":{{{}"aa":256,"aaaa":257,"\u0120a":258,"he":259}},)"
      R"("merges":["a a","aa aa","\u0120 a","h e"]}}}})",
      normalizer, steps, steps == kLlama3, vocabulary));
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

void FuzzTemplate(std::string_view input) {
  const size_t nul = input.find('\0');
  const auto parsed = octavo::ChatTemplate::Parse(input.substr(0, nul), {});
  if (!parsed.has_value()) {
    CHECK(!parsed.error().message().empty());
    return;
  }
  constexpr std::string_view kMessages =
      R"([{"role":"system","content":" s "},{"role":"user","content":"\u00e9<think>"},)"
      R"({"role":"assistant","content":null,"tool_calls":[{"function":{"name":"f"}}]}])";
  const auto text = parsed->Render(
      {.messages = nul == input.npos ? kMessages : input.substr(nul + 1), .now = std::tm()});
  if (text.has_value()) CHECK(octavo::IsValidUtf8(*text));
}

void FuzzConfig(std::string_view json) {
  const auto config = octavo::ParseTokenizerConfig(json);
  if (!config.has_value()) CHECK(!config.error().message().empty());
}

void CheckRoundTrip(const octavo::Tokenizer& tokenizer, std::string_view text) {
  const std::vector<int32_t> ids = CheckedEncode(tokenizer, text);
  CHECK(tokenizer.Decode(ids, /*skip_special_tokens=*/false) == octavo::ReplaceInvalidUtf8(text));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  static const octavo::Tokenizer plain = SmallTokenizer("null", kQwen);
  static const octavo::Tokenizer nfc = SmallTokenizer(R"({"type":"NFC"})", kQwen);
  static const octavo::Tokenizer llama3 = SmallTokenizer("null", kLlama3);
  static const octavo::Tokenizer deepseek = SmallTokenizer("null", kDeepSeek);
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
  } else if (choice == 'L') {
    CheckRoundTrip(llama3, rest);
  } else if (choice == 'S') {
    CheckRoundTrip(deepseek, rest);
  } else if (choice == 'C') {
    FuzzConfig(rest);
  } else if (choice == 'T') {
    FuzzTemplate(rest);
  } else {
    CheckRoundTrip(plain, input);
  }
  return 0;
}
