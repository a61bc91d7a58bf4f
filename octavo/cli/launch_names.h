#pragma once
// Flags of SGLang's launcher that are no options here, in three kinds.

#include <span>
#include <string_view>

namespace octavo {

// Those that tune what does not exist here, or switch on what requests are refused for by name:
// ignored, and named together in one warning. Names separated by white space, by how many values
// follow: none, one, one or more.
std::string_view IgnoredSwitches();
std::string_view IgnoredOptions();
std::string_view IgnoredLists();

// Those whose only acceptable values ask for what happens anyway.
struct FixedFlag {
  std::string_view names;   // "--tp,--tp-size"
  std::string_view values;  // Separated by spaces; the first is in the message.
  std::string_view reason;
};
std::span<const FixedFlag> FixedFlags();

// Those that would be missed in the output or in the safety of the server if they were ignored.
struct RefusedFlag {
  std::string_view name;
  bool takes_value;
  std::string_view reason;
};
std::span<const RefusedFlag> RefusedFlags();

}  // namespace octavo
