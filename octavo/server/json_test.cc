// Method: the tree against small texts of every kind, the coercions of rollout clients each way,
// and the writer on the bytes that break naive writers: control characters, bad UTF-8, line
// separators, numbers that are not finite.

#include "octavo/server/json.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/server/json_writer.h"

namespace octavo {
namespace {

TEST(ParseJson, KeepsKindsOrderAndTheLastOfRepeatedKeys) {
  const Result<JsonValue> value = ParseJson(
      R"({"a":1,"b":[1,2.5,"x",null,true],"a":2,"c":null,"d":{"e":-9223372036854775808}})");
  ASSERT_TRUE(value.has_value()) << value.error().message();
  EXPECT_EQ(*value->Find("a")->integer(), 2);
  const JsonArray& list = *value->Find("b")->array();
  ASSERT_EQ(list.size(), 5U);
  EXPECT_EQ(*list[1].real(), 2.5);
  EXPECT_EQ(*list[2].string(), "x");
  EXPECT_TRUE(list[3].is_null());
  EXPECT_TRUE(*list[4].boolean());
  EXPECT_EQ(value->Find("c"), nullptr);  // null equals absent
  EXPECT_EQ(value->Find("z"), nullptr);
  EXPECT_EQ(*value->Find("d")->Find("e")->integer(), std::numeric_limits<int64_t>::min());
}

TEST(ParseJson, RefusesWhatIsNotJson) {
  for (const std::string_view text :
       {"", "{", "{\"a\":}", "[1,]", "NaN", "\"\xc3\x28\"", "1 2", "\"\\ud800\"", "1e999"}) {
    const Result<JsonValue> value = ParseJson(text);
    ASSERT_FALSE(value.has_value()) << text;
    EXPECT_EQ(value.error().code(), StatusCode::kCorrupt);
  }
}

TEST(ParseJson, BoundsNesting) {
  EXPECT_TRUE(ParseJson(std::string(200, '[') + std::string(200, ']')).has_value());
  EXPECT_FALSE(ParseJson(std::string(5000, '[') + std::string(5000, ']')).has_value());
}

// `count` times `value` in one array, which is a value too.
std::string Repeated(std::string_view value, int64_t count) {
  std::string text = "[";
  for (int64_t i = 0; i < count; ++i) {
    text += i > 0 ? "," : "";
    text += value;
  }
  return text + "]";
}

TEST(ParseJson, BoundsTheNumberOfValues) {
  // Each is one value, or three: the array, its string, its number.
  const std::pair<std::string_view, int64_t> kinds[] = {
      {"[]", 1}, {"{ }", 1}, {"1", 1}, {R"({"a":null})", 2}, {R"([",[{\\\",",1 ])", 3}};
  for (const auto& [value, num_values] : kinds) {
    const int64_t fits = (kJsonValuesMax - 1) / num_values;
    EXPECT_TRUE(ParseJson(Repeated(value, fits)).has_value()) << value;
    const Result<JsonValue> refused = ParseJson(Repeated(value, fits + 1));
    ASSERT_FALSE(refused.has_value()) << value;
    EXPECT_EQ(refused.error().code(), StatusCode::kCorrupt);
    EXPECT_EQ(refused.error().message(),
              fmt::format("body: expected at most 4194304 values of JSON, got {}",
                          1 + (fits + 1) * num_values));
  }
}

TEST(ParseJson, BracketsAndCommasInALongStringAreNoValues) {
  std::string text = R"({"a":")";
  for (int64_t i = 0; i < kJsonValuesMax; ++i) {
    text += R"(,[)";
  }
  EXPECT_TRUE(ParseJson(text + R"(\""})").has_value());
  EXPECT_FALSE(ParseJson(text).has_value());  // It never ends: no JSON, and no reading beyond.
  EXPECT_FALSE(ParseJson(text + R"(\")").has_value());
}

TEST(ParseJsonBody, TakesAnEmptyBodyAsAnEmptyObject) {
  EXPECT_TRUE(ParseJsonBody(" \r\n")->object()->empty());
  EXPECT_FALSE(ParseJsonBody("[]").has_value());
}

TEST(JsonCoercion, ReadsIntegersFromStringsAndWholeReals) {
  EXPECT_EQ(*AsInt(*ParseJson("29500"), "x"), 29500);
  EXPECT_EQ(*AsInt(*ParseJson("\"29500\""), "x"), 29500);
  EXPECT_EQ(*AsInt(*ParseJson("3.0"), "x"), 3);
  for (const std::string_view text :
       {"3.5", "\"\"", "\"3x\"", "true", "null", "[]", "1e300", "18446744073709551615"}) {
    EXPECT_EQ(AsInt(*ParseJson(text), "x").error().code(), StatusCode::kCorrupt) << text;
  }
}

TEST(JsonCoercion, ReadsBooleansFromWordsAndBits) {
  for (const std::string_view text : {"true", "\"true\"", "\"True\"", "1", "\"1\""}) {
    EXPECT_TRUE(*AsBool(*ParseJson(text), "x")) << text;
  }
  for (const std::string_view text : {"false", "\"false\"", "\"FALSE\"", "0", "\"0\""}) {
    EXPECT_FALSE(*AsBool(*ParseJson(text), "x")) << text;
  }
  for (const std::string_view text : {"2", "\"yes\"", "1.0", "null", "-1"}) {
    EXPECT_FALSE(AsBool(*ParseJson(text), "x").has_value()) << text;
  }
}

TEST(JsonCoercion, ReadsNumbersFromStrings) {
  EXPECT_EQ(*AsDouble(*ParseJson("\"0.25\""), "x"), 0.25);
  EXPECT_EQ(*AsDouble(*ParseJson("1"), "x"), 1.0);
  for (const std::string_view text : {"\"inf\"", "\"nan\"", "\"\"", "true", "\"1 \""}) {
    EXPECT_FALSE(AsDouble(*ParseJson(text), "x").has_value()) << text;
  }
}

TEST(JsonCoercion, NamesFieldExpectedAndActual) {
  EXPECT_EQ(AsInt(*ParseJson("\"a\""), "top_k").error().message(),
            "top_k: expected an integer, got \"a\"");
  EXPECT_EQ(AsString(*ParseJson("[]"), "rid").error().message(),
            "rid: expected a string, got an array");
}

std::string Quoted(std::string_view text) {
  std::string out;
  AppendJsonString(out, text);
  return out;
}

TEST(JsonWriter, EscapesWhatWouldBreakALineOrAString) {
  EXPECT_EQ(Quoted("a\"b\\c\n\r\t\x01\x7f"), "\"a\\\"b\\\\c\\n\\r\\t\\u0001\x7f\"");
  EXPECT_EQ(Quoted("\xE2\x80\xA8\xE2\x80\xA9\xC2\x85"), "\"\\u2028\\u2029\\u0085\"");
  EXPECT_EQ(Quoted("\xF0\x9F\x98\x80\xC3\xA4"), "\"\xF0\x9F\x98\x80\xC3\xA4\"");
}

TEST(JsonWriter, AppendsPieceByPieceWhatItWouldWriteAtOnce) {
  const std::string_view pieces[] = {
      "a\"b", "\\", "\xC3\xA9", "\xE2\x80\xA8", "\n\x01", "", "\xF0\x9F\x98\x80", "plain", "\x7F"};
  std::string chars;
  std::string whole;
  for (const std::string_view piece : pieces) {
    AppendJsonChars(chars, piece);
    whole += piece;
  }
  std::string expected;
  AppendJsonString(expected, whole);
  EXPECT_EQ(JsonWriter().RawString(chars).Take(), expected);
  EXPECT_EQ(expected, "\"a\\\"b\\\\\xC3\xA9\\u2028\\n\\u0001\xF0\x9F\x98\x80plain\x7F\"");
}

TEST(JsonWriter, GoesOnBehindWhatItWasGiven) {
  JsonWriter json("data: ");
  json.BeginArray().RawArray("1,2").RawArray("").RawString("x").EndArray();
  EXPECT_EQ(json.Take(), R"(data: [[1,2],[],"x"])");
}

TEST(JsonWriter, ReplacesBytesThatAreNotUtf8) {
  EXPECT_EQ(Quoted("\xff"), "\"\\ufffd\"");
  EXPECT_EQ(Quoted("a\xC3"), "\"a\\ufffd\"");
  EXPECT_EQ(Quoted("\xC0\x80"), "\"\\ufffd\\ufffd\"");             // Overlong.
  EXPECT_EQ(Quoted("\xED\xA0\x80"), "\"\\ufffd\\ufffd\\ufffd\"");  // A surrogate.
  EXPECT_EQ(Quoted("\xF4\x90\x80\x80").size(), 2 + 4 * 6U);        // Beyond U+10FFFF.
}

TEST(JsonWriter, PrintsFloatsThatReadBackAndAreNeverIntegers) {
  for (const float value : {0.0F, -0.0F, 1.0F, -17.0F, 0.1F, -1e-30F, 3.4028235e38F, 1.17549e-38F,
                            1.4e-45F, -13.815511F}) {
    std::string out;
    AppendJsonFloat(out, value);
    EXPECT_EQ(std::strtof(out.c_str(), nullptr), value) << out;
    EXPECT_NE(out.find_first_of(".e"), std::string::npos) << out;
    EXPECT_TRUE(ParseJson(out).has_value()) << out;
  }
  std::string out;
  AppendJsonFloat(out, std::numeric_limits<float>::quiet_NaN());
  AppendJsonFloat(out, -std::numeric_limits<float>::infinity());
  EXPECT_EQ(out, "-1e+30-1e+30");
}

TEST(JsonWriter, PutsCommasWhereTheyBelong) {
  JsonWriter json;
  json.BeginObject().Field("a", 1).Key("b").BeginArray().Value("x").Null().EndArray();
  json.Key("c").BeginObject().EndObject().Field("d", true).Field("e", 0.5).EndObject();
  EXPECT_EQ(json.Take(), R"({"a":1,"b":["x",null],"c":{},"d":true,"e":0.5})");
}

}  // namespace
}  // namespace octavo
