#pragma once
// JSON as the server reads it: a small tree of our own, so that no library's type leaves json.cc,
// and the coercions that clients rely on.
//
// Numbers may come as decimal strings and booleans as "true"/"false"/0/1, because launchers build
// their bodies from command lines; token ids are integers only. A type error has the code kCorrupt
// and names the field; a refused value is the caller's business.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

class JsonValue;
struct JsonMember;
using JsonArray = std::vector<JsonValue>;
using JsonObject = std::vector<JsonMember>;  // In the order of the text; keys may repeat.

// One node. Move-only; const is thread-safe. 32 bytes: prompts are arrays of 10^5 numbers.
class JsonValue {
 public:
  JsonValue();  // null
  explicit JsonValue(bool value);
  explicit JsonValue(int64_t value);
  explicit JsonValue(double value);
  explicit JsonValue(std::string_view value);
  explicit JsonValue(JsonArray value);
  explicit JsonValue(JsonObject value);
  JsonValue(JsonValue&&) noexcept;
  JsonValue& operator=(JsonValue&&) noexcept;
  ~JsonValue();

  bool is_null() const { return kind_ == Kind::kNull; }
  // Null unless the node is of that kind.
  const bool* boolean() const { return kind_ == Kind::kBool ? &boolean_ : nullptr; }
  const int64_t* integer() const { return kind_ == Kind::kInt ? &integer_ : nullptr; }
  const double* real() const { return kind_ == Kind::kReal ? &real_ : nullptr; }
  const std::string* string() const;
  const JsonArray* array() const;
  const JsonObject* object() const;

  // "null", "a boolean", "a number", "a string", "an array", "an object".
  std::string_view KindName() const;

  // The last member `key` of an object that is not null; nullptr when there is none, or when this
  // is no object. So null equals absent.
  const JsonValue* Find(std::string_view key) const;

 private:
  enum class Kind : uint8_t { kNull, kBool, kInt, kReal, kString, kArray, kObject };
  struct Box;  // What does not fit the node.

  Kind kind_ = Kind::kNull;
  bool boolean_ = false;
  int64_t integer_ = 0;
  double real_ = 0.0;
  std::unique_ptr<Box> box_;
};

struct JsonMember {
  std::string key;
  JsonValue value;
};

// Most values that a text may hold, at every level together: 32 prompts of 128k token ids, or what
// the tensors of any checkpoint take in a manifest. An empty list costs 108 bytes while it is read
// (node 32, box 48, the parser's tape 16 and index 12), a small object with its key not more per
// value, an id 56: 460 MiB at worst beside the text itself, 230 MiB for a list of ids.
inline constexpr int64_t kJsonValuesMax = int64_t{4} << 20;

// Errors: kCorrupt for text that is not JSON or not UTF-8, for nesting beyond 256 levels and for
// more than kJsonValuesMax values.
Result<JsonValue> ParseJson(std::string_view text);

// The same, for a request body that must be an object; an empty body is {}.
Result<JsonValue> ParseJsonBody(std::string_view text);

// Values with the coercions above; `name` is for the message. Errors: kCorrupt.
Result<bool> AsBool(const JsonValue& value, std::string_view name);
Result<int64_t> AsInt(const JsonValue& value, std::string_view name);
Result<double> AsDouble(const JsonValue& value, std::string_view name);
Result<std::string> AsString(const JsonValue& value, std::string_view name);
// Integers that fit int32, no coercion; null entries are skipped when `skip_null`.
Result<std::vector<int32_t>> AsTokenIds(const JsonValue& value, std::string_view name,
                                        bool skip_null = false);

// Optional members of an object: the default when absent or null.
Result<bool> BoolField(const JsonValue& object, std::string_view key, bool absent);
Result<int64_t> IntField(const JsonValue& object, std::string_view key, int64_t absent);
Result<std::string> StringField(const JsonValue& object, std::string_view key,
                                std::string_view absent);

}  // namespace octavo
