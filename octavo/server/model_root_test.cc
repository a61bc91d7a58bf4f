// Method: a small tree of folders and links in a temporary folder; each way out of the root once.

#include "octavo/server/model_root.h"

#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "octavo/base/status.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;

class ModelRoot : public testing::Test {
 protected:
  ModelRoot() {
    base_ = fs::canonical(fs::temp_directory_path()) /
            ("octavo-root-" + std::to_string(testing::UnitTest::GetInstance()->random_seed()) +
             "-" + testing::UnitTest::GetInstance()->current_test_info()->name());
    fs::remove_all(base_);
    fs::create_directories(base_ / "root/model/sub");
    fs::create_directories(base_ / "root/blobs");
    fs::create_directories(base_ / "root2");
    std::ofstream(base_ / "root/blobs/weights") << "x";
    std::ofstream(base_ / "secret") << "x";
  }
  ~ModelRoot() override { fs::remove_all(base_); }

  std::string Path(const std::string& name) const { return (base_ / name).string(); }
  Result<std::string> Resolve(const std::string& path) const {
    return ResolveBelow(Path("root"), path);
  }

  fs::path base_;
};

TEST_F(ModelRoot, LetsPassWhatLiesBelow) {
  EXPECT_EQ(Resolve(Path("root/model")).value(), Path("root/model"));
  EXPECT_EQ(Resolve(Path("root/model/../model/sub/..")).value(), Path("root/model"));
  EXPECT_EQ(Resolve(Path("root")).value(), Path("root"));
}

TEST_F(ModelRoot, FollowsLinksThatStayBelow) {
  fs::create_symlink("../blobs/weights", base_ / "root/model/model.safetensors");
  fs::create_directory_symlink("model", base_ / "root/latest");
  EXPECT_EQ(Resolve(Path("root/latest")).value(), Path("root/model"));
}

TEST_F(ModelRoot, RefusesEveryWayOut) {
  fs::create_directory_symlink(base_ / "root2", base_ / "root/out");
  for (const std::string& path :
       {Path("root/../root2"), Path("root2"), Path("root/out"), Path("secret"), std::string("/"),
        std::string(), std::string("."), Path("root/none"), std::string("\0x", 2)}) {
    const Result<std::string> resolved = Resolve(path);
    ASSERT_FALSE(resolved.has_value()) << path;
    EXPECT_EQ(resolved.error().code(), StatusCode::kInvalidArgument);
    EXPECT_NE(resolved.error().message().find(Path("root")), std::string::npos);
  }
}

TEST_F(ModelRoot, RefusesAFolderWhoseFilesLeadOut) {
  fs::create_symlink("../../secret", base_ / "root/model/config.json");
  const Result<std::string> resolved = Resolve(Path("root/model"));
  ASSERT_FALSE(resolved.has_value());
  EXPECT_NE(resolved.error().message().find("config.json"), std::string::npos);
}

TEST_F(ModelRoot, RefusesADanglingLinkInside) {
  fs::create_symlink("nothing", base_ / "root/model/sub/shard");
  EXPECT_FALSE(Resolve(Path("root/model")).has_value());
}

TEST_F(ModelRoot, WithoutARootTakesEveryPathAsItIs) {
  EXPECT_EQ(ResolveBelow("", "../anything").value(), "../anything");
}

TEST_F(ModelRoot, ARootIsAFolderThatExists) {
  fs::create_directory_symlink("root", base_ / "link");
  EXPECT_EQ(CanonicalFolder(Path("link")).value(), Path("root"));
  EXPECT_FALSE(CanonicalFolder(Path("secret")).has_value());
  EXPECT_FALSE(CanonicalFolder(Path("none")).has_value());
}

}  // namespace
}  // namespace octavo
