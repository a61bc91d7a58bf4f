#pragma once
// Lists whose entries are names or, behind "re:", expressions: compressed-tensors and its kin.

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/name_pattern.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

// How an entry without "re:" is compared.
enum class PlainTest {
  kEqual,
  kContainsIgnoringCase,  // The entry occurs in the name, ASCII case aside.
};

// How an entry becomes an expression.
enum class EntryForm {
  kMarked,     // Behind "re:"; every other entry is a name.
  kAlways,     // The whole entry is one.
  kStarsOnly,  // ModelOpt: '.' is plain, '*' is any run; the rest keeps its meaning.
};

// One entry, and its expression when it is one.
struct ListedName {
  IgnoreEntry entry;
  std::shared_ptr<const NamePattern> pattern;  // Null for a plain name and a broken expression.
  std::string broken;  // Not empty: what the reference raises when it comes to this entry.
};

// Errors: kUnsupported for an expression that is well formed but not read here, by construct. One
// that the reference itself cannot compile is no error here: it stands in `broken`.
Result<std::vector<ListedName>> CompileNames(std::span<const IgnoreEntry> entries, EntryForm form);

// The first entry that fits `name`; expressions match from its start.
NameHit FirstHit(std::span<const ListedName> names, std::string_view name, PlainTest test);

// Each text as its own original.
std::vector<IgnoreEntry> AsWritten(std::span<const std::string> texts);

bool ContainsIgnoringCase(std::string_view text, std::string_view part);

}  // namespace octavo
