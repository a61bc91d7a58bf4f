#include "octavo/cli/conformance_dir.h"

#include <filesystem>
#include <system_error>

#include "octavo/base/status.h"
#include "octavo/cli/commands.h"
#include "octavo/convert/conformance_kit.h"

namespace octavo {

Result<bool> RunConformanceDir(const ConformanceDirFlags& flags) {
  std::error_code error;
  if (!std::filesystem::exists(std::filesystem::path(flags.kit) / "cases.json", error)) {
    return NotFound("{}: expected the conformance kit (cases.json); --kit names its folder",
                    flags.kit);
  }
  ASSIGN_OR_RETURN(const KitReport report, JudgeQuantizer(flags.kit, flags.dir));
  PrintLine(flags.json ? KitJson(report) : KitText(report));
  return report.Passed();
}

}  // namespace octavo
