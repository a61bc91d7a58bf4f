// Method: a tokenizer.json built here from all 256 bytes, three merges and a few added tokens,
// small enough to know every id by hand; then one edit of it for each error and option. Equality
// with HF is in hf_parity_test.cc.

#include "octavo/text/tokenizer.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/byte_level.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

using Ids = std::vector<int32_t>;

// Byte b has id b; then "he" 256, "ll" 257, "hell" 258; then added tokens from 259 on.
constexpr int32_t kHe = 256;
constexpr int32_t kHell = 258;
constexpr int32_t kEnd = 259;
constexpr int32_t kTool = 260;

std::string BaseVocabulary() {
  std::string vocabulary;
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendUtf8(SymbolOfByte(static_cast<uint8_t>(byte)), &symbol);
    if (symbol == "\"" || symbol == "\\") symbol.insert(0, "\\");
    vocabulary += fmt::format("\"{}\":{},", symbol, byte);
  }
  return vocabulary + R"("he":256,"ll":257,"hell":258)";
}

// The parts of the file, to be changed one at a time.
struct Json {
  std::string head = R"("version":"1.0","truncation":null,"padding":null)";
  std::string added_tokens =
      R"({"id":259,"content":"<end>","single_word":false,"lstrip":false,"rstrip":false,)"
      R"("normalized":false,"special":true},)"
      R"({"id":260,"content":"<tool>","normalized":false,"special":false})";
  std::string normalizer = R"({"type":"NFC"})";
  std::string pre_tokenizer =
      R"({"type":"Sequence","pretokenizers":[{"type":"Split","pattern":{"Regex":" ?\\p{L}+|\\s+"},)"
      R"("behavior":"Isolated","invert":false},)"
      R"({"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":false}]})";
  std::string post_processor = "null";
  std::string decoder = R"({"type":"ByteLevel"})";
  std::string model = R"("type":"BPE","dropout":null,"unk_token":null,"fuse_unk":false)";
  std::string vocabulary = BaseVocabulary();
  std::string merges = R"(["h","e"],["l","l"],["he","ll"])";

  std::string Text() const {
    return fmt::format(
        R"({{{},"added_tokens":[{}],"normalizer":{},"pre_tokenizer":{},"post_processor":{},)"
        R"("decoder":{},"model":{{{},"vocab":{{{}}},"merges":[{}]}}}})",
        head, added_tokens, normalizer, pre_tokenizer, post_processor, decoder, model, vocabulary,
        merges);
  }
};

Tokenizer ParseOrDie(const Json& json) {
  Result<Tokenizer> tokenizer = Tokenizer::Parse(json.Text());
  EXPECT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
  return *std::move(tokenizer);
}

void ExpectError(const std::string& text, StatusCode code, const std::string& message) {
  const Result<Tokenizer> tokenizer = Tokenizer::Parse(text);
  ASSERT_FALSE(tokenizer.has_value()) << message;
  EXPECT_EQ(tokenizer.error().code(), code) << tokenizer.error().message();
  EXPECT_THAT(tokenizer.error().message(), HasSubstr(message));
}

// Sets one part of the file and expects this error.
void ExpectError(std::string Json::* part, std::string value, StatusCode code,
                 const std::string& message) {
  Json json;
  json.*part = std::move(value);
  ExpectError(json.Text(), code, message);
}

constexpr StatusCode kCorrupt = StatusCode::kCorrupt;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;

TEST(Tokenizer, EncodesByRank) {
  const Tokenizer tokenizer = ParseOrDie({});
  EXPECT_THAT(tokenizer.Encode("hello"), ElementsAre(kHell, 'o'));
  EXPECT_THAT(tokenizer.Encode("he ll"), ElementsAre(kHe, ' ', 257));
  EXPECT_THAT(tokenizer.Encode(""), ElementsAre());
  EXPECT_THAT(tokenizer.Encode(std::string_view("\0h", 2)), ElementsAre(0, 'h'));
  EXPECT_EQ(tokenizer.vocab_size(), 261);
}

TEST(Tokenizer, NormalizesBetweenAddedTokens) {
  const Tokenizer tokenizer = ParseOrDie({});
  EXPECT_THAT(tokenizer.Encode("e\u0301"), ElementsAre(0xC3, 0xA9));
  // The token parts the mark from its letter.
  EXPECT_THAT(tokenizer.Encode("e<end>\u0301"), ElementsAre('e', kEnd, 0xCC, 0x81));
  Json json;
  json.normalizer = "null";
  EXPECT_THAT(ParseOrDie(json).Encode("e\u0301"), ElementsAre('e', 0xCC, 0x81));
}

TEST(Tokenizer, ReadsMalformedBytesAsReplacementCharacters) {
  const Tokenizer tokenizer = ParseOrDie({});
  EXPECT_EQ(tokenizer.Encode("a\xFF\xE2\x82"), tokenizer.Encode("a\uFFFD\uFFFD"));
  EXPECT_EQ(tokenizer.Encode("\xED\xA0\x80"), tokenizer.Encode("\uFFFD\uFFFD\uFFFD"));
}

TEST(Tokenizer, FindsAddedTokensInText) {
  const Tokenizer tokenizer = ParseOrDie({});
  EXPECT_THAT(tokenizer.Encode("he<end><tool>l<end"),
              ElementsAre(kHe, kEnd, kTool, 'l', '<', 'e', 'n', 'd'));
  EXPECT_TRUE(tokenizer.IsSpecial(kEnd));
  EXPECT_FALSE(tokenizer.IsSpecial(kTool));
  EXPECT_FALSE(tokenizer.IsSpecial(kHe));
  EXPECT_FALSE(tokenizer.IsSpecial(-1));
  EXPECT_FALSE(tokenizer.IsSpecial(261));
}

TEST(Tokenizer, StripsSpaceAroundTokensThatAskForIt) {
  Json json;
  json.added_tokens = R"({"id":259,"content":"<l>","lstrip":true,"normalized":false},)"
                      R"({"id":260,"content":"<r>","rstrip":true,"normalized":false})";
  const Tokenizer tokenizer = ParseOrDie(json);
  EXPECT_THAT(tokenizer.Encode("a \u3000<l> b"), ElementsAre('a', 259, ' ', 'b'));
  EXPECT_THAT(tokenizer.Encode("a <r> \n\u0085b"), ElementsAre('a', ' ', 260, 'b'));
  EXPECT_THAT(tokenizer.Encode("<r> <l>"), ElementsAre(260, 259));
}

TEST(Tokenizer, PrefersTheLongestAddedToken) {
  Json json;
  json.added_tokens = R"({"id":259,"content":"<a","normalized":false},)"
                      R"({"id":260,"content":"<a>>","normalized":false})";
  const Tokenizer tokenizer = ParseOrDie(json);
  EXPECT_THAT(tokenizer.Encode("<a>><a>"), ElementsAre(260, 259, '>'));
}

TEST(Tokenizer, AddsTheSpecialTokensOfTheTemplate) {
  Json json;
  json.post_processor =
      R"({"type":"Sequence","processors":[{"type":"ByteLevel","trim_offsets":false},)"
      R"({"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"B","type_id":0}},)"
      R"({"Sequence":{"id":"A","type_id":0}},{"SpecialToken":{"id":"E","type_id":0}}],"pair":[],)"
      R"("special_tokens":{"B":{"id":"B","ids":[260,259],"tokens":["x","y"]},)"
      R"("E":{"id":"E","ids":[259],"tokens":["<end>"]}}}]})";
  const Tokenizer tokenizer = ParseOrDie(json);
  EXPECT_THAT(tokenizer.Encode("h"), ElementsAre(260, 259, 'h', 259));
  EXPECT_THAT(tokenizer.Encode(""), ElementsAre(260, 259, 259));
  EXPECT_THAT(tokenizer.Encode("h", /*add_special_tokens=*/false), ElementsAre('h'));
}

TEST(Tokenizer, TakesWholeWordsWhenMergesAreIgnored) {
  Json json;
  json.vocabulary += R"(,"oh":259)";
  json.added_tokens.clear();
  EXPECT_THAT(ParseOrDie(json).Encode("oh"), ElementsAre('o', 'h'));
  json.model += R"(,"ignore_merges":true)";
  EXPECT_THAT(ParseOrDie(json).Encode("oh"), ElementsAre(259));
  EXPECT_THAT(ParseOrDie(json).Encode("ohh"), ElementsAre('o', 'h', 'h'));
}

TEST(Tokenizer, ReadsMergesAsTextOrAsPairs) {
  Json json;
  json.merges = R"("#version: 0.2","h e","l l","he ll")";
  EXPECT_THAT(ParseOrDie(json).Encode("hello"), ElementsAre(kHell, 'o'));
}

TEST(Tokenizer, TakesAWholeStretchAsOneWordWithoutASplit) {
  Json json;
  json.pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})";
  EXPECT_THAT(ParseOrDie(json).Encode("h e"), ElementsAre('h', ' ', 'e'));
}

// With merges that only a word which was not split can use.
TEST(Tokenizer, SplitsAsGpt2DoesWhenByteLevelIsAskedTo) {
  Json json;
  json.added_tokens.clear();
  json.vocabulary += R"(,"a1":259,"'s":260,"s'":261)";
  json.merges += R"(,["a","1"],["s","'"],["'","s"])";
  json.pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false,"use_regex":false})";
  EXPECT_THAT(ParseOrDie(json).Encode("a1s's"), ElementsAre(259, 261, 's'));
  json.pre_tokenizer = R"({"type":"ByteLevel","add_prefix_space":false})";
  EXPECT_THAT(ParseOrDie(json).Encode("a1s's"), ElementsAre('a', '1', 's', 260));
}

TEST(Tokenizer, SplitsDigitsOneByOneOrInRuns) {
  Json json;
  json.added_tokens.clear();
  json.vocabulary += R"(,"11":259,"a1":260)";
  json.merges += R"(,["1","1"],["a","1"])";
  const auto with_digits = [&json](const std::string& fields) {
    json.pre_tokenizer = R"({"type":"Sequence","pretokenizers":[{"type":"Digits")" + fields +
                         R"(},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
    return ParseOrDie(json).Encode("a11");
  };
  EXPECT_THAT(with_digits(""), ElementsAre('a', 259));
  EXPECT_THAT(with_digits(R"(,"individual_digits":false)"), ElementsAre('a', 259));
  EXPECT_THAT(with_digits(R"(,"individual_digits":true)"), ElementsAre('a', '1', '1'));
}

TEST(Tokenizer, DecodesBytesAndSkipsSpecialTokens) {
  const Tokenizer tokenizer = ParseOrDie({});
  const Ids ids = {kHell, kEnd, 'o', kTool};
  EXPECT_EQ(tokenizer.Decode(ids, /*skip_special_tokens=*/false), "hell<end>o<tool>");
  EXPECT_EQ(tokenizer.Decode(ids, /*skip_special_tokens=*/true), "hello<tool>");
  EXPECT_EQ(tokenizer.Decode({}, false), "");
}

TEST(Tokenizer, DecodesBrokenSequencesLossily) {
  const Tokenizer tokenizer = ParseOrDie({});
  EXPECT_EQ(tokenizer.Decode(Ids{0xE2, 0x82, 0xAC}, false), "\u20AC");
  EXPECT_EQ(tokenizer.Decode(Ids{0xE2, 0x82, 'x', 0xFF}, false), "\uFFFDx\uFFFD");
}

TEST(Tokenizer, GivesNothingForIdsBeyondTheVocabulary) {
  const Tokenizer tokenizer = ParseOrDie({});
  for (const int32_t id : {-1, 261, 1 << 30, INT32_MIN}) {
    EXPECT_EQ(tokenizer.TokenBytes(id, false), "") << id;
    EXPECT_EQ(tokenizer.Decode(Ids{'a', id, 'b'}, false), "ab") << id;
  }
}

TEST(Tokenizer, GivesTheBytesOfEachToken) {
  const Tokenizer tokenizer = ParseOrDie({});
  for (int32_t byte = 0; byte < 256; ++byte) {
    EXPECT_EQ(tokenizer.TokenBytes(byte, true), std::string(1, static_cast<char>(byte)));
  }
  EXPECT_EQ(tokenizer.TokenBytes(kHell, true), "hell");
  EXPECT_EQ(tokenizer.TokenBytes(kEnd, false), "<end>");
  EXPECT_EQ(tokenizer.TokenBytes(kEnd, true), "");
  EXPECT_EQ(tokenizer.TokenBytes(kTool, true), "<tool>");
}

TEST(Tokenizer, GivesNothingForIdsInAGap) {
  Json json;
  json.vocabulary += R"(,"oh":300)";
  json.added_tokens.clear();
  const Tokenizer tokenizer = ParseOrDie(json);
  EXPECT_EQ(tokenizer.vocab_size(), 301);
  EXPECT_EQ(tokenizer.TokenBytes(299, false), "");
  EXPECT_EQ(tokenizer.TokenBytes(300, false), "oh");
}

TEST(IncrementalDecoder, HoldsBackAnUnfinishedSequence) {
  const Tokenizer tokenizer = ParseOrDie({});
  IncrementalDecoder decoder(&tokenizer, /*skip_special_tokens=*/true);
  EXPECT_EQ(decoder.Finished(), "");
  for (const int32_t byte : {0xF0, 0x9F, 0x98}) {
    decoder.Append(byte);
    EXPECT_EQ(decoder.text(), "");
    EXPECT_EQ(decoder.Finished(), "\uFFFD");
  }
  decoder.Append(0x80);
  EXPECT_EQ(decoder.text(), "\U0001F600");
  EXPECT_EQ(decoder.Finished(), "\U0001F600");
}

TEST(IncrementalDecoder, GivesUpOnASequenceThatBreaksOff) {
  const Tokenizer tokenizer = ParseOrDie({});
  IncrementalDecoder decoder(&tokenizer, /*skip_special_tokens=*/true);
  decoder.Append(0xE2);
  decoder.Append(0x82);
  decoder.Append(kEnd);  // Skipped: the sequence goes on behind it.
  EXPECT_EQ(decoder.text(), "");
  decoder.Append('x');
  EXPECT_EQ(decoder.text(), "\uFFFDx");
  decoder.Append(0x80);  // Starts nothing: replaced at once.
  EXPECT_EQ(decoder.text(), "\uFFFDx\uFFFD");
  EXPECT_EQ(decoder.Finished(), decoder.text());
  decoder.Append(-5);
  EXPECT_EQ(decoder.text(), "\uFFFDx\uFFFD");
}

TEST(TokenizerLoad, NamesThePath) {
  const Result<Tokenizer> missing = Tokenizer::Load("tests/data/text/absent.json");
  ASSERT_FALSE(missing.has_value());
  EXPECT_EQ(missing.error().code(), StatusCode::kNotFound);
  EXPECT_THAT(missing.error().message(), HasSubstr("absent.json"));

  const Result<Tokenizer> binary = Tokenizer::Load("tests/data/text/lines.bin.gz");
  ASSERT_FALSE(binary.has_value());
  EXPECT_EQ(binary.error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(binary.error().message(), HasSubstr("lines.bin.gz"));
}

TEST(TokenizerParse, RefusesWhatIsNoTokenizerFile) {
  ExpectError("", kCorrupt, "tokenizer.json: ");
  ExpectError("{", kCorrupt, "tokenizer.json: ");
  ExpectError("[]", kCorrupt, "tokenizer.json: expected an object");
  ExpectError("{}", kCorrupt, "version: missing");
  ExpectError(&Json::head, R"("version":"2.0")", kUnsupported, "version: expected 1.0, got 2.0");
  ExpectError(&Json::head, R"("version":1)", kCorrupt, "version: expected a string");
  ExpectError(&Json::head, R"("version":"1.0","truncation":{"max_length":5})", kUnsupported,
              "truncation: expected null");
  ExpectError(&Json::head, R"("version":"1.0","padding":{})", kUnsupported,
              "padding: expected null");
  ExpectError(&Json::head, R"("version":"1.0","chat":1)", kUnsupported, "tokenizer.json.chat");
}

TEST(TokenizerParse, RefusesOtherNormalizers) {
  ExpectError(&Json::normalizer, R"({"type":"NFKC"})", kUnsupported, "normalizer: NFKC");
  ExpectError(&Json::normalizer, R"({"type":"NFC","form":1})", kUnsupported, "normalizer.form");
  ExpectError(&Json::normalizer, R"({"type":"Sequence","normalizers":[{"type":"Lowercase"}]})",
              kUnsupported, "normalizer.normalizers: Lowercase");
  ExpectError(&Json::normalizer, R"({"type":"Sequence"})", kCorrupt,
              "normalizer.normalizers: missing");
  ExpectError(&Json::normalizer, R"("NFC")", kCorrupt, "normalizer: expected an object");
  ExpectError(&Json::normalizer, "{}", kCorrupt, "normalizer.type: missing");
  Json json;
  json.normalizer = R"({"type":"Sequence","normalizers":[{"type":"NFC"}]})";
  EXPECT_THAT(ParseOrDie(json).Encode("e\u0301"), ElementsAre(0xC3, 0xA9));
}

TEST(TokenizerParse, RefusesOtherPreTokenizers) {
  const auto expect = [](const std::string& value, StatusCode code, const std::string& message) {
    ExpectError(&Json::pre_tokenizer, value, code, message);
  };
  const auto split = [](const std::string& fields) {
    return R"({"type":"Sequence","pretokenizers":[{"type":"Split",)" + fields +
           R"(},{"type":"ByteLevel","add_prefix_space":false,"use_regex":false}]})";
  };
  expect("null", kUnsupported, "pre_tokenizer: expected one, got null");
  expect(R"({"type":"Whitespace"})", kUnsupported, "pre_tokenizer: Whitespace");
  expect(R"({"type":"Sequence","pretokenizers":[]})", kUnsupported, "expected ByteLevel");
  expect(R"({"type":"Sequence","pretokenizers":[{"type":"ByteLevel","add_prefix_space":false,)"
         R"("use_regex":false},{"type":"Digits"}]})",
         kUnsupported, "a step behind ByteLevel");
  expect(R"({"type":"ByteLevel","add_prefix_space":true,"use_regex":false})", kUnsupported,
         "add_prefix_space: true is not built");
  expect(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":1}]})",
         kCorrupt, "Digits.individual_digits: expected true or false");
  expect(R"({"type":"Sequence","pretokenizers":[{"type":"Digits","radix":10}]})", kUnsupported,
         "Digits.radix");
  expect(split(R"("pattern":{"Regex":"a"},"behavior":"Removed","invert":false)"), kUnsupported,
         "behavior: expected Isolated, got Removed");
  expect(split(R"("pattern":{"Regex":"a"},"behavior":"Isolated","invert":true)"), kUnsupported,
         "invert: true is not built");
  expect(split(R"("pattern":{"String":"a"},"behavior":"Isolated")"), kUnsupported,
         "pattern.String");
  expect(split(R"("behavior":"Isolated")"), kCorrupt, "pattern: missing");
  expect(split(R"("pattern":{"Regex":"\\w+"},"behavior":"Isolated")"), kUnsupported,
         "the escape \\w");
}

TEST(TokenizerParse, RefusesOtherModels) {
  const auto expect = [](const std::string& value, StatusCode code, const std::string& message) {
    ExpectError(&Json::model, value, code, message);
  };
  expect(R"("type":"Unigram")", kUnsupported, "model: Unigram");
  expect(R"("type":"BPE","dropout":0.1)", kUnsupported, "model.dropout: 0.1");
  expect(R"("type":"BPE","unk_token":"<unk>")", kUnsupported, "model.unk_token: \"<unk>\"");
  expect(R"("type":"BPE","continuing_subword_prefix":"##")", kUnsupported,
         "model.continuing_subword_prefix");
  expect(R"("type":"BPE","end_of_word_suffix":"</w>")", kUnsupported, "model.end_of_word_suffix");
  expect(R"("type":"BPE","byte_fallback":true)", kUnsupported, "model.byte_fallback");
  expect(R"("type":"BPE","speed":1)", kUnsupported, "model.speed");
  expect(R"("type":"BPE","ignore_merges":1)", kCorrupt, "model.ignore_merges: expected true");
  Json json;  // Written as nothing at all, these are fine.
  json.model = R"("type":"BPE","dropout":0.0,"end_of_word_suffix":"","fuse_unk":true)";
  EXPECT_THAT(ParseOrDie(json).Encode("he"), ElementsAre(kHe));
}

TEST(TokenizerParse, RefusesADamagedVocabulary) {
  const std::string base = BaseVocabulary();
  ExpectError(&Json::vocabulary, base + R"(,"x":5)", kCorrupt, "model.vocab[\"x\"]: twice");
  ExpectError(&Json::vocabulary, base + R"(,"xx":5)", kCorrupt, "id 5 is taken");
  ExpectError(&Json::vocabulary, base + R"(,"xx":-1)", kCorrupt, "expected an id up to");
  ExpectError(&Json::vocabulary, base + R"(,"xx":16777216)", kCorrupt, "got 16777216");
  ExpectError(&Json::vocabulary, base + R"(,"xx":"5")", kCorrupt, "expected an id");
  ExpectError(&Json::merges, R"(["h","e","l"])", kCorrupt, "model.merges[0]: expected two symbols");
  ExpectError(&Json::merges, R"("h e","he")", kCorrupt, "model.merges[1]: expected two symbols");
  ExpectError(&Json::merges, R"("h  e")", kCorrupt, "model.merges[0]: expected two symbols");
  ExpectError(&Json::merges, R"(["h",5])", kCorrupt, "model.merges[0]: expected strings");
  ExpectError(&Json::merges, "7", kCorrupt, "model.merges[0]: expected");
  ExpectError(&Json::merges, R"(["h","zz"])", kCorrupt, "\"zz\" is not in model.vocab");
  ExpectError(&Json::merges, R"(["h","h"])", kCorrupt, "\"hh\" is not in model.vocab");
}

TEST(TokenizerParse, RefusesAddedTokensThatHfWouldNotLoadAsWritten) {
  const auto expect = [](const std::string& value, StatusCode code, const std::string& message) {
    ExpectError(&Json::added_tokens, value, code, message);
  };
  expect(R"({"id":300,"content":"<a>"})", kUnsupported, "declares id 300, HF would load it as 259");
  expect(R"({"id":259,"content":"he"})", kUnsupported, "declares id 259, HF would load it as 256");
  expect(R"({"content":"<a>"})", kCorrupt, "added_tokens[0].id: missing");
  expect(R"({"id":259})", kCorrupt, "added_tokens[0].content: missing");
  expect(R"({"id":259,"content":""})", kCorrupt, "content: empty");
  expect(R"({"id":259,"content":"<a>","single_word":true})", kUnsupported,
         "single_word: true is not built");
  expect(R"({"id":259,"content":"<a>","rank":1})", kUnsupported, "added_tokens[0].rank");
  expect(R"({"id":259,"content":"<a>"},{"id":260,"content":"<a>","special":true})", kCorrupt,
         "\"<a>\" twice");
  expect(R"({"id":259,"content":"e\u0301x"},{"id":260,"content":"\u00e9x"})", kCorrupt,
         "twice after normalization");
  expect(R"({"id":259,"content":"e\u0301x","normalized":true,"special":true})", kUnsupported,
         "a special token that the normalizer changes");
  expect("5", kCorrupt, "added_tokens[0]: expected an object");
}

TEST(TokenizerParse, RefusesAnAddedTokenOnTheIdOfAnother) {
  Json json;
  json.vocabulary += R"(,"oh":260)";  // 260 tokens, so that HF's next id is 260 as well.
  json.added_tokens = R"({"id":260,"content":"<a>"})";
  ExpectError(json.Text(), kCorrupt, "id 260 is taken");
}

TEST(TokenizerParse, RefusesOtherPostProcessors) {
  const auto expect = [](const std::string& value, StatusCode code, const std::string& message) {
    ExpectError(&Json::post_processor, value, code, message);
  };
  const std::string text = R"({"Sequence":{"id":"A","type_id":0}})";
  const std::string token = R"({"SpecialToken":{"id":"E","type_id":0}})";
  const auto tmpl = [](const std::string& single, const std::string& specials) {
    return R"({"type":"TemplateProcessing","single":[)" + single +
           R"(],"pair":[],"special_tokens":{)" + specials + "}}";
  };
  expect(R"({"type":"BertProcessing"})", kUnsupported, "post_processor: BertProcessing");
  expect(tmpl("", ""), kUnsupported, "expected Sequence A once");
  expect(tmpl(text + "," + text, ""), kUnsupported, "expected Sequence A once");
  expect(tmpl(R"({"Sequence":{"id":"B","type_id":0}})", ""), kUnsupported,
         "expected Sequence A once");
  expect(tmpl(R"({"Other":1})", ""), kCorrupt, "an unknown piece");
  expect(tmpl(text + "," + token, ""), kCorrupt, "special_tokens[\"E\"]: missing");
  expect(tmpl(text + "," + token, R"("E":{"ids":[999]})"), kCorrupt, "id 999 is no token");
  expect(tmpl(text + "," + token, R"("E":{})"), kCorrupt, "ids: missing");
  expect(R"({"type":"Sequence","processors":[)" + tmpl(text, "") + "," + tmpl(text, "") + "]}",
         kUnsupported, "a second TemplateProcessing");
}

TEST(TokenizerParse, RefusesOtherDecoders) {
  ExpectError(&Json::decoder, "null", kUnsupported, "decoder: expected one, got null");
  ExpectError(&Json::decoder, R"({"type":"WordPiece"})", kUnsupported, "decoder: WordPiece");
  ExpectError(&Json::decoder, R"({"type":"ByteLevel","x":1})", kUnsupported, "decoder.x");
}

TEST(ByteLevel, IsABijection) {
  for (int byte = 0; byte < 256; ++byte) {
    std::string symbol;
    AppendUtf8(SymbolOfByte(static_cast<uint8_t>(byte)), &symbol);
    std::string bytes;
    ASSERT_TRUE(BytesOfSymbols(symbol, &bytes));
    EXPECT_EQ(bytes, std::string(1, static_cast<char>(byte)));
  }
  std::string bytes;
  EXPECT_EQ(SymbolOfByte(' '), char32_t{0x120});
  EXPECT_EQ(SymbolOfByte('\n'), char32_t{0x10A});
  EXPECT_FALSE(BytesOfSymbols("a b", &bytes));
  EXPECT_FALSE(BytesOfSymbols("\u0144", &bytes));
  EXPECT_TRUE(BytesOfSymbols("", &bytes));
}

}  // namespace
}  // namespace octavo
