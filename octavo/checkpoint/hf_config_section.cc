#include "octavo/checkpoint/hf_config_section.h"

#include <fmt/core.h>
#include <simdjson.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/unique_keys.h"

namespace octavo {
namespace {

namespace dom = simdjson::dom;

// Widest piece of a file's own text that a message quotes.
constexpr size_t kQuoteBytesMax = 80;

std::string Quote(dom::element value) {
  std::string text = simdjson::minify(value);
  if (text.size() > kQuoteBytesMax) {
    text.resize(kQuoteBytesMax);
    text += "...";
  }
  return text;
}

}  // namespace

struct HfSection::Impl {
  std::shared_ptr<dom::parser> parser;  // Owns what `object` refers to.
  dom::object object;

  std::optional<dom::element> Find(std::string_view key) const {
    dom::element value;
    if (object.at_key(key).get(value) != simdjson::SUCCESS || value.is_null()) {
      return std::nullopt;
    }
    return value;
  }
  std::string Actual(std::string_view key) const {
    const auto value = Find(key);
    return value ? Quote(*value) : "nothing";
  }
};

HfSection::HfSection(std::string name, std::unique_ptr<Impl> impl)
    : name_(std::move(name)), impl_(std::move(impl)) {}
HfSection::HfSection(HfSection&&) noexcept = default;
HfSection& HfSection::operator=(HfSection&&) noexcept = default;
HfSection::~HfSection() = default;

Result<HfSection> HfSection::Parse(std::string name, std::string_view text) {
  auto impl = std::make_unique<Impl>();
  impl->parser = std::make_shared<dom::parser>();
  dom::element root;
  if (text.empty()) {  // The parser copies what it is given: a null pointer is not for it.
    return Corrupt("{}: expected a JSON object, got an empty text", name);
  }
  if (const auto error = impl->parser->parse(text.data(), text.size()).get(root)) {
    return Corrupt("{}: expected a JSON object: {}", name, simdjson::error_message(error));
  }
  if (root.get(impl->object) != simdjson::SUCCESS) {
    return Corrupt("{}: expected a JSON object, got {}", name, Quote(root));
  }
  HfSection section(std::move(name), std::move(impl));
  RETURN_IF_ERROR(section.CheckKeys());
  return section;
}

Status HfSection::CheckKeys() const {
  std::vector<std::string_view> keys;
  for (const dom::key_value_pair field : impl_->object) {
    keys.push_back(field.key);
  }
  if (const auto twin = FirstDuplicate(std::move(keys))) {
    return Corrupt("{}: key \"{}\" occurs more than once", name_, twin->substr(0, kQuoteBytesMax));
  }
  return OkStatus();
}

bool HfSection::Has(std::string_view key) const { return impl_->Find(key).has_value(); }

bool HfSection::IsObject(std::string_view key) const {
  const auto value = impl_->Find(key);
  return value && value->is_object();
}

bool HfSection::IsArray(std::string_view key) const {
  const auto value = impl_->Find(key);
  return value && value->is_array();
}

std::string HfSection::Json(std::string_view key) const {
  const auto value = impl_->Find(key);
  return value ? simdjson::minify(*value) : std::string();
}

std::vector<std::string> HfSection::Keys() const {
  std::vector<std::string> keys;
  for (const dom::key_value_pair field : impl_->object) {
    if (!field.value.is_null()) {
      keys.emplace_back(field.key);
    }
  }
  return keys;
}

Status HfSection::Missing(std::string_view key, std::string_view expected) const {
  return InvalidArgument("{}: {}: expected {}, got nothing", name_, key, expected);
}

Status HfSection::Wrong(std::string_view key, std::string_view expected) const {
  return InvalidArgument("{}: {}: expected {}, got {}", name_, key, expected, impl_->Actual(key));
}

Status HfSection::NotBuilt(std::string_view key, std::string_view expected) const {
  return Unsupported("{}: {}: expected {}, got {}", name_, key, expected, impl_->Actual(key));
}

Status HfSection::OptionalInteger(std::string_view key, Bounds<int64_t> bounds,
                                  int64_t& out) const {
  const auto value = impl_->Find(key);
  if (!value) {
    return OkStatus();
  }
  int64_t number = 0;
  if (!value->is<int64_t>() || value->get(number) != simdjson::SUCCESS || number < bounds.min ||
      number > bounds.max) {
    return Wrong(key, fmt::format("an integer from {} to {}", bounds.min, bounds.max));
  }
  out = number;
  return OkStatus();
}

Status HfSection::OptionalCount(std::string_view key, int64_t max, int64_t& out) const {
  return OptionalInteger(key, {.min = 1, .max = max}, out);
}

Status HfSection::OptionalNumber(std::string_view key, Bounds<double> bounds, double& out) const {
  const auto value = impl_->Find(key);
  if (!value) {
    return OkStatus();
  }
  double number = 0.0;
  if (value->get(number) != simdjson::SUCCESS || !(number >= bounds.min) ||
      !(number <= bounds.max)) {
    return Wrong(key, fmt::format("a number from {:g} to {:g}", bounds.min, bounds.max));
  }
  out = number;
  return OkStatus();
}

Status HfSection::OptionalPositive(std::string_view key, double max, double& out) const {
  const auto value = impl_->Find(key);
  if (!value) {
    return OkStatus();
  }
  double number = 0.0;
  if (value->get(number) != simdjson::SUCCESS || !(number > 0.0) || !(number <= max)) {
    return Wrong(key, fmt::format("a number above 0 and at most {:g}", max));
  }
  out = number;
  return OkStatus();
}

Status HfSection::OptionalBool(std::string_view key, bool& out) const {
  const auto value = impl_->Find(key);
  if (value && value->get(out) != simdjson::SUCCESS) {
    return Wrong(key, "true or false");
  }
  return OkStatus();
}

Status HfSection::OptionalString(std::string_view key, std::string& out) const {
  const auto value = impl_->Find(key);
  if (!value) {
    return OkStatus();
  }
  std::string_view text;
  if (value->get(text) != simdjson::SUCCESS) {
    return Wrong(key, "a string");
  }
  out = text;
  return OkStatus();
}

Status HfSection::Count(std::string_view key, int64_t max, int64_t& out) const {
  if (!Has(key)) {
    return Missing(key, fmt::format("an integer from 1 to {}", max));
  }
  return OptionalCount(key, max, out);
}

Status HfSection::Positive(std::string_view key, double max, double& out) const {
  if (!Has(key)) {
    return Missing(key, fmt::format("a number above 0 and at most {:g}", max));
  }
  return OptionalPositive(key, max, out);
}

bool HfSection::Strings(std::string_view key, std::vector<std::string>& out) const {
  out.clear();
  const auto value = impl_->Find(key);
  if (!value) {
    return true;
  }
  dom::array list;
  if (value->get(list) != simdjson::SUCCESS) {
    return false;
  }
  for (const dom::element item : list) {
    std::string_view text;
    if (item.get(text) != simdjson::SUCCESS) {
      return false;
    }
    out.emplace_back(text);
  }
  return true;
}

bool HfSection::Integers(std::string_view key, std::vector<int64_t>& out) const {
  const auto value = impl_->Find(key);
  if (!value) {
    return true;
  }
  const auto append = [&out](dom::element item) {
    int64_t number = 0;
    if (!item.is<int64_t>() || item.get(number) != simdjson::SUCCESS) {
      return false;
    }
    out.push_back(number);
    return true;
  };
  dom::array list;
  if (value->get(list) != simdjson::SUCCESS) {
    return append(*value);
  }
  for (const dom::element item : list) {
    if (!append(item)) {
      return false;
    }
  }
  return true;
}

Result<HfSection> HfSection::Object(std::string_view key) const {
  auto impl = std::make_unique<Impl>();
  impl->parser = impl_->parser;
  const auto value = impl_->Find(key);
  if (!value || value->get(impl->object) != simdjson::SUCCESS) {
    return Wrong(key, "an object or null");
  }
  HfSection section(fmt::format("{}: {}", name_, key), std::move(impl));
  RETURN_IF_ERROR(section.CheckKeys());
  return section;
}

}  // namespace octavo
