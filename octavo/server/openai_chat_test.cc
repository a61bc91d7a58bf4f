// Method: what the template is shown of a request, by templates that print it: one for each rule of
// the messages' form, and each refusal by the name of what it refuses.

#include "octavo/server/openai_chat.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/server/json.h"
#include "octavo/server/server.h"
#include "octavo/text/chat_template.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

using testing::HasSubstr;

class OpenAiChatTest : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    Result<Tokenizer> tokenizer = Tokenizer::LoadFolder("models/abacus-dense");
    ASSERT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
    tokenizer_ = std::move(*tokenizer);
  }
  static void TearDownTestSuite() { tokenizer_.reset(); }

  // `body` by a template of this source.
  Result<std::string> Render(std::string_view source, std::string_view body) {
    Result<ChatTemplate> chat = ChatTemplate::Parse(source, {});
    EXPECT_TRUE(chat.has_value()) << chat.error().message();
    Result<JsonValue> json = ParseJson(body);
    EXPECT_TRUE(json.has_value()) << body;
    std::tm now = {};
    now.tm_year = 126;
    now.tm_mon = 10;
    now.tm_mday = 21;
    return RenderChatPrompt(*json, {.tokenizer = &*tokenizer_, .chat_template = &*chat}, now);
  }
  std::string Text(std::string_view source, std::string_view body) {
    const Result<std::string> text = Render(source, body);
    EXPECT_TRUE(text.has_value()) << text.error().message();
    return text.has_value() ? *text : std::string();
  }
  void ExpectRefused(std::string_view body, StatusCode code, std::string_view message) {
    const Result<std::string> text = Render("{{ messages | tojson }}", body);
    ASSERT_FALSE(text.has_value()) << *text;
    EXPECT_EQ(text.error().code(), code) << text.error().message();
    EXPECT_THAT(text.error().message(), HasSubstr(std::string(message)));
  }

  static inline std::optional<Tokenizer> tokenizer_;
};

constexpr std::string_view kMessages = "{{ messages | tojson }}";
constexpr std::string_view kUser = R"("messages":[{"role":"user","content":"Hi"}])";

TEST_F(OpenAiChatTest, MessagesKeepTheirMembersWithoutNulls) {
  EXPECT_EQ(Text(kMessages,
                 R"({"messages":[{"role":"system","content":"S","name":null},
                 {"role":"tool","tool_call_id":"c1","content":"4.50","score":4.5,"ok":true,
                 "more":[1,{"a":null}]}]})"),
            R"([{"role": "system", "content": "S"}, {"role": "tool", "content": "4.50", )"
            R"("tool_call_id": "c1", "score": 4.5, "ok": true, "more": [1, {"a": null}]}])");
}

TEST_F(OpenAiChatTest, PartsOfTextAreJoinedAndNoContentIsEmpty) {
  EXPECT_EQ(Text("{% for m in messages %}[{{ m.content }}]{% endfor %}",
                 R"({"messages":[{"role":"user","content":[{"type":"text","text":"one"},
                 {"type":"text","text":"two"}]},{"role":"assistant","content":null},
                 {"role":"user"},{"role":"user","content":["three"]}]})"),
            "[one two][][][three]");
}

TEST_F(OpenAiChatTest, ArgumentsOfToolCallsBecomeObjects) {
  EXPECT_EQ(Text("{% for c in messages[0].tool_calls %}{{ c.function.arguments.x }} {{ c.id }}"
                 "{% endfor %}",
                 R"({"messages":[{"role":"assistant","content":null,"tool_calls":[{"id":"c1",
           "type":"function","function":{"name":"f","arguments":"{\"x\": 7}"}}]},
           {"role":"tool","tool_call_id":"c1","content":"8"}]})"),
            "7 c1");
}

TEST_F(OpenAiChatTest, CallsTakeTheFormThatTheTemplateTakes) {
  constexpr std::string_view kBody = R"({"messages":[{"role":"assistant","content":null,
      "tool_calls":[{"function":{"name":"f","arguments":"{\"x\":  7}"}}]},
      {"role":"user","content":"Q"}]})";
  // A content that is not there prints as nothing, never as "None".
  EXPECT_EQ(Text("{% for m in messages %}[{{ m.content }}]{% endfor %}", kBody), "[][Q]");
  // As DeepSeek's own template has it: calls under a null content, arguments as they came.
  EXPECT_EQ(Text("{% for m in messages %}{% if m.content is none %}{% for c in m.tool_calls %}"
                 "{{ c.function.name + ':' + c.function.arguments }};{% endfor %}{% else %}"
                 "{{ m.content + '.' }}{% endif %}{% endfor %}",
                 kBody),
            "f:{\"x\":  7};Q.");
  // One that knows of no calls.
  EXPECT_EQ(Text("{% for m in messages %}{{ m.role + ':' + m.content + ';' }}{% endfor %}", kBody),
            "assistant:;user:Q;");
  // What fails in every form is said of the first.
  const Result<std::string> none =
      Render("{{ messages[0].tool_calls[0].function.arguments + 5 }}", kBody);
  ASSERT_FALSE(none.has_value());
  EXPECT_THAT(none.error().message(), HasSubstr("a dict"));
}

TEST_F(OpenAiChatTest, AnAssistantMessageThatComesLastBecomesTheUsers) {
  EXPECT_EQ(Text(kMessages, R"({"messages":[{"role":"assistant","content":"A"},
                 {"role":"assistant","content":"B"}]})"),
            R"([{"role": "assistant", "content": "A"}, {"role": "user", "content": "B"}])");
}

TEST_F(OpenAiChatTest, OrTheAnswerContinuesIt) {
  constexpr std::string_view kTemplate =
      "{% for m in messages %}{{ m.role }}:{{ m.content }};{% endfor %}"
      "{% if add_generation_prompt %}assistant:{% endif %}";
  EXPECT_EQ(Text(kTemplate, R"({"continue_final_message":true,"messages":[
                 {"role":"user","content":"Q"},{"role":"assistant","content":"The sum"}]})"),
            "user:Q;assistant:The sum");
  // Nothing to continue: as if it had not been asked.
  EXPECT_EQ(Text(kTemplate, R"({"continue_final_message":true,"messages":[
                 {"role":"user","content":"Q"}]})"),
            "user:Q;assistant:");
}

TEST_F(OpenAiChatTest, TemplateVariablesComeFromTheRequest) {
  constexpr std::string_view kTemplate =
      "{{ enable_thinking }} {{ reasoning_effort }} {{ strftime_now('%d %b %Y') }}";
  EXPECT_EQ(Text(kTemplate, fmt::format(R"({{{},"reasoning_effort":"low",
                 "chat_template_kwargs":{{"enable_thinking":false}}}})",
                                        kUser)),
            "False low 21 Nov 2026");
  EXPECT_EQ(Text(kTemplate, fmt::format(R"({{{},"reasoning_effort":"low",
                 "chat_template_kwargs":{{"reasoning_effort":"high"}}}})",
                                        kUser)),
            " high 21 Nov 2026");
}

TEST_F(OpenAiChatTest, ToolsReachTheTemplateAsTheyCameUnlessTheChoiceIsNone) {
  constexpr std::string_view kTemplate = "{% if tools %}{{ tools | tojson }}{% endif %}";
  constexpr std::string_view kTools = R"("tools":[{"type":"function","function":{"name":"f"}}])";
  EXPECT_EQ(Text(kTemplate, fmt::format("{{{},{}}}", kUser, kTools)),
            R"([{"type": "function", "function": {"name": "f"}}])");
  EXPECT_EQ(Text(kTemplate, fmt::format(R"({{{},{},"tool_choice":"none"}})", kUser, kTools)), "");
  EXPECT_EQ(Text(kTemplate, fmt::format(R"({{{},"tools":[]}})", kUser)), "");
}

TEST_F(OpenAiChatTest, RefusesByName) {
  constexpr StatusCode kMalformed = StatusCode::kCorrupt;
  constexpr StatusCode kUnbuilt = StatusCode::kUnsupported;
  ExpectRefused(R"({"messages":[{"role":"user","content":[{"type":"image_url"}]}]})", kUnbuilt,
                R"(messages[0].content[0]: the type "image_url")");
  ExpectRefused(R"({"messages":[{"role":"user","content":[5]}]})", kMalformed,
                "messages[0].content[0]");
  ExpectRefused(R"({"messages":[{"role":"assistant","tool_calls":[{"function":{"arguments":"x"}}]},
                {"role":"user","content":"Q"}]})",
                StatusCode::kInvalidArgument, "messages[0].tool_calls[0].function.arguments");
  ExpectRefused(R"({"messages":[{"role":"assistant","tool_calls":5},{"role":"user"}]})", kMalformed,
                "messages[0].tool_calls");
  ExpectRefused(fmt::format(R"({{{},"tools":{{}}}})", kUser), kMalformed, "tools");
  ExpectRefused(fmt::format(R"({{{},"chat_template_kwargs":[]}})", kUser), kMalformed,
                "chat_template_kwargs");
  const Result<std::string> raised =
      Render("{{ raise_exception('no system role') }}", fmt::format("{{{}}}", kUser));
  ASSERT_FALSE(raised.has_value());
  EXPECT_EQ(raised.error().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(raised.error().message(), HasSubstr("no system role"));
}

}  // namespace
}  // namespace octavo
