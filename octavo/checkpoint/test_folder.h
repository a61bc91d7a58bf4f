#pragma once
// For the tests of this component: a folder of a test's own, and files made byte by byte.

#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"

namespace octavo {

// The folder is made anew for each test and removed with it.
class FolderTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const ::testing::TestInfo* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = ::testing::TempDir() + "/octavo_" + std::to_string(getpid()) + "_" +
           info->test_suite_name() + "_" + info->name();
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  void TearDown() override { std::filesystem::remove_all(dir_); }

  const std::string& dir() const { return dir_; }
  std::string Path(std::string_view name) const { return dir_ + "/" + std::string(name); }

  // Writes a file; folders in front of it are made.
  void Put(std::string_view name, std::string_view text) const {
    std::filesystem::create_directories(std::filesystem::path(Path(name)).parent_path());
    ASSERT_TRUE(WriteTextFile(Path(name), text).ok());
  }

  // Names of what lies in the folder, sorted.
  std::vector<std::string> Names() const {
    std::vector<std::string> names;
    for (const auto& entry : std::filesystem::directory_iterator(dir_)) {
      names.push_back(entry.path().filename().string());
    }
    std::sort(names.begin(), names.end());
    return names;
  }

 private:
  std::string dir_;
};

// A safetensors file: the length of `header`, `header`, and `num_buffer_bytes` bytes 0, 1, 2, ...
inline std::string SafetensorsText(std::string_view header, size_t num_buffer_bytes) {
  const uint64_t num_header_bytes = header.size();
  std::string text(sizeof(num_header_bytes), '\0');
  std::memcpy(text.data(), &num_header_bytes, sizeof(num_header_bytes));
  text += header;
  for (size_t i = 0; i < num_buffer_bytes; ++i) {
    text += static_cast<char>(i);
  }
  return text;
}

}  // namespace octavo
