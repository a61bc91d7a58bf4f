#include "octavo/server/json_writer.h"

#include <fmt/format.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <string>
#include <string_view>

#include "octavo/base/check.h"

namespace octavo {
namespace {

constexpr std::string_view kReplacement = "\\ufffd";

// Length of the well-formed UTF-8 sequence at the start of `text`, 0 if there is none.
// Source: Unicode 15, table 3-7.
size_t Utf8Length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  size_t length = 0;
  unsigned char low = 0x80;
  unsigned char high = 0xBF;
  if (lead < 0x80) {
    return 1;
  }
  if (lead >= 0xC2 && lead <= 0xDF) {
    length = 2;
  } else if (lead >= 0xE0 && lead <= 0xEF) {
    length = 3;
    low = lead == 0xE0 ? 0xA0 : 0x80;
    high = lead == 0xED ? 0x9F : 0xBF;
  } else if (lead >= 0xF0 && lead <= 0xF4) {
    length = 4;
    low = lead == 0xF0 ? 0x90 : 0x80;
    high = lead == 0xF4 ? 0x8F : 0xBF;
  }
  if (length == 0 || text.size() < length || byte(1) < low || byte(1) > high) {
    return 0;
  }
  for (size_t i = 2; i < length; ++i) {
    if (byte(i) < 0x80 || byte(i) > 0xBF) {
      return 0;
    }
  }
  return length;
}

void AppendAscii(std::string& out, char c) {
  switch (c) {
    case '"':
      out += "\\\"";
      return;
    case '\\':
      out += "\\\\";
      return;
    case '\n':
      out += "\\n";
      return;
    case '\r':
      out += "\\r";
      return;
    case '\t':
      out += "\\t";
      return;
    default:
      if (c < 0x20) {
        fmt::format_to(std::back_inserter(out), "\\u{:04x}", static_cast<int>(c));
      } else {
        out += c;
      }
  }
}

// What stands in a JSON string as it is and needs no look at its neighbours.
bool IsPlain(char c) {
  const auto byte = static_cast<unsigned char>(c);
  return byte >= 0x20 && byte < 0x80 && c != '"' && c != '\\';
}

size_t PlainLength(std::string_view text) {
  size_t length = 0;
  while (length < text.size() && IsPlain(text[length])) {
    ++length;
  }
  return length;
}

template <typename T>
void AppendNumber(std::string& out, T value) {
  if (!std::isfinite(value)) {
    out += "-1e+30";
    return;
  }
  const size_t start = out.size();
  fmt::format_to(std::back_inserter(out), "{}", value);
  if (out.find_first_of(".e", start) == std::string::npos) {
    out += ".0";  // A reader that tells 0 from 0.0 must see a real number.
  }
}

}  // namespace

void AppendJsonString(std::string& out, std::string_view text) {
  out += '"';
  AppendJsonChars(out, text);
  out += '"';
}

void AppendJsonChars(std::string& out, std::string_view text) {
  while (true) {
    // Nearly all there is: one copy for a whole run.
    const size_t plain = PlainLength(text);
    out += text.substr(0, plain);
    text.remove_prefix(plain);
    if (text.empty()) {
      return;
    }
    const size_t length = Utf8Length(text);
    const std::string_view unit = text.substr(0, length == 0 ? 1 : length);
    if (length == 0) {
      out += kReplacement;
    } else if (length == 1) {
      AppendAscii(out, unit[0]);
    } else if (unit == "\xC2\x85") {
      out += "\\u0085";
    } else if (unit == "\xE2\x80\xA8") {
      out += "\\u2028";
    } else if (unit == "\xE2\x80\xA9") {
      out += "\\u2029";
    } else {
      out += unit;
    }
    text.remove_prefix(unit.size());
  }
}

void AppendJsonFloat(std::string& out, float value) { AppendNumber(out, value); }
void AppendJsonDouble(std::string& out, double value) { AppendNumber(out, value); }

void JsonWriter::Separate() {
  if (needs_comma_) {
    text_ += ',';
  }
  needs_comma_ = true;
}

JsonWriter& JsonWriter::Open(char bracket) {
  Separate();
  text_ += bracket;
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::Close(char bracket) {
  text_ += bracket;
  needs_comma_ = true;
  return *this;
}

JsonWriter& JsonWriter::Key(std::string_view key) {
  Separate();
  AppendJsonString(text_, key);
  text_ += ':';
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::PlainKey(std::string_view key) {
  DCHECK(PlainLength(key) == key.size());
  Separate();
  text_ += '"';
  text_ += key;
  text_ += "\":";
  needs_comma_ = false;
  return *this;
}

JsonWriter& JsonWriter::Value(std::string_view text) {
  Separate();
  AppendJsonString(text_, text);
  return *this;
}

JsonWriter& JsonWriter::Value(int64_t value) {
  Separate();
  const fmt::format_int digits(value);
  text_.append(digits.data(), digits.size());
  return *this;
}

JsonWriter& JsonWriter::Value(double value) {
  Separate();
  AppendJsonDouble(text_, value);
  return *this;
}

JsonWriter& JsonWriter::Value(float value) {
  Separate();
  AppendJsonFloat(text_, value);
  return *this;
}

JsonWriter& JsonWriter::Raw(std::string_view json) {
  Separate();
  text_ += json;
  return *this;
}

JsonWriter& JsonWriter::RawBetween(char open, std::string_view contents, char close) {
  Separate();
  text_ += open;
  text_ += contents;
  text_ += close;
  return *this;
}

}  // namespace octavo
