#include "octavo/cli/conformance_dir.h"

#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/convert/conformance_kit.h"

namespace octavo {

Result<bool> RunConformanceDir(const ConformanceDirFlags& flags) {
  ASSIGN_OR_RETURN(const KitReport report, JudgeQuantizer(flags.kit, flags.dir));
  PrintLine(flags.json ? KitJson(report) : KitText(report));
  return report.Passed();
}

}  // namespace octavo
