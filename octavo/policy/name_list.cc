#include "octavo/policy/name_list.h"

#include <algorithm>
#include <cctype>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/name_pattern.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kMark = "re:";

// The expression of an entry, empty when it is a plain name.
std::string ExpressionOf(std::string_view text, EntryForm form) {
  switch (form) {
    case EntryForm::kMarked:
      return text.starts_with(kMark) ? std::string(text.substr(kMark.size())) : std::string();
    case EntryForm::kAlways:
      return std::string(text);
    case EntryForm::kStarsOnly:
      return ReplaceAll(ReplaceAll(text, ".", "\\."), "*", ".*");
  }
  return {};
}

bool IsExpression(std::string_view text, EntryForm form) {
  return form != EntryForm::kMarked || text.starts_with(kMark);
}

}  // namespace

bool ContainsIgnoringCase(std::string_view text, std::string_view part) {
  return !std::ranges::search(text, part,
                              [](char a, char b) {
                                return std::tolower(static_cast<unsigned char>(a)) ==
                                       std::tolower(static_cast<unsigned char>(b));
                              })
              .empty() ||
         part.empty();
}

std::vector<IgnoreEntry> AsWritten(std::span<const std::string> texts) {
  std::vector<IgnoreEntry> entries;
  entries.reserve(texts.size());
  for (const std::string& text : texts) {
    entries.push_back({text, text});
  }
  return entries;
}

Result<std::vector<ListedName>> CompileNames(std::span<const IgnoreEntry> entries, EntryForm form) {
  std::vector<ListedName> names;
  names.reserve(entries.size());
  for (const IgnoreEntry& entry : entries) {
    ListedName name{.entry = entry, .pattern = nullptr, .broken = {}};
    if (IsExpression(entry.text, form)) {
      Result<NamePattern> pattern = NamePattern::Compile(ExpressionOf(entry.text, form));
      if (pattern.has_value()) {
        name.pattern = std::make_shared<const NamePattern>(std::move(pattern).value());
      } else if (pattern.error().code() == StatusCode::kInvalidArgument) {
        name.broken = pattern.error().message();
      } else {
        return pattern.error();
      }
    }
    names.push_back(std::move(name));
  }
  return names;
}

NameHit FirstHit(std::span<const ListedName> names, std::string_view name, PlainTest test) {
  for (const ListedName& listed : names) {
    if (!listed.broken.empty()) {
      return {.error = listed.broken};
    }
    const std::string& text = listed.entry.text;
    if (listed.pattern != nullptr) {
      if (listed.pattern->MatchesStart(name)) {
        return {true, MatchRule::kExpression, listed.entry.original};
      }
    } else if (test == PlainTest::kEqual) {
      if (text == name) {
        return {true, MatchRule::kEqual, listed.entry.original};
      }
    } else if (ContainsIgnoringCase(name, text)) {
      return {true, MatchRule::kSubstring, listed.entry.original};
    }
  }
  return {};
}

}  // namespace octavo
