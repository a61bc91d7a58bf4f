// Method: files written with zlib, whole and cut off, and one that is not compressed.

#include "octavo/base/gzip.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <zlib.h>

#include <filesystem>
#include <fstream>
#include <ios>
#include <string>

#include "octavo/base/status.h"

namespace octavo {
namespace {

using testing::HasSubstr;

std::string TestPath(const std::string& name) { return testing::TempDir() + "gzip_test_" + name; }

std::string WriteGzip(const std::string& name, const std::string& text) {
  const std::string path = TestPath(name);
  const gzFile file = gzopen(path.c_str(), "wb");
  EXPECT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())),
            static_cast<int>(text.size()));
  EXPECT_EQ(gzclose(file), Z_OK);
  return path;
}

TEST(ReadTextOrGzip, GivesWhatWasCompressed) {
  std::string text;
  for (int i = 0; i < 50000; ++i) {
    text += std::to_string(i);
  }
  const std::string path = WriteGzip("whole", text);
  EXPECT_LT(std::filesystem::file_size(path), text.size());
  EXPECT_EQ(ReadTextOrGzip(path).value(), text);
}

TEST(ReadTextOrGzip, GivesOtherFilesAsTheyAre) {
  const std::string path = TestPath("plain");
  std::ofstream(path) << "plain\n";
  EXPECT_EQ(ReadTextOrGzip(path).value(), "plain\n");
}

TEST(ReadTextOrGzip, RefusesAFileThatIsCutOffOrDamaged) {
  const std::string path = WriteGzip("cut", std::string(1000, 'x') + "end");
  std::fstream(path, std::ios::in | std::ios::out).seekp(12).put('\x55');
  EXPECT_EQ(ReadTextOrGzip(path).error().code(), StatusCode::kCorrupt);
  const std::string cut = WriteGzip("cut", "some text that is compressed");
  std::filesystem::resize_file(cut, std::filesystem::file_size(cut) - 9);
  EXPECT_EQ(ReadTextOrGzip(cut).error().code(), StatusCode::kCorrupt);
  EXPECT_THAT(ReadTextOrGzip(cut).error().message(), HasSubstr("gzip_test_cut"));
}

TEST(ReadTextOrGzip, NamesAMissingFile) {
  const Result<std::string> text = ReadTextOrGzip("no/such/file.gz");
  EXPECT_EQ(text.error().code(), StatusCode::kNotFound);
  EXPECT_THAT(text.error().message(), HasSubstr("no/such/file.gz"));
}

}  // namespace
}  // namespace octavo
