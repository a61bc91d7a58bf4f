// Method: a checkpoint of three weights in two files, and versions of it published as trainers do,
// with zstd and xxHash called by the test itself. The folder that is pulled into must hold the
// bytes of a checkpoint written directly; after each fault, every byte that it held before.

#include "octavo/sync/pull_weights.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/file.h>
#include <unistd.h>
#include <zstd.h>

#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/hash.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/sync/checksum.h"
#include "octavo/sync/test_util.h"
#include "octavo/sync/weight_delta.h"

namespace octavo {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

using Weights = std::map<std::string, std::string>;  // Name -> bytes.

std::string Compress(const std::string& text) {
  std::string frame(ZSTD_compressBound(text.size()), '\0');
  frame.resize(ZSTD_compress(frame.data(), frame.size(), text.data(), text.size(), 1));
  return frame;
}

std::string XorDiff(const std::string& old_bytes, std::string bytes) {
  for (size_t i = 0; i < bytes.size(); ++i) {
    bytes[i] = static_cast<char>(bytes[i] ^ old_bytes[i]);
  }
  return bytes;
}

std::string OverwriteDiff(const std::string& old_bytes, const std::string& bytes) {
  std::string positions;
  std::string values;
  for (uint32_t i = 0; i < bytes.size(); ++i) {
    if (bytes[i] != old_bytes[i]) {
      positions.append(reinterpret_cast<const char*>(&i), sizeof(i));
      values += bytes[i];
    }
  }
  const auto count = static_cast<uint32_t>(values.size());
  return std::string(reinterpret_cast<const char*>(&count), sizeof(count)) + positions + values;
}

std::string SafetensorsFileText(const Weights& tensors, const std::string& metadata) {
  std::string header = "{" + metadata;
  std::string buffer;
  for (const auto& [name, bytes] : tensors) {
    header += fmt::format("{}\"{}\":{{\"dtype\":\"U8\",\"shape\":[{}],\"data_offsets\":[{},{}]}}",
                          header.size() > 1 ? "," : "", name, bytes.size(), buffer.size(),
                          buffer.size() + bytes.size());
    buffer += bytes;
  }
  header += "}";
  const uint64_t length = header.size();
  return std::string(reinterpret_cast<const char*>(&length), sizeof(length)) + header + buffer;
}

// How a version is published; each field is something that can be wrong.
struct Published {
  std::string encoding = "xor";
  std::string checksum = "xxh3-128";
  std::string compression = "zstd";
  std::string version = {};  // Empty: the right one.
  std::string base = {};
  std::string extra_in_index = {};
  bool with_checksums = true;
};

class PullTest : public ::testing::Test {
 protected:
  PullTest() : base_(Path("base")), source_(Path("source")), local_(Path("local")) {
    fs::create_directories(base_);
    fs::create_directories(source_);
    versions_.push_back(
        {{"a", std::string(100, 'a')}, {"b", std::string(7, 'b')}, {"c", std::string(300, 'c')}});
    WriteWhole(base_, versions_[0]);
    for (int step = 1; step <= 3; ++step) {  // "b" never changes; "c" does in the last step alone.
      Weights next = versions_.back();
      next["a"][static_cast<size_t>(10 * step)] = static_cast<char>('0' + step);
      if (step == 3) {
        next["c"][0] = 'x';
        next["c"][299] = 'y';
      }
      versions_.push_back(next);
    }
  }

  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  std::string VersionDir(int version) const { return WeightVersionDir(source_, version); }

  static void Write(const std::string& path, const std::string& text) {
    fs::create_directories(fs::path(path).parent_path());
    ASSERT_TRUE(WriteTextFile(path, text).ok());
  }

  // A checkpoint: two files and a configuration.
  static void WriteWhole(const std::string& dir, const Weights& weights) {
    Write(dir + "/model-1.safetensors",
          SafetensorsFileText({{"a", weights.at("a")}, {"b", weights.at("b")}}, ""));
    Write(dir + "/model-2.safetensors", SafetensorsFileText({{"c", weights.at("c")}}, ""));
    Write(dir + "/config.json", "{}");
  }

  void Publish(int version, const Published& how = {}) const {
    const Weights& before = versions_[static_cast<size_t>(version - 1)];
    const Weights& after = versions_[static_cast<size_t>(version)];
    Weights changes;
    std::string checksums;
    std::string map;
    for (const auto& [name, bytes] : after) {
      if (bytes == before.at(name)) {
        continue;
      }
      changes[name] = Compress(how.encoding == "overwrite" ? OverwriteDiff(before.at(name), bytes)
                                                           : XorDiff(before.at(name), bytes));
      const auto kind = ParseChecksumKind(how.checksum).value_or(ChecksumKind::kXxh3);
      const std::string comma = map.empty() ? "" : ",";
      checksums += fmt::format("{}\"{}\":\"{}\"", comma, name,
                               ChecksumHex(kind, std::as_bytes(std::span(bytes))));
      map += fmt::format("{}\"{}\":\"model-00000-of-00001.safetensors\"", comma, name);
    }
    const std::string metadata =
        how.with_checksums ? fmt::format("\"__metadata__\":{{{}}}", checksums) : "";
    Write(VersionDir(version) + "/model-00000-of-00001.safetensors",
          SafetensorsFileText(changes, metadata));
    Write(VersionDir(version) + "/model.safetensors.index.json",
          fmt::format(R"({{"metadata":{{"version":"{}","base_version":"{}","delta_encoding":"{}",)"
                      R"("compression_format":"{}","checksum_format":"{}"}},)"
                      R"("weight_map":{{{}{}}}}})",
                      how.version.empty() ? fmt::format("{:06}", version) : how.version,
                      how.base.empty() ? fmt::format("{:06}", version - 1) : how.base, how.encoding,
                      how.compression, how.checksum, map, how.extra_in_index));
  }

  Result<PullReport> Pull(int64_t target) const {
    return PullWeights({.local_dir = local_,
                        .base_dir = base_,
                        .source_dir = source_,
                        .target_version = target,
                        .lock_timeout_s = 0.05});
  }

  // The pulled folder is what a checkpoint of that version written directly is.
  void ExpectVersion(int version) const {
    const std::string expected = Path("expected");
    fs::remove_all(expected);
    WriteWhole(expected, versions_[static_cast<size_t>(version)]);
    auto hashes = FolderHashes(local_);
    EXPECT_EQ(*ReadTextFile(local_ + "/.weight_sync/state.json"),
              fmt::format("{{\"version\": \"{:06}\"}}", version));
    hashes.erase(".weight_sync/state.json");
    hashes.erase(".weight_sync/lock");
    EXPECT_EQ(hashes, FolderHashes(expected));
  }

  // The pull fails with this message, and the folder keeps every byte.
  void ExpectRefused(int64_t target, const std::string& message) const {
    const auto before = FolderHashes(local_);
    const auto report = Pull(target);
    ASSERT_FALSE(report.has_value()) << message;
    EXPECT_THAT(report.error().message(), HasSubstr(message));
    EXPECT_EQ(FolderHashes(local_), before);
  }

  testing_util::TemporaryFolder folder_;
  const std::string base_;
  const std::string source_;
  const std::string local_;
  std::vector<Weights> versions_;
};

TEST_F(PullTest, SeedsFromTheBaseAndPatchesStepByStep) {
  const auto base_before = FolderHashes(base_);
  ASSERT_TRUE(Pull(0).has_value());
  ExpectVersion(0);
  for (int version = 1; version <= 3; ++version) {
    Publish(version);
    const auto report = Pull(version);
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_EQ(report->from_version, version - 1);
    EXPECT_EQ(report->seed_version, -1);
    EXPECT_EQ(report->num_deltas, 1);
    EXPECT_EQ(report->num_tensors, version == 3 ? 2 : 1);
    ExpectVersion(version);
  }
  EXPECT_EQ(FolderHashes(base_), base_before);
}

TEST_F(PullTest, AFreshHostAppliesTheWholeChain) {
  Publish(1, {.encoding = "overwrite", .checksum = "adler32"});
  Publish(2, {.checksum = "blake3"});
  Publish(3, {.encoding = "overwrite"});
  const auto report = Pull(3);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->seed_version, 0);
  EXPECT_EQ(report->num_deltas, 3);
  EXPECT_EQ(report->num_tensors, 2);
  ExpectVersion(3);
}

TEST_F(PullTest, AWholeVersionReplacesWhatCameBefore) {
  ASSERT_TRUE(Pull(0).has_value());
  Write(local_ + "/model-of-another-sharding.safetensors", SafetensorsFileText({}, ""));
  WriteWhole(VersionDir(2), versions_[2]);  // Version 1 is not there and not needed.
  Publish(3);
  const auto report = Pull(3);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->seed_version, 2);
  EXPECT_EQ(report->num_deltas, 1);
  ExpectVersion(3);
}

// A trainer that begins anew: version 1 of the new run must not pass for that of the old one.
TEST_F(PullTest, AnOlderTargetBeginsAnew) {
  Publish(1);
  ASSERT_TRUE(Pull(1).has_value());
  ASSERT_TRUE(Pull(0).has_value());
  ExpectVersion(0);
  ASSERT_TRUE(Pull(1).has_value());
  ExpectVersion(1);
}

TEST_F(PullTest, ARepeatedPullDoesNothing) {
  Publish(1);
  ASSERT_TRUE(Pull(1).has_value());
  fs::remove_all(source_);
  const auto report = Pull(1);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->bytes_written, 0);
  ExpectVersion(1);
}

// As after a machine stopped between two renames: bytes of two versions, and no state.
TEST_F(PullTest, AFolderWithoutStateIsMadeAnew) {
  Publish(1);
  ASSERT_TRUE(Pull(1).has_value());
  Write(local_ + "/model-2.safetensors", "half");
  fs::remove(local_ + "/.weight_sync/state.json");
  ASSERT_TRUE(Pull(1).has_value());
  ExpectVersion(1);
}

TEST_F(PullTest, AVersionWithoutChangesIsAVersion) {
  versions_[1] = versions_[0];
  Publish(1);
  fs::remove(VersionDir(1) + "/model-00000-of-00001.safetensors");
  const auto report = Pull(1);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  ExpectVersion(1);
}

TEST_F(PullTest, EveryFaultOfAnIndexIsNamed) {
  ASSERT_TRUE(Pull(0).has_value());
  const std::pair<Published, std::string> faults[] = {
      {{.encoding = "sub"}, "delta_encoding: expected xor or overwrite, got \"sub\""},
      {{.checksum = "crc32"},
       "checksum_format: expected xxh3-128, blake3 or adler32, got \"crc32\""},
      {{.compression = "lz4"}, "compression_format: expected zstd, got \"lz4\""},
      {{.version = "000002"}, "metadata: version: expected 1, got 2"},
      {{.version = "one"}, "metadata: version: expected a number, got \"one\""},
      {{.base = "000003"}, "weight_v000001: builds on version 3, expected 0"},
      {{.extra_in_index = R"(,"d":"model-00000-of-00001.safetensors")"},
       "d: the index has it here, the file does not"},
      {{.extra_in_index = R"(,"d":"model-00001-of-00001.safetensors")"}, "00001-of-00001"},
      {{.extra_in_index = R"(,"d":"../../evil.safetensors")"}, "expected the plain name"},
      {{.with_checksums = false}, "a: expected its checksum in __metadata__, got none"},
  };
  for (const auto& [how, message] : faults) {
    Publish(1, how);
    ExpectRefused(1, message);
  }
  Write(VersionDir(1) + "/model.safetensors.index.json", "{");
  ExpectRefused(1, "model.safetensors.index.json: expected a JSON object");
  fs::remove_all(VersionDir(1));
  ExpectRefused(1, "weight_v000001: no such version has been published");
  Publish(1);
  ASSERT_TRUE(Pull(1).has_value());
  ExpectVersion(1);
}

TEST_F(PullTest, EveryFaultOfABytesFileIsNamed) {
  ASSERT_TRUE(Pull(0).has_value());
  Publish(1);
  const std::string path = VersionDir(1) + "/model-00000-of-00001.safetensors";
  const std::string good = *ReadTextFile(path);
  Write(path, good.substr(0, good.size() - 1));
  ExpectRefused(1, path);
  fs::remove(path);
  ExpectRefused(1, path);
  const auto with_frame = [&](const std::string& frame) {
    const size_t at = good.find("\"__metadata__\"");
    Write(path, SafetensorsFileText({{"a", frame}}, good.substr(at, good.find('}', at) + 1 - at)));
  };
  with_frame("no frame");
  ExpectRefused(1, "weight_v000001: a: its difference is no zstd frame");
  const std::string frame = Compress(std::string(100, '\0'));
  with_frame(frame.substr(0, frame.size() - 2));
  ExpectRefused(1, "a: its difference could not be decompressed");
  with_frame(Compress(std::string(99, '\0')));
  ExpectRefused(1, "a: its difference has 99 bytes, expected 100");
  with_frame(Compress(std::string(101, '\0')));
  ExpectRefused(1, "a: its difference has 101 bytes, expected at most 100");
  with_frame(frame);  // Changes nothing: the old bytes have another checksum.
  ExpectRefused(1, "weight_v000001: a: checksum: expected ");
  Write(path, good);
  ASSERT_TRUE(Pull(1).has_value());
  ExpectVersion(1);
}

TEST_F(PullTest, EveryFaultOfAnOverwriteIsNamed) {
  ASSERT_TRUE(Pull(0).has_value());
  Publish(1, {.encoding = "overwrite"});
  const std::string path = VersionDir(1) + "/model-00000-of-00001.safetensors";
  const std::string good = *ReadTextFile(path);
  const auto with_diff = [&](const std::string& diff) {
    const size_t at = good.find("\"__metadata__\"");
    Write(path, SafetensorsFileText({{"a", Compress(diff)}},
                                    good.substr(at, good.find('}', at) + 1 - at)));
  };
  with_diff("\x01");
  ExpectRefused(1, "a: its difference ends before its count");
  with_diff(std::string("\x02\0\0\0\x05\0\0\0x", 9));
  ExpectRefused(1, "a: its difference has 9 bytes, expected 14");
  with_diff(std::string("\x01\0\0\0\x64\0\0\0x", 9));
  ExpectRefused(1, "a: position 100 lies behind its 100 bytes");
}

// The second delta is damaged: the first is not applied either.
TEST_F(PullTest, AChainIsAppliedWholeOrNotAtAll) {
  ASSERT_TRUE(Pull(0).has_value());
  Publish(1);
  Publish(2);
  Publish(3);
  const std::string path = VersionDir(2) + "/model-00000-of-00001.safetensors";
  std::string text = *ReadTextFile(path);
  text.back() = static_cast<char>(text.back() ^ 1);
  Write(path, text);
  ExpectRefused(3, "weight_v000002");
  ExpectVersion(0);
}

// Somebody has changed the folder: what the deltas build on is not there.
TEST_F(PullTest, ABaseOfOtherBytesFailsItsChecksum) {
  ASSERT_TRUE(Pull(0).has_value());
  Weights other = versions_[0];
  other["a"][5] = '!';
  WriteWhole(local_, other);
  Publish(1);
  ExpectRefused(1, "weight_v000001: a: checksum: expected ");
  Weights without = versions_[0];
  Write(local_ + "/model-1.safetensors", SafetensorsFileText({{"b", without["b"]}}, ""));
  ExpectRefused(1, "weight_v000001: a: " + local_ + " has no such tensor");
}

// --- A fault between two renames ----------------------------------------------------------------

// Stops before the n-th rename of the pull, as a machine would.
std::function<Status(const std::string&)> StopBefore(int nth) {
  return [nth, count = 0](const std::string& name) mutable {
    return count++ == nth ? Internal("{}: stopped", name) : OkStatus();
  };
}

TEST_F(PullTest, GoesOnWhereAFaultBetweenTwoRenamesStoppedIt) {
  Publish(1);
  Publish(2);
  Publish(3);  // Changes both files; a seed renames three.
  for (const bool is_fresh : {true, false}) {
    for (int nth = 0; nth < (is_fresh ? 3 : 2); ++nth) {
      fs::remove_all(local_);
      if (!is_fresh) {
        ASSERT_TRUE(Pull(1).has_value());
      }
      EXPECT_TRUE(CheckNotSwitching(local_).ok());
      PullOptions options = {.local_dir = local_,
                             .base_dir = base_,
                             .source_dir = source_,
                             .target_version = 3,
                             .lock_timeout_s = 0.05,
                             .before_rename = StopBefore(nth)};
      const auto stopped = PullWeights(options);
      ASSERT_FALSE(stopped.has_value());
      EXPECT_THAT(stopped.error().message(), HasSubstr("the next pull goes on with them"));
      // Its files are of two versions, and nobody may take them for one.
      EXPECT_EQ(CheckNotSwitching(local_).code(), StatusCode::kUnavailable);
      EXPECT_FALSE(fs::exists(local_ + "/.weight_sync/state.json"));

      const auto report = Pull(3);
      ASSERT_TRUE(report.has_value()) << report.error().message();
      EXPECT_EQ(report->from_version, 3);  // It had only to be put in place.
      ExpectVersion(3);
      EXPECT_TRUE(CheckNotSwitching(local_).ok());
    }
  }
}

// Stopped again and again, one rename at a time, and then asked for another version.
TEST_F(PullTest, EndsAnInterruptedSwitchBeforeItBeginsAnother) {
  Publish(1);
  ASSERT_TRUE(Pull(0).has_value());
  fs::remove_all(local_);
  PullOptions options = {.local_dir = local_,
                         .base_dir = base_,
                         .source_dir = source_,
                         .target_version = 0,
                         .lock_timeout_s = 0.05};
  for (int attempt = 0; attempt < 3; ++attempt) {
    options.before_rename = StopBefore(attempt == 0 ? 0 : 1);
    ASSERT_FALSE(PullWeights(options).has_value());
  }
  const auto report = Pull(1);
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_EQ(report->from_version, 0);
  EXPECT_EQ(report->num_deltas, 1);
  ExpectVersion(1);
}

// A real fault: a folder stands where a file belongs.
TEST_F(PullTest, ARenameThatFailsIsNamedAndMended) {
  fs::create_directories(local_ + "/model-2.safetensors/in-the-way");
  const auto failed = Pull(0);
  ASSERT_FALSE(failed.has_value());
  EXPECT_THAT(failed.error().message(), HasSubstr("model-2.safetensors"));
  EXPECT_FALSE(CheckNotSwitching(local_).ok());
  EXPECT_FALSE(Pull(0).has_value());  // As long as it stands there.
  fs::remove_all(local_ + "/model-2.safetensors");
  ASSERT_TRUE(Pull(0).has_value());
  ExpectVersion(0);
}

TEST_F(PullTest, ASwitchThatNobodyWroteIsForgottenWithTheState) {
  ASSERT_TRUE(Pull(0).has_value());
  Publish(1);
  for (const char* text : {"", "[]", R"({"version": "000009", "rename": ["../x"], "keep": null})",
                           R"({"version": 9, "rename": [], "keep": null})"}) {
    Write(local_ + "/.weight_sync/switch.json", text);
    const auto report = Pull(1);
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_EQ(report->from_version, -1);
    ExpectVersion(1);
  }
}

TEST_F(PullTest, FoldersMustDiffer) {
  const auto report = PullWeights({.local_dir = base_, .base_dir = base_, .source_dir = source_});
  EXPECT_THAT(report.error().message(), HasSubstr("is also read from"));
  EXPECT_THAT(Pull(-1).error().message(), HasSubstr("expected 0 or more, got -1"));
}

TEST_F(PullTest, ALockThatAnotherEngineHoldsIsWaitedForAndNamed) {
  ASSERT_TRUE(Pull(0).has_value());
  Publish(1);
  const int fd = open((local_ + "/.weight_sync/lock").c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_EQ(flock(fd, LOCK_EX), 0);
  const auto report = Pull(1);
  EXPECT_EQ(report.error().code(), StatusCode::kUnavailable);
  close(fd);
  ASSERT_TRUE(Pull(1).has_value());
}

// RFC 1950 gives no vector; zlib.adler32(b"Wikipedia") is the usual one, and of 6000 bytes of 255
// the sums pass the modulus more than once.
TEST(Checksum, Adler32IsThatOfZlib) {
  const auto adler = [](const std::string& text) {
    return ChecksumHex(ChecksumKind::kAdler32, std::as_bytes(std::span(text)));
  };
  EXPECT_EQ(adler(""), "00000001");
  EXPECT_EQ(adler("Wikipedia"), "11e60398");
  EXPECT_EQ(adler(std::string(6000, '\xff')), "a49759ea");
}

// The official vectors: byte i is i mod 251; sizes around a block, a chunk and whole subtrees.
TEST(Checksum, Blake3HasItsVectors) {
  const std::pair<size_t, std::string> vectors[] = {
      {0, "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"},
      {1, "2d3adedff11b61f14c886e35afa036736dcd87a74d27b5c1510225d0f592e213"},
      {64, "4eed7141ea4a5cd4b788606bd23f46e212af9cacebacdc7d1f4c6dc7f2511b98"},
      {1024, "42214739f095a406f3fc83deb889744ac00df831c10daa55189b5d121c855af7"},
      {1025, "d00278ae47eb27b34faecf67b4fe263f82d5412916c1ffd97c8cb7fb814b8444"},
      {2048, "e776b6028c7cd22a4d0ba182a8bf62205d2ef576467e838ed6f2529b85fba24a"},
      {3073, "7124b49501012f81cc7f11ca069ec9226cecb8a2c850cfe644e327d22d3e1cd3"},
      {5120, "9cadc15fed8b5d854562b26a9536d9707cadeda9b143978f319ab34230535833"},
      {31744, "62b6960e1a44bcc1eb1a611a8d6235b6b4b78f32e7abc4fb4c6cdcce94895c47"},
  };
  for (const auto& [size, expected] : vectors) {
    std::string text;
    for (size_t i = 0; i < size; ++i) {
      text.push_back(static_cast<char>(i % 251));
    }
    EXPECT_EQ(ChecksumHex(ChecksumKind::kBlake3, std::as_bytes(std::span(text))), expected) << size;
  }
}

}  // namespace
}  // namespace octavo
