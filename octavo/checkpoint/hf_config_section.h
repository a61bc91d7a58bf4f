#pragma once
// One object of a config.json, read member by member: every message names the place, the key, what
// was expected and what is there. No JSON type shows here.

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// Bounds of a number, both included.
template <typename T>
struct Bounds {
  T min;
  T max;
};

// A member that is null counts as absent throughout, as in HF. Move-only; one thread.
class HfSection {
 public:
  // A whole file; `name` begins its messages. Errors: kCorrupt (no JSON object, a key twice).
  static Result<HfSection> Parse(std::string name, std::string_view text);
  HfSection(HfSection&&) noexcept;
  HfSection& operator=(HfSection&&) noexcept;
  ~HfSection();

  // "config.json: rope_scaling"
  const std::string& name() const { return name_; }
  bool Has(std::string_view key) const;
  bool IsObject(std::string_view key) const;
  bool IsArray(std::string_view key) const;
  // The member as compact JSON; empty when absent.
  std::string Json(std::string_view key) const;
  // Members that are there and not null.
  std::vector<std::string> Keys() const;

  // The errors of a member: absent, of the wrong kind or out of range, or not built here.
  Status Missing(std::string_view key, std::string_view expected) const;
  Status Wrong(std::string_view key, std::string_view expected) const;
  Status NotBuilt(std::string_view key, std::string_view expected) const;

  // These leave `out` alone when the key is absent. Errors: kInvalidArgument for another kind of
  // value or one out of range.
  Status OptionalInteger(std::string_view key, Bounds<int64_t> bounds, int64_t& out) const;
  Status OptionalCount(std::string_view key, int64_t max, int64_t& out) const;  // 1 to max.
  Status OptionalNumber(std::string_view key, Bounds<double> bounds, double& out) const;
  Status OptionalPositive(std::string_view key, double max, double& out) const;  // Above 0.
  Status OptionalBool(std::string_view key, bool& out) const;
  Status OptionalString(std::string_view key, std::string& out) const;

  // As OptionalCount and OptionalPositive, but an absent key is kInvalidArgument too.
  Status Count(std::string_view key, int64_t max, int64_t& out) const;
  Status Positive(std::string_view key, double max, double& out) const;

  // Replaces `out`; false when the member is there and no list of strings.
  bool Strings(std::string_view key, std::vector<std::string>& out) const;
  // Appends; false when the member is there and neither an integer nor a list of them.
  bool Integers(std::string_view key, std::vector<int64_t>& out) const;

  // The object under `key`, which must be there. Errors: kInvalidArgument (something else),
  // kCorrupt (a key twice).
  Result<HfSection> Object(std::string_view key) const;

 private:
  struct Impl;
  HfSection(std::string name, std::unique_ptr<Impl> impl);
  Status CheckKeys() const;

  std::string name_;
  std::unique_ptr<Impl> impl_;
};

}  // namespace octavo
