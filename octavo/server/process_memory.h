#pragma once
// How much memory this process has.

#include <cstdint>

namespace octavo {

// Resident bytes by kind; all 0 where /proc/self/status cannot be read.
struct ProcessMemory {
  int64_t anonymous_bytes = 0;  // RssAnon: what no file backs.
  int64_t file_bytes = 0;       // RssFile.
  int64_t shared_bytes = 0;     // RssShmem.
};
ProcessMemory ReadProcessMemory();

}  // namespace octavo
