// Method: small checkpoints and a trained one converted into folders of the test's own, compared
// file by file between thread counts, interrupted and resumed runs; each refusal once.

#include "octavo/convert/convert.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/digest.h"
#include "octavo/convert/out_folder.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using ::testing::Contains;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;

constexpr char kTrainedModel[] = "models/abacus-dense";

class ConvertTest : public ::testing::Test {
 protected:
  // Converts `source` into `out`.
  Result<ConvertReport> Convert(const std::string& source, const std::string& out,
                                const PolicyOptions& policy, int num_threads = 1,
                                bool resume = false) {
    ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(source));
    ASSIGN_OR_RETURN(const ModelSpec spec, MakeModelSpec(checkpoint.config()));
    ASSIGN_OR_RETURN(const PrecisionTable table, CompilePolicy(spec, policy));
    return ConvertCheckpoint(checkpoint, spec, table,
                             {.out_dir = out,
                              .num_threads = num_threads,
                              .resume = resume,
                              .direct = false,
                              .progress = std::nullopt});
  }

  // The same; a failure fails the test.
  ConvertReport MustConvert(const std::string& source, const std::string& out,
                            const PolicyOptions& policy = kFp8, int num_threads = 1,
                            bool resume = false) {
    auto report = Convert(source, out, policy, num_threads, resume);
    EXPECT_TRUE(report.has_value()) << report.error().message();
    return report.has_value() ? *report : ConvertReport();
  }

  // Runs a conversion in a child that kills itself when `num_tensors` are done.
  void ConvertAndDie(const std::string& source, const std::string& out, int num_tensors) {
    const pid_t child = fork();
    ASSERT_GE(child, 0);
    if (child == 0) {
      const auto checkpoint = Checkpoint::Open(source);
      const auto spec = MakeModelSpec(checkpoint->config());
      const auto table = CompilePolicy(*spec, kFp8);
      int done = 0;
      const auto die = [&](const ConvertProgress&) {
        if (++done == num_tensors) {
          kill(getpid(), SIGKILL);
        }
      };
      (void)ConvertCheckpoint(*checkpoint, *spec, *table,
                              {.out_dir = out,
                               .num_threads = 1,
                               .resume = true,
                               .progress = FunctionRef<void(const ConvertProgress&)>(die)})
          .has_value();
      _exit(0);
    }
    int wait_status = 0;
    ASSERT_EQ(waitpid(child, &wait_status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(wait_status)) << "the child finished before tensor " << num_tensors;
  }

  static const PolicyOptions kFp8;
  TestFolder folder_;
};

const PolicyOptions ConvertTest::kFp8 = {
    .format = WeightFormat::kFp8, .keep_first = 0, .keep_last = 1, .keep = {}};

TEST_F(ConvertTest, StoresEveryWeightAsTheTableSays) {
  const TestTensors weights = RandomWeights(TestSpec());
  WriteTestCheckpoint(folder_.Path("in"), weights);
  const ConvertReport report = MustConvert(folder_.Path("in"), folder_.Path("out"));

  const auto out = Checkpoint::Open(folder_.Path("out"));
  ASSERT_TRUE(out.has_value()) << out.error().message();
  EXPECT_THAT(out->warnings(), ElementsAre());
  const auto table = CompilePolicy(TestSpec(), kFp8);
  size_t num_tensors = 0;
  int64_t bytes = 0;
  for (const PrecisionRow& row : table->rows) {
    const TestTensor& source = weights.at(row.name);
    const auto expected =
        TransformWeight(row, {source.dtype, source.shape, source.bytes.data()}, {});
    for (const OwnedTensor& tensor : *expected) {
      const StoredTensor* stored = out->Find(tensor.name);
      ASSERT_NE(stored, nullptr) << tensor.name;
      EXPECT_EQ(stored->view.dtype, tensor.dtype) << tensor.name;
      EXPECT_EQ(stored->view.shape, tensor.shape) << tensor.name;
      EXPECT_EQ(std::memcmp(stored->view.data, tensor.bytes.data(),
                            static_cast<size_t>(tensor.bytes.num_bytes())),
                0)
          << tensor.name;
      ++num_tensors;
      bytes += tensor.bytes.num_bytes();
    }
  }
  EXPECT_EQ(out->tensors().size(), num_tensors);
  EXPECT_EQ(report.bytes_out, bytes);
  EXPECT_EQ(report.tensors.size(), weights.size());
  EXPECT_FALSE(report.passed_through);
  // Its own index, though the source had none, with the true sum.
  const auto index = ParseShardIndex(*ReadTextFile(folder_.Path("out/") + kShardIndexFile.data()));
  ASSERT_TRUE(index.has_value());
  EXPECT_EQ(index->total_bytes, bytes);
  EXPECT_EQ(index->weight_map.size(), num_tensors);
}

TEST_F(ConvertTest, WritesTheTableIntoTheConfigAndKeepsTheRest) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()));
  MustConvert(folder_.Path("in"), folder_.Path("out"));
  const auto out = Checkpoint::Open(folder_.Path("out"));
  ASSERT_TRUE(out.has_value());
  const auto table = CompilePolicy(TestSpec(), kFp8);
  const auto stored = TableFromQuantizationConfig(TestSpec(), out->config().quantization_config);
  ASSERT_TRUE(stored.has_value()) << stored.error().message();
  EXPECT_EQ(stored->Hash(), table->Hash());
  EXPECT_THAT(ListedModules(out->config().quantization_config),
              Contains("model.layers.2.mlp.up_proj"));
  EXPECT_THAT(ListedModules(out->config().quantization_config),
              Not(Contains("model.layers.1.mlp.up_proj")));
  EXPECT_EQ(*ReadTextFile(folder_.Path("out/tokenizer.json")), "{}");
  EXPECT_EQ(*ReadTextFile(folder_.Path("out/extra/notes.txt")), "kept");
  // The start of the config is untouched text.
  EXPECT_THAT(*ReadTextFile(folder_.Path("out/config.json")), HasSubstr("\"rms_norm_eps\": 1e-06"));
}

TEST_F(ConvertTest, GivesTheSameFilesForAnyNumberOfThreads) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()), 3);
  const auto before = FolderHashes(folder_.Path("in"));
  MustConvert(folder_.Path("in"), folder_.Path("out1"));
  const auto expected = FolderHashes(folder_.Path("out1"));
  EXPECT_EQ(expected.count(std::string(kConvertStateFile)), 0U);
  for (const int num_threads : {2, 5}) {
    const std::string out = folder_.Path(fmt::format("out{}", num_threads));
    MustConvert(folder_.Path("in"), out, kFp8, num_threads);
    EXPECT_EQ(FolderHashes(out), expected) << num_threads;
  }
  EXPECT_EQ(FolderHashes(folder_.Path("in")), before);
}

TEST_F(ConvertTest, PutsScalesIntoTheFileOfTheirWeight) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()), 3);
  MustConvert(folder_.Path("in"), folder_.Path("out"));
  const auto in = Checkpoint::Open(folder_.Path("in"));
  const auto out = Checkpoint::Open(folder_.Path("out"));
  ASSERT_TRUE(out.has_value()) << out.error().message();
  EXPECT_THAT(out->shard_files(),
              ::testing::ElementsAreArray(in->shard_files().begin(), in->shard_files().end()));
  for (const StoredTensor& tensor : in->tensors()) {
    EXPECT_EQ(out->Find(tensor.name)->shard_idx, tensor.shard_idx) << tensor.name;
    const StoredTensor* scale = out->Find(tensor.name + "_scale_inv");
    if (scale != nullptr) {
      EXPECT_EQ(scale->shard_idx, tensor.shard_idx) << tensor.name;
    }
  }
}

TEST_F(ConvertTest, F32SourceGivesTheCodesOfItsBf16Rounding) {
  const TestTensors bf16 = RandomWeights(TestSpec());
  TestTensors f32;
  for (const auto& [name, tensor] : bf16) {
    TestTensor wide = {.dtype = DType::kF32, .shape = tensor.shape, .bytes = {}};
    for (size_t i = 0; i < tensor.bytes.size(); i += 2) {
      // The lower half is noise that rounds away.
      wide.bytes.insert(wide.bytes.end(),
                        {std::byte{0x21}, std::byte{0x43}, tensor.bytes[i], tensor.bytes[i + 1]});
    }
    f32[name] = std::move(wide);
  }
  WriteTestCheckpoint(folder_.Path("in16"), bf16);
  WriteTestCheckpoint(folder_.Path("in32"), f32);
  MustConvert(folder_.Path("in16"), folder_.Path("out16"));
  const ConvertReport report = MustConvert(folder_.Path("in32"), folder_.Path("out32"));
  const auto out16 = Checkpoint::Open(folder_.Path("out16"));
  const auto out32 = Checkpoint::Open(folder_.Path("out32"));
  const auto table = CompilePolicy(TestSpec(), kFp8);
  for (const PrecisionRow& row : table->rows) {
    const ConstTensorView& from32 = out32->Find(row.name)->view;
    if (row.format == WeightFormat::kFp8) {
      const ConstTensorView& from16 = out16->Find(row.name)->view;
      EXPECT_EQ(HashBytes(from32.Bytes()), HashBytes(from16.Bytes())) << row.name;
    } else {
      // Kept weights are stored unchanged: nothing is down-cast.
      EXPECT_EQ(from32.dtype, DType::kF32) << row.name;
    }
  }
  EXPECT_EQ(report.tensors.front().note, "kept as F32");
}

TEST_F(ConvertTest, ReportsSizesErrorsAndOddBlocks) {
  TestTensors weights = RandomWeights(TestSpec());
  TestTensor& zeros = weights.at("model.layers.0.mlp.up_proj.weight");
  std::ranges::fill(zeros.bytes, std::byte{0});
  WriteTestCheckpoint(folder_.Path("in"), weights);
  const ConvertReport report = MustConvert(folder_.Path("in"), folder_.Path("out"), kFp8, 2);
  for (const ConvertedTensor& tensor : report.tensors) {
    SCOPED_TRACE(tensor.name);
    EXPECT_EQ(tensor.error.value_or(QuantizationError()).num_saturated, 0);
    if (tensor.name == "model.layers.0.mlp.up_proj.weight") {
      EXPECT_EQ(tensor.error->RelativeRms(), 0.0);
      EXPECT_EQ(tensor.error->num_zero_blocks, 3 * 2);
    } else if (tensor.format == "fp8") {
      // docs/formats.md, section 6: 2.65 % for Gaussian weights; small blocks scatter around it.
      ASSERT_TRUE(tensor.error.has_value());
      EXPECT_NEAR(tensor.error->RelativeRms(), 0.0265, 0.002);
      EXPECT_LT(tensor.bytes_out, tensor.bytes_in);
    } else {
      EXPECT_FALSE(tensor.error.has_value());
      EXPECT_EQ(tensor.bytes_out, tensor.bytes_in);
    }
  }
  const std::string json = ConvertReportJson(report);
  for (const char* key : {"\"seconds\"", "\"bytes_in\"", "\"bytes_out\"", "\"tensors\"",
                          "\"relative_rms_error\": null", "\"zero_blocks\": 6"}) {
    EXPECT_THAT(json, HasSubstr(key));
  }
}

// --- Tensors that the weight table does not know -------------------------------------------------

TEST_F(ConvertTest, KeepsAndReportsUnknownTensors) {
  TestTensors weights = RandomWeights(TestSpec());
  weights["model.layers.1.mlp.router.weight"] = RandomBf16({4, 160}, 91);
  weights["model.layers.1.rotary.inv_freq"] = {
      .dtype = DType::kI64, .shape = {}, .bytes = std::vector<std::byte>(8, std::byte{7})};
  weights["zz.empty"] = {.dtype = DType::kF32, .shape = {0, 3}, .bytes = {}};
  WriteTestCheckpoint(folder_.Path("in"), weights);
  const ConvertReport report = MustConvert(folder_.Path("in"), folder_.Path("out"));
  const auto out = Checkpoint::Open(folder_.Path("out"));
  for (const std::string name :
       {"model.layers.1.mlp.router.weight", "model.layers.1.rotary.inv_freq", "zz.empty"}) {
    ASSERT_NE(out->Find(name), nullptr) << name;
    EXPECT_EQ(HashBytes(out->Find(name)->view.Bytes()), HashBytes(weights.at(name).bytes)) << name;
    const auto line = std::ranges::find(report.tensors, name, &ConvertedTensor::name);
    ASSERT_NE(line, report.tensors.end());
    EXPECT_THAT(line->note, HasSubstr("not in the model's weight table"));
  }
  // An engine could quantize the matrix, so the list names it; the others have no module.
  EXPECT_THAT(ListedModules(out->config().quantization_config),
              Contains("model.layers.1.mlp.router"));
  // The list changes nothing for our own table.
  EXPECT_TRUE(
      TableFromQuantizationConfig(TestSpec(), out->config().quantization_config).has_value());
}

TEST_F(ConvertTest, RefusesOrphanScalesAndUnknownCodes) {
  TestTensors weights = RandomWeights(TestSpec());
  weights["model.layers.0.mlp.up_proj.weight_scale_inv"] = RandomBf16({3, 2}, 1);
  WriteTestCheckpoint(folder_.Path("in"), weights);
  auto report = Convert(folder_.Path("in"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(),
              HasSubstr("model.layers.0.mlp.up_proj.weight_scale_inv: a scale, but no quantized"));
  EXPECT_FALSE(std::filesystem::exists(folder_.Path("out")));

  weights.erase("model.layers.0.mlp.up_proj.weight_scale_inv");
  weights["x.weight"] = {.dtype = DType::kF8E4m3, .shape = {8}, .bytes = std::vector<std::byte>(8)};
  WriteTestCheckpoint(folder_.Path("in2"), weights);
  report = Convert(folder_.Path("in2"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(), HasSubstr("x.weight: F8_E4M3 codes without"));
}

// --- Bad sources -----------------------------------------------------------------------------

TEST_F(ConvertTest, RefusesMissingAndMisshapenWeightsBeforeWriting) {
  TestTensors weights = RandomWeights(TestSpec());
  weights.erase("model.layers.1.self_attn.q_proj.weight");
  WriteTestCheckpoint(folder_.Path("in"), weights);
  auto report = Convert(folder_.Path("in"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(), HasSubstr("model.layers.1.self_attn.q_proj.weight"));

  weights = RandomWeights(TestSpec());
  weights["model.norm.weight"] = RandomBf16({161}, 3);
  WriteTestCheckpoint(folder_.Path("in2"), weights);
  report = Convert(folder_.Path("in2"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_EQ(report.error().message(),
            "model.norm.weight: expected [160] BF16, F16 or F32, got [161] BF16");
  EXPECT_FALSE(std::filesystem::exists(folder_.Path("out")));
}

TEST_F(ConvertTest, RefusesNanByTensorAndIndexAndLeavesNoCheckpoint) {
  for (const std::string name : {"model.layers.2.mlp.up_proj.weight",  // Kept.
                                 "model.layers.0.mlp.up_proj.weight", "model.norm.weight"}) {
    TestTensors weights = RandomWeights(TestSpec());
    TestTensor& bad = weights.at(name);
    const size_t last = bad.bytes.size() - 2;
    bad.bytes[last] = std::byte{0xC0};
    bad.bytes[last + 1] = std::byte{0x7F};
    const std::string in = folder_.Path("in-" + name);
    const std::string out = folder_.Path("out-" + name);
    WriteTestCheckpoint(in, weights, 2);
    const auto report = Convert(in, out, kFp8, 2);
    ASSERT_FALSE(report.has_value());
    EXPECT_EQ(report.error().code(), StatusCode::kInvalidArgument);
    EXPECT_THAT(report.error().message(), HasSubstr(name + ": expected values that are finite"));
    EXPECT_FALSE(Checkpoint::Open(out).has_value());
    EXPECT_FALSE(std::filesystem::exists(out + "/config.json"));
  }
}

TEST_F(ConvertTest, RefusesArchitecturesThatAreNotBuiltByName) {
  std::string config = kTestConfig;
  const std::string_view known = "Qwen3ForCausalLM";
  config.replace(config.find(known), known.size(), "MambaForCausalLM");
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()), 1, config);
  const auto report = Convert(folder_.Path("in"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(), HasSubstr("MambaForCausalLM"));
}

// --- Low-precision sources -----------------------------------------------------------------------

TEST_F(ConvertTest, PassesACheckpointOfTheSameTableThrough) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()), 2);
  MustConvert(folder_.Path("in"), folder_.Path("fp8"));
  const ConvertReport report = MustConvert(folder_.Path("fp8"), folder_.Path("again"));
  EXPECT_TRUE(report.passed_through);
  EXPECT_EQ(FolderHashes(folder_.Path("again")), FolderHashes(folder_.Path("fp8")));
}

TEST_F(ConvertTest, ConvertsASourceOfAnotherTable) {
  const TestTensors weights = RandomWeights(TestSpec());
  WriteTestCheckpoint(folder_.Path("in"), weights);
  MustConvert(folder_.Path("in"), folder_.Path("fp8"));
  PolicyOptions other = kFp8;
  other.keep_last = 2;
  const ConvertReport report = MustConvert(folder_.Path("fp8"), folder_.Path("out"), other);
  EXPECT_FALSE(report.passed_through);
  const auto fp8 = Checkpoint::Open(folder_.Path("fp8"));
  const auto out = Checkpoint::Open(folder_.Path("out"));
  const auto bytes_of = [](const Checkpoint& checkpoint, std::string_view name) {
    return HashHex(HashBytes(checkpoint.Find(name)->view.Bytes()));
  };
  // Layer 0 is fp8 in both: codes and scales are copied. Layer 1 is now kept: dequantized.
  const std::string first = "model.layers.0.mlp.up_proj.weight";
  const std::string second = "model.layers.1.mlp.up_proj.weight";
  EXPECT_EQ(bytes_of(*out, first), bytes_of(*fp8, first));
  EXPECT_EQ(bytes_of(*out, first + "_scale_inv"), bytes_of(*fp8, first + "_scale_inv"));
  EXPECT_EQ(out->Find(second)->view.dtype, DType::kBf16);
  EXPECT_EQ(out->Find(second + "_scale_inv"), nullptr);
}

TEST_F(ConvertTest, RefusesAPassThroughWithABadScale) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()));
  MustConvert(folder_.Path("in"), folder_.Path("fp8"));
  // The last tensor of the file as written, made 0: scales of 4-byte blocks stand there.
  const auto fp8 = Checkpoint::Open(folder_.Path("fp8"));
  TestTensors tensors;
  for (const StoredTensor& tensor : fp8->tensors()) {
    const auto bytes = tensor.view.Bytes();
    tensors[tensor.name] = {tensor.view.dtype, tensor.view.shape, {bytes.begin(), bytes.end()}};
  }
  const std::string scale = "model.layers.1.mlp.down_proj.weight_scale_inv";
  std::fill_n(tensors.at(scale).bytes.begin(), 4, std::byte{0});
  WriteTestCheckpoint(folder_.Path("bad"), tensors, 1, fp8->config().config_json);
  const auto report = Convert(folder_.Path("bad"), folder_.Path("out"), kFp8);
  ASSERT_FALSE(report.has_value());
  EXPECT_THAT(report.error().message(), HasSubstr(scale + ": expected finite positive scales"));
}

TEST_F(ConvertTest, KeepsEveryByteForAnAllBf16Table) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()));
  MustConvert(folder_.Path("in"), folder_.Path("out"), PolicyOptions{.keep = {}});
  const auto in = Checkpoint::Open(folder_.Path("in"));
  const auto out = Checkpoint::Open(folder_.Path("out"));
  EXPECT_EQ(DigestCheckpoint(*in, nullptr).hex, DigestCheckpoint(*out, nullptr).hex);
  EXPECT_EQ(out->config().config_json, in->config().config_json);
}

// --- Folders and interrupted runs ----------------------------------------------------------------

TEST_F(ConvertTest, RefusesTheSourceAndFoldersWithOtherThings) {
  const std::string in = folder_.Path("in");
  WriteTestCheckpoint(in, RandomWeights(TestSpec()));
  const auto before = FolderHashes(in);
  EXPECT_THAT(Convert(in, in, kFp8).error().message(), HasSubstr("another folder than the source"));
  std::filesystem::create_directory_symlink(in, folder_.Path("link"));
  EXPECT_THAT(Convert(in, folder_.Path("link"), kFp8).error().message(),
              HasSubstr("another folder than the source"));
  EXPECT_THAT(Convert(in, in + "/extra/sub", kFp8).error().message(), HasSubstr("lies inside"));
  std::filesystem::remove_all(in + "/extra/sub");

  MustConvert(in, folder_.Path("out"));
  for (const bool resume : {false, true}) {
    EXPECT_THAT(Convert(in, folder_.Path("out"), kFp8, 1, resume).error().message(),
                HasSubstr("expected an empty folder or none, found"));
  }
  EXPECT_EQ(FolderHashes(in), before);
}

TEST_F(ConvertTest, KilledAnywhereItIsNoCheckpointAndResumesToTheSameBytes) {
  const std::string in = folder_.Path("in");
  const TestTensors weights = RandomWeights(TestSpec());
  WriteTestCheckpoint(in, weights, 3);
  MustConvert(in, folder_.Path("whole"));
  const auto expected = FolderHashes(folder_.Path("whole"));
  const auto num_tensors = static_cast<int>(weights.size());
  for (const int killed_at : {1, num_tensors / 2, num_tensors}) {
    for (const bool resume : {false, true}) {
      const std::string out = folder_.Path(fmt::format("out{}{}", killed_at, resume));
      ConvertAndDie(in, out, killed_at);
      EXPECT_FALSE(Checkpoint::Open(out).has_value()) << killed_at;
      const ConvertReport report = MustConvert(in, out, kFp8, 1, resume);
      EXPECT_EQ(FolderHashes(out), expected) << killed_at << " resume " << resume;
      EXPECT_EQ(report.tensors.size(), weights.size());
      // The file before the one at work may still have been on its way to the disk.
      const int finished = killed_at == 1 ? 0 : killed_at == num_tensors ? 2 : 1;
      EXPECT_LE(report.num_files_resumed, resume ? finished : 0);
    }
  }
}

TEST_F(ConvertTest, DoesNotResumeAnotherPlanOrAChangedSource) {
  const std::string in = folder_.Path("in");
  const std::string out = folder_.Path("out");
  TestTensors weights = RandomWeights(TestSpec());
  WriteTestCheckpoint(in, weights, 2);
  ConvertAndDie(in, out, 30);
  // A finished file, whether or not the child came to it.
  MustConvert(in, folder_.Path("whole"));
  const std::string file = TestShardName(0, 2);
  std::filesystem::copy_file(folder_.Path("whole") + "/" + file, out + "/" + file,
                             std::filesystem::copy_options::overwrite_existing);
  PolicyOptions other = kFp8;
  other.keep_last = 2;
  EXPECT_THAT(Convert(in, out, other, 1, true).error().message(), HasSubstr("by another plan"));

  // Same shapes, other values: the time of change tells.
  weights["model.norm.weight"] = RandomBf16({160}, 77);
  WriteTestCheckpoint(in, weights, 2);
  EXPECT_THAT(Convert(in, out, kFp8, 1, true).error().message(), HasSubstr("by another plan"));
}

TEST_F(ConvertTest, AnotherPlanMayTakeOverWhatHoldsNoFinishedFile) {
  WriteTestCheckpoint(folder_.Path("in"), RandomWeights(TestSpec()), 2);
  ConvertAndDie(folder_.Path("in"), folder_.Path("out"), 3);
  PolicyOptions other = kFp8;
  other.keep_last = 2;
  MustConvert(folder_.Path("in"), folder_.Path("out"), other);
  MustConvert(folder_.Path("in"), folder_.Path("fresh"), other);
  EXPECT_EQ(FolderHashes(folder_.Path("out")), FolderHashes(folder_.Path("fresh")));
}

TEST_F(ConvertTest, DoesNotTakeAForeignFileForAFinishedOne) {
  const std::string in = folder_.Path("in");
  const std::string out = folder_.Path("out");
  WriteTestCheckpoint(in, RandomWeights(TestSpec()), 2);
  ConvertAndDie(in, out, 30);
  std::filesystem::copy_file(in + "/" + TestShardName(0, 2), out + "/" + TestShardName(0, 2),
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(Convert(in, out, kFp8, 1, true).error().message(),
              HasSubstr("not the file that this plan writes"));
}

// --- The trained model ---------------------------------------------------------------------------

TEST_F(ConvertTest, ConvertsTheTrainedModelWithTheErrorThatTheFormatHas) {
  PolicyOptions policy = kFp8;
  policy.keep_last = 2;
  const ConvertReport report = MustConvert(kTrainedModel, folder_.Path("out"), policy, 2);
  int num_fp8 = 0;
  for (const ConvertedTensor& tensor : report.tensors) {
    EXPECT_EQ(tensor.note, "") << tensor.name;
    if (tensor.format == "fp8") {
      ++num_fp8;
      EXPECT_GT(tensor.error->RelativeRms(), 0.02) << tensor.name;
      EXPECT_LT(tensor.error->RelativeRms(), 0.03) << tensor.name;
    }
  }
  EXPECT_EQ(num_fp8, 6 * 7);  // Six of eight layers, seven linear weights each.
  EXPECT_LT(report.bytes_out, report.bytes_in * 2 / 3);
  MustConvert(kTrainedModel, folder_.Path("out5"), policy, 5);
  EXPECT_EQ(FolderHashes(folder_.Path("out5")), FolderHashes(folder_.Path("out")));
}

}  // namespace
}  // namespace octavo
