// Method: a folder of the test's own, opened again and again as by restarted servers.

#include "octavo/sync/version_record.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <memory>
#include <string>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/sync/test_util.h"

namespace octavo {
namespace {

using testing::HasSubstr;
using testing_util::TemporaryFolder;

std::unique_ptr<VersionRecord> Open(const std::string& dir) {
  auto record = VersionRecord::Open(dir);
  EXPECT_TRUE(record.has_value()) << record.error().message();
  return record.has_value() ? std::move(record).value() : nullptr;
}

TEST(NextVersion, CountsNumbersAndExtendsText) {
  EXPECT_EQ(NextVersion(""), "1");
  EXPECT_EQ(NextVersion("9"), "10");
  EXPECT_EQ(NextVersion("step"), "step.1");
  EXPECT_EQ(NextVersion("18446744073709551615"), "18446744073709551615.1");
}

TEST(VersionRecord, RefusesWhatIsNotAboveTheLastNumberAfterARestartToo) {
  const TemporaryFolder folder;
  const std::string dir = folder.path() + "/a/b";
  auto record = Open(dir);
  EXPECT_FALSE(record->last().has_value());
  EXPECT_TRUE(record->CheckNext("1", "0").ok());
  EXPECT_THAT(record->CheckNext("4", "5").message(), HasSubstr("above 5, which is live"));
  ASSERT_TRUE(record->Write("9", "d9").ok());
  ASSERT_TRUE(record->Write("text", "dt").ok());  // Leaves the number as it is.
  record = nullptr;
  record = Open(dir);
  EXPECT_EQ(record->last(), "text");
  for (const char* version : {"0", "8", "9"}) {
    EXPECT_THAT(record->CheckNext(version, "0").message(), HasSubstr("above 9")) << version;
  }
  EXPECT_TRUE(record->CheckNext("10", "0").ok());
  EXPECT_TRUE(record->CheckNext("other text", "0").ok());
  EXPECT_EQ(record->Newest("0"), "9");
  EXPECT_EQ(record->Newest("12"), "12");
}

TEST(VersionRecord, ReadmitsItsOwnVersionWithItsOwnWeightsAlone) {
  const TemporaryFolder folder;
  const auto record = Open(folder.path());
  ASSERT_TRUE(record->Write("9", "d9").ok());
  EXPECT_THAT(record->Readmit("8", "d8").message(), HasSubstr("committed 9"));
  EXPECT_THAT(record->Readmit("9", "other").message(), HasSubstr("d9"));
  EXPECT_FALSE(record->CheckNext("9", "").ok());
  ASSERT_TRUE(record->Readmit("9", "d9").ok());
  EXPECT_TRUE(record->CheckNext("9", "").ok());
  ASSERT_TRUE(record->Write("9", "d9").ok());
  EXPECT_FALSE(record->CheckNext("9", "").ok());  // Once.
  EXPECT_TRUE(record->Readmit("12", "d12").ok());
}

TEST(VersionRecord, HasItsFolderForItself) {
  const TemporaryFolder folder;
  auto record = Open(folder.path());
  EXPECT_EQ(VersionRecord::Open(folder.path()).error().code(), StatusCode::kUnavailable);
  record = nullptr;
  EXPECT_NE(Open(folder.path()), nullptr);
}

TEST(VersionRecord, RefusesAFileThatIsNotItsOwnAndSaysWhenItCannotWrite) {
  const TemporaryFolder folder;
  const std::string path = folder.path() + "/weight_version.json";
  for (const char* text : {"", "{}", "[1]", R"({"weight_version":"1","weight_digest":"d"})",
                           R"({"weight_version":"1","weight_digest":"d","number":1})",
                           R"({"weight_version":1,"weight_digest":"d","number":"1"})"}) {
    ASSERT_TRUE(WriteTextFile(path, text).ok());
    const auto record = VersionRecord::Open(folder.path());
    EXPECT_EQ(record.error().code(), StatusCode::kCorrupt) << text;
    EXPECT_THAT(record.error().message(), HasSubstr(path));
  }
  std::filesystem::remove(path);
  const auto record = Open(folder.path());
  std::filesystem::create_directory(path);
  EXPECT_THAT(record->Write("1", "d").message(), HasSubstr(path));
  EXPECT_FALSE(record->last().has_value());
}

}  // namespace
}  // namespace octavo
