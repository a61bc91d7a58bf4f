#pragma once
// JsonWriter: appends JSON to a string. What it writes is valid JSON on one line whatever bytes
// come in, and never holds a NaN or an infinity.

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace octavo {

// Appends `text` as a JSON string with its quotes. Bytes that are not UTF-8 become U+FFFD; the line
// separators U+0085, U+2028 and U+2029 are escaped, because clients split event streams on lines.
void AppendJsonString(std::string& out, std::string_view text);

// The same without the quotes. What is appended for whole UTF-8 sequences one after the other is
// what would be appended for all of them at once.
void AppendJsonChars(std::string& out, std::string_view text);

// Shortest digits that give back the same float32 or float64, always with a point or an exponent.
// Not finite: -1e30, which is what a reader of logprobs can still sum (callers count such values).
void AppendJsonFloat(std::string& out, float value);
void AppendJsonDouble(std::string& out, double value);

// Commas are its business; nesting is the caller's. One thread.
class JsonWriter {
 public:
  JsonWriter() = default;
  // Writes behind `begin`, which need not be JSON; Take gives both.
  explicit JsonWriter(std::string begin) : text_(std::move(begin)) {}

  JsonWriter& BeginObject() { return Open('{'); }
  JsonWriter& EndObject() { return Close('}'); }
  JsonWriter& BeginArray() { return Open('['); }
  JsonWriter& EndArray() { return Close(']'); }
  // A literal is a key of ours and holds nothing to escape.
  template <size_t kSize>
  JsonWriter& Key(const char (&literal)[kSize]) {
    return PlainKey({literal, kSize - 1});
  }
  JsonWriter& Key(std::string_view key);

  JsonWriter& Value(std::string_view text);
  JsonWriter& Value(const char* text) { return Value(std::string_view(text)); }
  JsonWriter& Value(bool value) { return Raw(value ? "true" : "false"); }
  JsonWriter& Value(int value) { return Value(int64_t{value}); }
  JsonWriter& Value(int64_t value);
  JsonWriter& Value(double value);
  JsonWriter& Value(float value);
  JsonWriter& Null() { return Raw("null"); }
  // `json` is one complete JSON value or, in an object, members that commas separate already.
  JsonWriter& Raw(std::string_view json);
  // A string of what AppendJsonChars gave, and an array of values that commas separate already.
  JsonWriter& RawString(std::string_view chars) { return RawBetween('"', chars, '"'); }
  JsonWriter& RawArray(std::string_view values) { return RawBetween('[', values, ']'); }

  template <size_t kSize, typename T>
  JsonWriter& Field(const char (&literal)[kSize], const T& value) {
    return Key(literal).Value(value);
  }
  template <typename T>
  JsonWriter& Field(std::string_view key, const T& value) {
    return Key(key).Value(value);
  }

  std::string Take() { return std::move(text_); }

 private:
  JsonWriter& Open(char bracket);
  JsonWriter& Close(char bracket);
  JsonWriter& PlainKey(std::string_view key);
  JsonWriter& RawBetween(char open, std::string_view contents, char close);
  void Separate();

  std::string text_;
  bool needs_comma_ = false;
};

}  // namespace octavo
