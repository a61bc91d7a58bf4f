#pragma once
// The parts of Audit (audit.h). Each appends its findings.

#include <string>
#include <string_view>

#include "octavo/convert/audit.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

AuditFinding MakeFinding(std::string_view code, std::string_view severity, std::string_view tensor,
                         std::string message, std::string_view cure);

// Shapes, codes and scales of the row as stored. Tensors that are missing or of another dtype are
// the business of CheckStoredDTypes and are passed over.
void CheckStoredValues(const Checkpoint& checkpoint, const PrecisionRow& row, ThreadPool* pool,
                       AuditReport& report);

// Every row transformed again from `source` and compared with what is stored.
void CheckAgainstSource(const Checkpoint& checkpoint, const Checkpoint& source,
                        const ModelSpec& spec, const PrecisionTable& table, ThreadPool* pool,
                        AuditReport& report);

}  // namespace octavo
