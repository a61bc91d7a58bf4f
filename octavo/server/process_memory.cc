#include "octavo/server/process_memory.h"

#include <charconv>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/file.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

// The figure of a line such as "RssAnon:      1234 kB", in bytes; 0 when there is none.
int64_t BytesOf(std::string_view status, std::string_view key) {
  const size_t line = status.find(key);
  if (line == std::string_view::npos) {
    return 0;
  }
  const size_t digits = status.find_first_of("0123456789", line + key.size());
  int64_t kib = 0;
  if (digits != std::string_view::npos) {
    std::from_chars(status.data() + digits, status.data() + status.size(), kib);
  }
  return kib * 1024;
}

}  // namespace

ProcessMemory ReadProcessMemory() {
  const Result<std::string> status = ReadTextFile("/proc/self/status");
  if (!status.has_value()) {
    return {};
  }
  return {.anonymous_bytes = BytesOf(*status, "\nRssAnon:"),
          .file_bytes = BytesOf(*status, "\nRssFile:"),
          .shared_bytes = BytesOf(*status, "\nRssShmem:")};
}

}  // namespace octavo
