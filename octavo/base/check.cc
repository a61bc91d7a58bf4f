#include "octavo/base/check.h"

#include <cstdio>
#include <cstdlib>
#include <string_view>

namespace octavo {

void FailCheck(const char* file, int line, std::string_view condition, std::string_view detail) {
  fmt::print(stderr, "{}:{}: check failed: {}{}{}{}\n", file, line, condition,
             detail.empty() ? "" : " (", detail, detail.empty() ? "" : ")");
  std::fflush(stderr);
  std::abort();
}

}  // namespace octavo
