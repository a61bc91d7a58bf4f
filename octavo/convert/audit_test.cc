// Method: converted checkpoints that pass, then one damage at a time, each seen by its own code and
// nothing else; with the source at hand a single changed byte is found.

#include "octavo/convert/audit.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/convert.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr char kUp0[] = "model.layers.0.mlp.up_proj.weight";
constexpr char kKept[] = "model.layers.2.mlp.up_proj.weight";

// `text` with its first `from` replaced.
std::string Replaced(std::string text, std::string_view from, std::string_view to) {
  const size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  return place == std::string::npos ? text : text.replace(place, from.size(), to);
}

class AuditTest : public ::testing::Test {
 protected:
  void SetUp() override {
    weights_ = RandomWeights(TestSpec());
    WriteTestCheckpoint(Source(), weights_);
    MustConvert(Source(), folder_.Path("fp8"));
    Reload(folder_.Path("fp8"));
  }

  std::string Source() const { return folder_.Path("source"); }
  std::string Out() const { return folder_.Path("damaged"); }

  void MustConvert(const std::string& in, const std::string& out) {
    const auto checkpoint = Checkpoint::Open(in);
    const auto spec = MakeModelSpec(checkpoint->config());
    const auto table = CompilePolicy(
        *spec, {.format = WeightFormat::kFp8, .keep_first = 0, .keep_last = 1, .keep = {}});
    const auto report = ConvertCheckpoint(
        *checkpoint, *spec, *table,
        {.out_dir = out, .num_threads = 1, .resume = false, .progress = std::nullopt});
    ASSERT_TRUE(report.has_value()) << report.error().message();
  }

  // Takes the tensors and the config of a checkpoint into memory, to be damaged.
  void Reload(const std::string& dir) {
    const auto checkpoint = Checkpoint::Open(dir);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    stored_.clear();
    for (const StoredTensor& tensor : checkpoint->tensors()) {
      const auto bytes = tensor.view.Bytes();
      stored_[tensor.name] = {tensor.view.dtype, tensor.view.shape, {bytes.begin(), bytes.end()}};
    }
    config_ = checkpoint->config().config_json;
  }

  // Writes what is in memory and audits it.
  AuditReport AuditStored(const std::string& against = "") {
    std::filesystem::remove_all(Out());
    WriteTestCheckpoint(Out(), stored_, 2, config_);
    const auto report = AuditFolder(Out(), against, nullptr);
    EXPECT_TRUE(report.has_value()) << report.error().message();
    return *report;
  }

  static std::vector<std::string> Codes(const AuditReport& report) {
    std::vector<std::string> codes;
    codes.reserve(report.findings.size());
    for (const AuditFinding& finding : report.findings) {
      codes.push_back(finding.code);
    }
    return codes;
  }

  TestFolder folder_;
  TestTensors weights_;
  TestTensors stored_;
  std::string config_;
};

TEST_F(AuditTest, FindsNothingInWhatTheConverterWrote) {
  ThreadPool pool(2);
  for (const std::string& against : {std::string(), Source()}) {
    const auto report = AuditFolder(folder_.Path("fp8"), against, &pool);
    ASSERT_TRUE(report.has_value()) << report.error().message();
    EXPECT_THAT(Codes(*report), IsEmpty()) << AuditText(*report);
    EXPECT_TRUE(report->Passed());
    EXPECT_EQ(report->compared, !against.empty());
    EXPECT_EQ(report->num_quantized, 2 * 7);
    EXPECT_NEAR(report->worst_relative_rms, against.empty() ? 0.0 : 0.0265, 0.002);
  }
  EXPECT_THAT(Codes(AuditStored(Source())), IsEmpty());
}

TEST_F(AuditTest, AnUnquantizedCheckpointPassesWithoutIndex) {
  const auto report = AuditFolder(Source(), Source(), nullptr);
  ASSERT_TRUE(report.has_value());
  EXPECT_THAT(Codes(*report), IsEmpty());
  EXPECT_TRUE(report->Passed());
  EXPECT_EQ(report->num_quantized, 0);
  // Several files need one.
  WriteTestCheckpoint(folder_.Path("several"), stored_, 2, config_);
  std::filesystem::remove(folder_.Path("several") + "/model.safetensors.index.json");
  const auto several = AuditFolder(folder_.Path("several"), "", nullptr);
  ASSERT_TRUE(several.has_value());
  EXPECT_THAT(Codes(*several), ElementsAre("index-missing"));
}

TEST_F(AuditTest, SeesAFlippedBitOnlyAgainstTheSource) {
  stored_.at(kUp0).bytes[5 * 160 + 9] ^= std::byte{1};
  EXPECT_THAT(Codes(AuditStored()), IsEmpty());
  const AuditReport report = AuditStored(Source());
  ASSERT_THAT(Codes(report), ElementsAre("differs"));
  EXPECT_EQ(report.findings[0].tensor, kUp0);
  EXPECT_THAT(report.findings[0].message, HasSubstr("element at [5, 9]"));
  EXPECT_FALSE(report.Passed());
}

TEST_F(AuditTest, SeesAChangedScaleAndAChangedKeptWeightAgainstTheSource) {
  stored_.at(std::string(kUp0) + "_scale_inv").bytes[4] ^= std::byte{1};
  stored_.at(kKept).bytes[7] ^= std::byte{1};
  const AuditReport report = AuditStored(Source());
  ASSERT_THAT(Codes(report), ElementsAre("differs", "differs"));
  EXPECT_THAT(report.findings[0].message, HasSubstr("weight_scale_inv: not what the source gives: "
                                                    "byte 0 of the element at [0, 1]"));
  EXPECT_THAT(report.findings[1].message, HasSubstr("byte 1 of the element at [0, 3]"));
}

TEST_F(AuditTest, SeesNanCodes) {
  stored_.at(kUp0).bytes[161] = std::byte{0xFF};
  const AuditReport report = AuditStored();
  ASSERT_THAT(Codes(report), ElementsAre("nan-code"));
  EXPECT_THAT(report.findings[0].message, HasSubstr("got 1 NaN codes, the first at [1, 1]"));
}

TEST_F(AuditTest, SeesScalesThatAreNotFiniteAndPositive) {
  const std::string scale = std::string(kUp0) + "_scale_inv";
  for (const uint32_t bits : {0U, 0x80000000U, 0xBF800000U, 0x7F800000U, 0x7FC00000U}) {
    std::memcpy(&stored_.at(scale).bytes[8], &bits, sizeof(bits));
    const AuditReport report = AuditStored();
    ASSERT_THAT(Codes(report), ElementsAre("scale-value")) << bits;
    EXPECT_EQ(report.findings[0].tensor, scale);
    EXPECT_THAT(report.findings[0].message, HasSubstr("at [1, 0]"));
  }
}

TEST_F(AuditTest, SuspectsScalesThatDivide) {
  TestTensor& scales = stored_.at(std::string(kUp0) + "_scale_inv");
  for (size_t i = 0; i < scales.bytes.size(); i += sizeof(float)) {
    float value = 0.0F;
    std::memcpy(&value, &scales.bytes[i], sizeof(value));
    value = 1.0F / value;
    std::memcpy(&scales.bytes[i], &value, sizeof(value));
  }
  EXPECT_THAT(Codes(AuditStored()), ElementsAre("scale-inverted"));
  EXPECT_THAT(Codes(AuditStored(Source())),
              UnorderedElementsAre("differs", "scale-inverted", "rms-error"));
}

TEST_F(AuditTest, SeesMissingAndMisshapenTensors) {
  const std::string scale = std::string(kUp0) + "_scale_inv";
  const TestTensor saved = stored_.at(scale);
  stored_.erase(scale);
  // Engines, too, find the module in a form that they do not build.
  EXPECT_THAT(Codes(AuditStored()),
              UnorderedElementsAre("scale-missing", "engine-differs", "engine-differs-other"));
  stored_[scale] = saved;
  std::swap(stored_.at(scale).shape[0], stored_.at(scale).shape[1]);
  EXPECT_THAT(Codes(AuditStored()), ElementsAre("scale-shape"));
  stored_[scale] = saved;
  std::swap(stored_.at(kKept).shape[0], stored_.at(kKept).shape[1]);
  EXPECT_THAT(Codes(AuditStored()), ElementsAre("weight-shape"));
}

TEST_F(AuditTest, SeesDtypesThatTheTableDoesNotSay) {
  stored_.at(kUp0) = weights_.at(kUp0);  // BF16 where the table says fp8: its scale is an orphan.
  const AuditReport report = AuditStored(Source());
  EXPECT_FALSE(report.Passed());
  EXPECT_THAT(Codes(report), Contains("expected-quantized"));
  EXPECT_THAT(Codes(report), Contains("orphan-scale"));
  EXPECT_THAT(Codes(report), Contains("set-split"));
}

TEST_F(AuditTest, SeesNanInAKeptWeight) {
  stored_.at(kKept).bytes[1] = std::byte{0x7F};
  stored_.at(kKept).bytes[0] = std::byte{0xC0};
  const AuditReport report = AuditStored();
  ASSERT_THAT(Codes(report), ElementsAre("not-finite"));
  EXPECT_THAT(report.findings[0].message, HasSubstr("the first at [0, 0]"));
}

TEST_F(AuditTest, NotesUnknownTensors) {
  stored_["x.buffer"] = RandomBf16({3}, 5);
  const AuditReport report = AuditStored();
  EXPECT_THAT(Codes(report), ElementsAre("unknown-tensor"));
  EXPECT_TRUE(report.Passed());
}

// --- Configuration ---------------------------------------------------------------------------

TEST_F(AuditTest, SeesAChangedTableByItsHash) {
  config_ = Replaced(config_, R"("format": "fp8",
          "rule")",
                     R"("format": "bf16",
          "rule")");
  const AuditReport report = AuditStored();
  ASSERT_THAT(Codes(report), ElementsAre("table"));
  EXPECT_THAT(report.findings[0].message, HasSubstr("hash"));
}

TEST_F(AuditTest, SeesAListThatDoesNotMeanTheTable) {
  config_ = Replaced(config_, R"("model.layers.2.mlp.down_proj",)", "");
  const AuditReport report = AuditStored();
  EXPECT_THAT(Codes(report), Contains("list-not-exact"));
  EXPECT_THAT(Codes(report), Contains("list-differs"));
  EXPECT_FALSE(report.Passed());
}

TEST_F(AuditTest, SeesAnEntryThatNamesNothing) {
  config_ = Replaced(config_, R"("model.layers.2.mlp.down_proj",)",
                     R"("model.layers.2.mlp.down_proj", "model.layers.7.mlp.down_proj",)");
  const AuditReport report = AuditStored();
  EXPECT_THAT(Codes(report), Contains("list-not-exact"));
  EXPECT_TRUE(report.Passed());
}

TEST_F(AuditTest, ReadsAForeignListAndSaysSo) {
  // Cuts our own key away; the list is all that other converters write.
  const size_t begin = config_.find(R"("octavo": {)");
  const size_t comma = config_.rfind(',', begin);
  size_t end = config_.size();
  for (int depth = 0; depth < 3; ++depth) {  // The braces of the file, of the config, and ours.
    end = config_.rfind('}', end - 1);
  }
  config_ = config_.substr(0, comma) + config_.substr(end + 1);
  const AuditReport report = AuditStored(Source());
  EXPECT_TRUE(report.Passed()) << AuditText(report);
  EXPECT_THAT(Codes(report), ElementsAre("foreign-config"));
  EXPECT_EQ(report.num_quantized, 2 * 7);
}

TEST_F(AuditTest, SeesAWrongTotalSize) {
  WriteTestCheckpoint(Out(), stored_, 2, config_);
  const std::string path = Out() + "/model.safetensors.index.json";
  const std::string index = *ReadTextFile(path);
  ASSERT_TRUE(WriteTextFile(path, Replaced(index, "\"total_size\": ", "\"total_size\": 1")).ok());
  const auto report = AuditFolder(Out(), "", nullptr);
  ASSERT_TRUE(report.has_value());
  ASSERT_THAT(Codes(*report), ElementsAre("total-size"));
}

TEST_F(AuditTest, ReportsAnUnreadableFolderAsAFinding) {
  WriteTestCheckpoint(Out(), stored_, 2, config_);
  std::filesystem::resize_file(Out() + "/" + TestShardName(1, 2), 100);
  const auto report = AuditFolder(Out(), "", nullptr);
  ASSERT_TRUE(report.has_value());
  EXPECT_THAT(Codes(*report), ElementsAre("unreadable"));
  EXPECT_TRUE(report->unreadable);
  EXPECT_FALSE(report->Passed());
  EXPECT_EQ(AuditFolder(folder_.Path("nowhere"), "", nullptr).error().code(),
            StatusCode::kNotFound);
  EXPECT_FALSE(AuditFolder(folder_.Path("fp8"), folder_.Path("nowhere"), nullptr).has_value());
}

TEST_F(AuditTest, SeesIndexAndShardsThatDisagree) {
  WriteTestCheckpoint(Out(), stored_, 2, config_);
  const std::string path = Out() + "/model.safetensors.index.json";
  const std::string index = *ReadTextFile(path);
  ASSERT_TRUE(WriteTextFile(path, Replaced(index, kUp0, "model.elsewhere")).ok());
  auto report = AuditFolder(Out(), "", nullptr);
  ASSERT_TRUE(report.has_value());
  EXPECT_THAT(Codes(*report), UnorderedElementsAre("index-tensor", "index-unlisted"));
  EXPECT_FALSE(report->unreadable);
  ASSERT_TRUE(WriteTextFile(path, index).ok());
  std::filesystem::remove(Out() + "/" + TestShardName(1, 2));
  report = AuditFolder(Out(), "", nullptr);
  ASSERT_TRUE(report.has_value());
  EXPECT_THAT(Codes(*report), ElementsAre("index-file"));
}

TEST_F(AuditTest, TakesAQuantizedSourceAndRefusesWhatIsNone) {
  EXPECT_THAT(Codes(AuditStored(folder_.Path("fp8"))), IsEmpty());
  TestTensors partial = weights_;
  partial.erase(kUp0);
  WriteTestCheckpoint(folder_.Path("partial"), partial);
  EXPECT_THAT(Codes(AuditStored(folder_.Path("partial"))), Contains("source-missing"));
  WriteTestCheckpoint(folder_.Path("llama"), weights_, 1,
                      Replaced(kTestConfig, "Qwen3ForCausalLM", "Qwen2ForCausalLM"));
  EXPECT_THAT(Codes(AuditStored(folder_.Path("llama"))), ElementsAre("source-table"));
}

TEST_F(AuditTest, RendersTextAndJson) {
  stored_.at(kUp0).bytes[0] = std::byte{0x7F};
  const AuditReport report = AuditStored();
  const std::string json = AuditJson(report);
  for (const char* part :
       {"\"passed\": false", "\"code\": \"nan-code\"", "\"severity\": \"error\"",
        "\"tensor\": \"model.layers.0.mlp.up_proj.weight\"", "\"message\"", "\"cure\""}) {
    EXPECT_THAT(json, HasSubstr(part));
  }
  EXPECT_THAT(AuditText(report), HasSubstr("FAILED: 36 weights, 14 quantized"));
  EXPECT_THAT(AuditText(report), HasSubstr("error   nan-code: model.layers.0.mlp.up_proj.weight"));
  EXPECT_THAT(AuditText(report, 0), HasSubstr("... and 1 more"));
}

}  // namespace
}  // namespace octavo
