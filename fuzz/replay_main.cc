// Runs a fuzz target once over every file of the folders it is given: the corpus as a regression
// test, in builds that have no libFuzzer.

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <string>
#include <system_error>
#include <vector>

#include "octavo/base/file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes);

namespace {

// Sorted, so that a crash comes at the same place in every run.
std::vector<std::string> FilesOf(const char* dir) {
  std::vector<std::string> files;
  std::error_code error;
  std::filesystem::directory_iterator it(dir, error);
  for (; !error && it != std::filesystem::directory_iterator(); it.increment(error)) {
    files.push_back(it->path().string());
  }
  std::sort(files.begin(), files.end());
  return files;
}

}  // namespace

int main(int argc, char** argv) {
  size_t num_inputs = 0;
  for (int i = 1; i < argc; ++i) {
    for (const std::string& file : FilesOf(argv[i])) {
      const auto input = octavo::ReadTextFile(file);
      if (!input.has_value()) {
        fmt::print(stderr, "{}\n", input.error().message());
        return 1;
      }
      // Said before the run, so that a crash names its input.
      fmt::print("{}\n", file);
      std::fflush(stdout);
      LLVMFuzzerTestOneInput(reinterpret_cast<const uint8_t*>(input->data()), input->size());
      ++num_inputs;
    }
  }
  if (num_inputs == 0) {
    fmt::print(stderr, "expected folders that hold seeds, found no input\n");
    return 1;
  }
  return 0;
}
