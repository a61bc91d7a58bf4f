#pragma once
// Every code that an audit may give: docs/audit.md shows this table, and a test compares the two.

#include <span>
#include <string>
#include <string_view>

#include "octavo/convert/audit.h"

namespace octavo {

struct AuditCode {
  std::string_view code;
  std::string_view severity;  // "error", "warning" or "info".
  std::string_view meaning;
  std::string_view cure;
};

// In the order of the documentation.
std::span<const AuditCode> AuditCodes();

// A finding with the severity and the cure of its code, which must be in the table. `tensor` is
// what it is about: a tensor, a module, a file or a key of the configuration.
AuditFinding MakeFinding(std::string_view code, std::string_view tensor, std::string message);

}  // namespace octavo
