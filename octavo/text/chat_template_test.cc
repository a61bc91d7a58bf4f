// Method: tests/data/text/chat holds what HF transformers 4.57.6 (Jinja2 3.1.6) makes of 611
// requests with templates in the formats of Qwen, Llama and DeepSeek models, text and hash of ids,
// and of 291 snippets of template language (scripts/make_chat_data.py). Every text and id must be
// equal, and what HF fails on must be refused. Then each error once, by its message.

#include "octavo/text/chat_template.h"

#include <fmt/format.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <simdjson.h>

#include <cstdint>
#include <ctime>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/gzip.h"
#include "octavo/base/status.h"
#include "octavo/text/hash_ids_for_test.h"
#include "octavo/text/template_evaluator.h"
#include "octavo/text/template_parser.h"
#include "octavo/text/template_value.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/tokenizer_config.h"

namespace octavo {
namespace {

using simdjson::dom::element;
using testing::HasSubstr;

constexpr std::string_view kFolder = "tests/data/text/chat/";

std::string ReadOrDie(const std::string& path) {
  Result<std::string> text = ReadTextOrGzip(path);
  EXPECT_TRUE(text.has_value()) << text.error().message();
  return text.has_value() ? *std::move(text) : std::string();
}

// Calls `test` with each line of a file of JSON lines.
template <typename Test>
int ForEachLine(const std::string& name, Test test) {
  const std::string file = ReadOrDie(std::string(kFolder) + name);
  simdjson::dom::parser parser;
  int num_lines = 0;
  for (size_t begin = 0; begin < file.size();) {
    const size_t end = file.find('\n', begin);
    const simdjson::padded_string line(file.substr(begin, end - begin));
    element entry;
    EXPECT_EQ(parser.parse(line).get(entry), simdjson::SUCCESS);
    test(entry, num_lines++);
    begin = end + 1;
  }
  return num_lines;
}

// Saturday, 10 o'clock: the time that make_chat_data.py told Jinja2.
std::tm SomeTime() {
  std::tm time = {};
  time.tm_year = 2026 - 1900;
  time.tm_mon = 10;
  time.tm_mday = 21;
  time.tm_hour = 10;
  return time;
}

std::optional<std::string> TextField(const element& entry, const char* name) {
  std::string_view text;
  return entry[name].get(text) == simdjson::SUCCESS ? std::optional<std::string>(text)
                                                    : std::nullopt;
}

std::string JsonField(const element& entry, const char* name) {
  element field;
  return entry[name].get(field) == simdjson::SUCCESS ? std::string(simdjson::minify(field)) : "";
}

// What a case needs besides its request, loaded once each.
class Formats {
 public:
  const ChatTemplate& Template(const std::string& name, const std::string& tokenizer) {
    const auto found = templates_.find(name);
    if (found != templates_.end()) return found->second;
    const Result<TokenizerConfig> config = LoadTokenizerConfig(tokenizer);
    EXPECT_TRUE(config.has_value()) << config.error().message();
    Result<ChatTemplate> parsed =
        ChatTemplate::Parse(ReadOrDie(std::string(kFolder) + name + ".jinja"), *config);
    EXPECT_TRUE(parsed.has_value()) << name << ": " << parsed.error().message();
    return templates_.emplace(name, *std::move(parsed)).first->second;
  }

  const Tokenizer& TokenizerOf(const std::string& folder) {
    const auto found = tokenizers_.find(folder);
    if (found != tokenizers_.end()) return found->second;
    Result<Tokenizer> tokenizer = Tokenizer::LoadFolder(folder);
    EXPECT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    return tokenizers_.emplace(folder, *std::move(tokenizer)).first->second;
  }

 private:
  std::map<std::string, ChatTemplate> templates_;
  std::map<std::string, Tokenizer> tokenizers_;
};

TEST(ChatTemplate, RendersConversationsAsHfDoes) {
  Formats formats;
  int num_refused = 0;
  const int num_cases = ForEachLine("cases.jsonl.gz", [&](const element& entry, int line) {
    const std::string tokenizer = *TextField(entry, "tokenizer");
    const std::string messages = JsonField(entry, "messages");
    const std::string tools = JsonField(entry, "tools");
    const std::string kwargs = JsonField(entry, "kwargs");
    const Result<std::string> text =
        formats.Template(*TextField(entry, "template"), tokenizer)
            .Render({.messages = messages,
                     .tools = tools,
                     .kwargs = kwargs,
                     .add_generation_prompt = JsonField(entry, "add_generation_prompt") == "true",
                     .now = SomeTime()});
    const std::optional<std::string> expected = TextField(entry, "text");
    ASSERT_EQ(text.has_value(), expected.has_value()) << "line " << line + 1;
    if (!expected.has_value()) {
      ++num_refused;
      return;
    }
    ASSERT_EQ(*text, *expected) << "line " << line + 1;
    const std::vector<int32_t> ids =
        formats.TokenizerOf(tokenizer).Encode(*text, /*add_special_tokens=*/false);
    ASSERT_EQ(fmt::format("{:016x}", Fnv1a(ids)), *TextField(entry, "ids_fnv1a"))
        << "line " << line + 1;
  });
  EXPECT_GT(num_cases, 500);
  EXPECT_GT(num_refused, 20);
}

// What Jinja2 renders and this interpreter refuses.
const std::set<std::string> kBeyondTheSubset = {
    "{{ x == 7.0 }}",
    "{{ 1.5 }}",
    "{{ 1_000 }}",
    "{{ x ** 2 }}",
    "{{ x / 2 }}",
    "{{ 1 < x < 9 }}",
    "{{ list[1:] }}",
    "{{ range(3) | list }}",
    "{% macro f() %}x{% endmacro %}{{ f() }}",
    "{% for i in list recursive %}{% endfor %}",
};

TEST(ChatTemplate, RendersSnippetsAsJinjaDoes) {
  TemplateValue::Dict variables;
  size_t num_beyond = 0;
  const int num_snippets = ForEachLine("snippets.jsonl.gz", [&](const element& entry, int line) {
    if (line == 0) {
      const Result<TemplateValue> value = ParseTemplateJson(JsonField(entry, "variables"));
      ASSERT_TRUE(value.has_value());
      variables = *value->dict();
      return;
    }
    const std::string source = *TextField(entry, "source");
    const std::optional<std::string> expected = TextField(entry, "text");
    const Result<std::vector<TemplateNode>> nodes = ParseTemplate(source);
    Result<std::string> text =
        nodes.has_value() ? RenderTemplate(*nodes, variables, SomeTime()) : nodes.error();
    if (kBeyondTheSubset.contains(source)) {
      ASSERT_FALSE(text.has_value()) << source;
      EXPECT_EQ(text.error().code(), StatusCode::kUnsupported) << source;
      ++num_beyond;
      return;
    }
    ASSERT_EQ(text.has_value(), expected.has_value())
        << "line " << line + 1 << ": " << source
        << (text.has_value() ? " gives " + *text : ": " + text.error().message());
    EXPECT_EQ((text.has_value() ? *text : ""), expected.value_or(""))
        << "line " << line + 1 << ": " << source;
  });
  EXPECT_GT(num_snippets, 250);
  EXPECT_EQ(num_beyond, kBeyondTheSubset.size());
}

void ExpectRefused(const std::string& source, StatusCode code, const std::string& message) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(source, {});
  ASSERT_FALSE(parsed.has_value()) << source;
  EXPECT_EQ(parsed.error().code(), code) << parsed.error().message();
  EXPECT_EQ(parsed.error().message(), "chat template: " + message);
}

TEST(ChatTemplate, RefusesAtLoadWhatIsNotBuilt) {
  constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
  ExpectRefused("a\n{{ x | title }}", kUnsupported, "line 2: the filter title is not built");
  ExpectRefused("{{ x is sameas y }}", kUnsupported, "line 1: the test sameas is not built");
  ExpectRefused("{{ x.title() }}", kUnsupported, "line 1: the method title is not built");
  ExpectRefused("{{ lipsum() }}", kUnsupported, "line 1: the function lipsum is not built");
  ExpectRefused("{{ x()() }}", kUnsupported, "line 1: the function x is not built");
  ExpectRefused("{{ x[0]() }}", kUnsupported, "line 1: a call of this is not built");
  ExpectRefused("{% macro m() %}", kUnsupported, "line 1: the statement macro is not built");
  ExpectRefused("{% raw %}{% endraw %}", kUnsupported, "line 1: the statement raw is not built");
  ExpectRefused("{{ namespace(*x) }}", kUnsupported,
                "line 1: an argument list in an argument is not built");
  ExpectRefused("{{ x is none(1) }}", kUnsupported, "line 1: an argument of a test is not built");
  ExpectRefused("{% set a.b, c = 1 %}", StatusCode::kCorrupt, "line 1: unexpected \",\"");
  ExpectRefused("{% set a, b.c = 1 %}", kUnsupported,
                "line 1: several attributes in a set is not built");
  ExpectRefused("{% set a | trim %}{% endset %}", kUnsupported,
                "line 1: a filter of a set block is not built");
  ExpectRefused("{{ '\\N{DASH}' }}", kUnsupported, "line 1: the escape \\N is not built");
  ExpectRefused("{{ '\\ud800' }}", kUnsupported, "line 1: the escape \\u is not built");
  ExpectRefused("{{ 99999999999999999999 }}", kUnsupported, "line 1: this number is not built");
}

TEST(ChatTemplate, RefusesWhatIsNoTemplate) {
  constexpr StatusCode kCorrupt = StatusCode::kCorrupt;
  ExpectRefused("\xFF", kCorrupt, "not UTF-8");
  ExpectRefused("\n\n{{ x", kCorrupt, "line 3: a tag that does not end");
  ExpectRefused("{# x", kCorrupt, "line 1: a comment that does not end");
  ExpectRefused("{{ 'x }}", kCorrupt, "line 1: a string that does not end");
  ExpectRefused("{{ x) }}", kCorrupt, "line 1: unexpected \")\"");
  ExpectRefused("{{ \u00e9 }}", kCorrupt, "line 1: unexpected \"\xC3\"");
  ExpectRefused("{% if x %}\n", kCorrupt, "line 1: expected endif");
  ExpectRefused("{% for x in y %}{% else %}", kCorrupt, "line 1: expected endfor");
  ExpectRefused("{% set x %}", kCorrupt, "line 1: expected endset");
  ExpectRefused("{% if x %}{% endfor %}", StatusCode::kUnsupported,
                "line 1: the statement endfor is not built");
}

TEST(ChatTemplate, RefusesWhatIsNestedWithoutEnd) {
  const auto nested = [](const std::string& open, const std::string& close) {
    std::string source = "{{ ";
    for (int i = 0; i < 10000; ++i) source += open;
    source += "1";
    for (int i = 0; i < 10000; ++i) source += close;
    return source + " }}";
  };
  for (const auto& [open, close] : {std::pair("(", ")"),
                                    {"[", "]"},
                                    {"x[", "]"},
                                    {"- ", ""},
                                    {"not ", ""},
                                    {"x if ", ""},
                                    {"1 + ", ""},
                                    {"x or ", ""},
                                    {"", ".a"},
                                    {"", "|trim"},
                                    {"", "[0]"},
                                    {"", ".strip()"},
                                    {"'a' ~ ", ""}}) {
    const Result<ChatTemplate> parsed = ChatTemplate::Parse(nested(open, close), {});
    ASSERT_FALSE(parsed.has_value()) << open;
    EXPECT_EQ(parsed.error().code(), StatusCode::kUnsupported);
    EXPECT_THAT(parsed.error().message(), HasSubstr("nested this deep"));
  }
  std::string ifs;
  for (int i = 0; i < 10000; ++i) ifs += "{% if x %}";
  EXPECT_THAT(ChatTemplate::Parse(ifs, {}).error().message(), HasSubstr("nested this deep"));
}

TEST(ChatTemplate, EndsWhatWouldNot) {
  const auto render = [](const std::string& source) {
    const Result<std::vector<TemplateNode>> nodes = ParseTemplate(source);
    EXPECT_TRUE(nodes.has_value()) << nodes.error().message();
    return RenderTemplate(*nodes, {{"ten", TemplateValue(std::string("0123456789"))}}, {});
  };
  std::string loops;
  for (int i = 0; i < 12; ++i) loops += "{% for x in ten %}";
  for (int i = 0; i < 12; ++i) loops += "{% endfor %}";
  EXPECT_THAT(render(loops).error().message(), HasSubstr("more than 4000000 steps"));
  EXPECT_THAT(render("{% set n = namespace(x=ten) %}{% for a in ten %}{% for b in ten %}"
                     "{% set n.x = n.x + n.x %}{% endfor %}{% endfor %}")
                  .error()
                  .message(),
              HasSubstr("more than 268435456 bytes of text"));
  // Freed all the same, and no endless walk.
  EXPECT_EQ(*render("{% set n = namespace() %}{% set n.n = [n] %}{{ n == n.n[0] }}"), "True");
  EXPECT_THAT(render("{% set n = namespace() %}{{ n | tojson }}").error().message(),
              HasSubstr("a namespace has no form in JSON"));
}

TEST(ChatTemplate, RefusesRequestsThatItCannotTake) {
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(
      "{% for m in messages %}{% if m.role != 'user' %}{{ raise_exception('Users only') }}"
      "{% endif %}\n{{ m.content + '!' }}{% endfor %}{{ strftime_now('%Y') }}",
      {});
  ASSERT_TRUE(parsed.has_value()) << parsed.error().message();
  const auto expect = [&parsed](const ChatRequest& request, StatusCode code,
                                const std::string& message) {
    const Result<std::string> text = parsed->Render(request);
    ASSERT_FALSE(text.has_value()) << message;
    EXPECT_EQ(text.error().code(), code);
    EXPECT_EQ(text.error().message(), message);
  };
  constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
  const std::string_view user = R"([{"role":"user","content":"x"}])";
  expect({.messages = "[]"}, kInvalid, "messages: expected an array of at least one");
  expect({.messages = "{}"}, kInvalid, "messages: expected an array of at least one");
  expect({.messages = "[1]"}, kInvalid, "messages: expected objects, got an int");
  expect({.messages = "["}, kInvalid,
         "messages: JSON: The JSON document has an improper structure: missing or superfluous "
         "commas, braces, missing keys, etc.");
  expect({.messages = user, .tools = "1"}, kInvalid, "tools: expected an array, got an int");
  expect({.messages = user, .kwargs = "[]"}, kInvalid,
         "chat_template_kwargs: expected an object, got a list");
  expect({.messages = R"([{"role":"tool","content":"x"}])"}, kInvalid,
         "chat template: line 1: Users only");
  expect({.messages = R"([{"role":"user"}])"}, kInvalid,
         "chat template: line 2: content is undefined");
  expect({.messages = R"([{"role":"user","content":null}])"}, kInvalid,
         "chat template: line 2: none + a string is not built");
  expect({.messages = user}, StatusCode::kUnsupported,
         "chat template: line 2: strftime_now: the time is not given");
}

TEST(ChatTemplate, LetsRequestsNameVariablesButNotItsOwn) {
  TokenizerConfig config;
  config.special_tokens = {{"bos_token", "<b>"}, {"eos_token", "<e>"}};
  const Result<ChatTemplate> parsed = ChatTemplate::Parse(
      "{{ bos_token }}{{ eos_token }}{{ pad_token }}{{ messages | length }}{{ tools is none }}"
      "{{ add_generation_prompt }}{{ mine }}",
      config);
  ASSERT_TRUE(parsed.has_value());
  const Result<std::string> text =
      parsed->Render({.messages = R"([{"role":"user"}])",
                      .kwargs = R"({"eos_token":"<x>","messages":[],"mine":"m","mine":"n"})",
                      .add_generation_prompt = false});
  ASSERT_TRUE(text.has_value()) << text.error().message();
  EXPECT_EQ(*text, "<b><x>1TrueFalsen");
}

TEST(ChatTemplate, LoadsFromAFolder) {
  const Result<std::optional<ChatTemplate>> loaded =
      ChatTemplate::LoadFolder("models/abacus-dense");
  ASSERT_TRUE(loaded.has_value()) << loaded.error().message();
  ASSERT_TRUE(loaded->has_value());
  const Result<std::string> text =
      (*loaded)->Render({.messages = R"([{"role":"user","content":"1 + 1"}])"});
  EXPECT_EQ(*text, "<|im_start|>user\n1 + 1<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_FALSE(ChatTemplate::LoadFolder("tests/data/text/llama3")->has_value());
}

}  // namespace
}  // namespace octavo
