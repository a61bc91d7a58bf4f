#pragma once
// The half of `octavo conformance` that judges a folder of another quantizer's output.

#include <string>

#include "octavo/base/status.h"

namespace octavo {

struct ConformanceDirFlags {
  std::string dir;                  // The output; empty when --matching was given instead.
  std::string kit = "conformance";  // The kit's folder.
  bool json = false;
};

// Prints the report; false when a byte is another one. Errors: those of JudgeQuantizer.
Result<bool> RunConformanceDir(const ConformanceDirFlags& flags);

}  // namespace octavo
