// Method: every format as our converter writes it passes; then damages that other converters are
// known for, one at a time, each seen by its code. Against the source, a quantizer with another
// rule is recognised by it. The table of codes and the documentation are held to each other.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <initializer_list>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_codes.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/conformance_kit_rules.h"
#include "octavo/convert/convert.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

using ::testing::Contains;
using ::testing::HasSubstr;
using ::testing::Not;
using Json = nlohmann::ordered_json;

constexpr char kUp[] = "model.layers.0.mlp.up_proj";
constexpr char kGate[] = "model.layers.0.mlp.gate_proj";

class AuditFormats : public ::testing::Test {
 protected:
  void SetUp() override {
    weights_ = RandomWeights(TestSpec());
    WriteTestCheckpoint(Source(), weights_);
  }

  std::string Source() const { return folder_.Path("source"); }

  // Converts the source, and takes the result into memory, to be damaged.
  void Load(WeightFormat format, StoredLayout layout = StoredLayout::kDefault) {
    const std::string out = folder_.Path("converted");
    std::filesystem::remove_all(out);
    const auto source = Checkpoint::Open(Source());
    const ModelSpec spec = TestSpec();
    const auto table =
        CompilePolicy(spec, {.format = format, .scope = QuantizeScope::kAll, .layout = layout});
    ASSERT_TRUE(table.has_value()) << table.error().message();
    const auto report = ConvertCheckpoint(*source, spec, *table,
                                          {.out_dir = out, .num_threads = 1, .progress = {}});
    ASSERT_TRUE(report.has_value()) << report.error().message();
    const auto checkpoint = Checkpoint::Open(out);
    ASSERT_TRUE(checkpoint.has_value()) << checkpoint.error().message();
    stored_.clear();
    for (const StoredTensor& tensor : checkpoint->tensors()) {
      const auto bytes = tensor.view.Bytes();
      stored_[tensor.name] = {tensor.view.dtype, tensor.view.shape, {bytes.begin(), bytes.end()}};
    }
    config_ = Json::parse(checkpoint->config().config_json);
  }

  AuditReport AuditStored(const std::string& against = "") {
    const std::string out = folder_.Path("damaged");
    const std::string hf_file = hf_quant_;
    std::filesystem::remove_all(out);
    WriteTestCheckpoint(out, stored_, 2, config_.dump());
    if (!hf_file.empty()) {
      EXPECT_TRUE(WriteTextFile(out + "/hf_quant_config.json", hf_file).ok());
    }
    const auto report = AuditFolder(out, against, nullptr);
    EXPECT_TRUE(report.has_value()) << report.error().message();
    return *report;
  }
  std::vector<std::string> Codes(const std::string& against = "") {
    std::vector<std::string> codes;
    for (const AuditFinding& finding : AuditStored(against).findings) {
      codes.push_back(finding.code);
    }
    return codes;
  }

  Json& Quantization() { return config_["quantization_config"]; }
  void SetFloat(const std::string& tensor, size_t idx, float value) {
    std::memcpy(&stored_.at(tensor).bytes[idx * sizeof(value)], &value, sizeof(value));
  }
  float FloatAt(const std::string& tensor, size_t idx) const {
    float value = 0.0F;
    std::memcpy(&value, &stored_.at(tensor).bytes[idx * sizeof(value)], sizeof(value));
    return value;
  }

  TestFolder folder_;
  TestTensors weights_;
  TestTensors stored_;
  Json config_;
  std::string hf_quant_;
};

TEST_F(AuditFormats, FindNothingInWhatTheConverterWrites) {
  for (const WeightFormat format : AllWeightFormats()) {
    if (format == WeightFormat::kBf16) {
      continue;
    }
    Load(format);
    const auto report = AuditFolder(folder_.Path("converted"), Source(), nullptr);
    ASSERT_TRUE(report.has_value());
    EXPECT_TRUE(report->findings.empty()) << WeightFormatName(format) << AuditText(*report);
    EXPECT_TRUE(report->compared);
    EXPECT_GT(report->worst_relative_rms, 0.02) << WeightFormatName(format);
  }
  Load(WeightFormat::kNvfp4, StoredLayout::kCompressedTensors);
  const auto report = AuditFolder(folder_.Path("converted"), Source(), nullptr);
  EXPECT_TRUE(report->findings.empty()) << AuditText(*report);
}

// An outlier of 5,000 gives scales far above 1 that multiply nevertheless.
TEST_F(AuditFormats, OutliersDoNotMakeScalesDivisors) {
  const uint16_t outlier = FloatToBf16(-5000.0F);
  std::memcpy(&weights_.at(std::string(kUp) + ".weight").bytes[2 * 77], &outlier, sizeof(outlier));
  WriteTestCheckpoint(Source(), weights_);
  for (const WeightFormat format :
       {WeightFormat::kFp8, WeightFormat::kFp8Tensor, WeightFormat::kNvfp4}) {
    Load(format);
    EXPECT_THAT(Codes(Source()), Not(Contains("scale-inverted"))) << WeightFormatName(format);
  }
}

// Weights that are all enormous look like it, until the source says that they are.
TEST_F(AuditFormats, TheSourceAcquitsLargeScales) {
  TestTensor& weight = weights_.at(std::string(kUp) + ".weight");
  const uint16_t large = FloatToBf16(3000.0F);
  for (size_t i = 0; i < weight.bytes.size(); i += sizeof(large)) {
    std::memcpy(&weight.bytes[i], &large, sizeof(large));
  }
  WriteTestCheckpoint(Source(), weights_);
  Load(WeightFormat::kFp8);
  EXPECT_THAT(Codes(), Contains("scale-inverted"));
  EXPECT_THAT(Codes(Source()), Not(Contains("scale-inverted")));
}

// --- nvfp4 --------------------------------------------------------------------------------------

TEST_F(AuditFormats, Nvfp4MembersOfASetShareTheirGlobalScale) {
  Load(WeightFormat::kNvfp4);
  SetFloat(std::string(kUp) + ".weight_scale_2", 0, 0.001F);
  EXPECT_THAT(Codes(), Contains("scale-unshared"));
  SetFloat(std::string(kUp) + ".input_scale", 0, 2.0F);
  EXPECT_THAT(Codes(), Contains("input-scale-unshared"));
}

TEST_F(AuditFormats, Nvfp4ScalesAreThereAndUsable) {
  Load(WeightFormat::kNvfp4);
  const TestTensors saved = stored_;
  stored_.erase(std::string(kUp) + ".input_scale");
  EXPECT_THAT(Codes(), Contains("input-scale-missing"));
  stored_ = saved;
  stored_.erase(std::string(kUp) + ".weight_scale_2");
  EXPECT_THAT(Codes(), Contains("scale-missing"));
  for (const float bad : {0.0F, -1.0F, HUGE_VALF}) {
    stored_ = saved;
    SetFloat(std::string(kUp) + ".weight_scale_2", 0, bad);
    EXPECT_THAT(Codes(), Contains("scale-value")) << bad;
  }
  stored_ = saved;  // 1 / FLT_MAX, which a converter writes for a matrix of zeros.
  SetFloat(std::string(kUp) + ".weight_scale_2", 0, 2.938736e-39F);
  EXPECT_THAT(Codes(), Contains("scale-subnormal"));
  stored_ = saved;
  SetFloat(std::string(kUp) + ".weight_scale_2", 0, 20000.0F);
  EXPECT_THAT(Codes(), Contains("scale-inverted"));
  for (const uint8_t bad : std::initializer_list<uint8_t>{0x7F, 0xFF, 0xB8}) {  // NaN, NaN, -1.
    stored_ = saved;
    stored_.at(std::string(kUp) + ".weight_scale").bytes[3] = std::byte{bad};
    EXPECT_THAT(Codes(), Contains("scale-value")) << int{bad};
  }
  stored_ = saved;
  auto& groups = stored_.at(std::string(kUp) + ".weight_scale").bytes;
  std::fill_n(groups.begin(), groups.size() / 2, std::byte{0x02});
  EXPECT_THAT(Codes(), Contains("groups-underflow"));
}

TEST_F(AuditFormats, HfQuantConfigMustAgree) {
  Load(WeightFormat::kNvfp4);
  hf_quant_ = R"({"quantization": {"quant_algo": "FP8", "exclude_modules": []}})";
  EXPECT_THAT(Codes(), Contains("hf-quant-config"));
  hf_quant_ = R"({"quantization": {"quant_algo": "NVFP4", "exclude_modules": ["x"],
                                   "kv_cache_quant_algo": "FP8"}})";
  EXPECT_THAT(Codes(), Contains("hf-quant-list"));
  EXPECT_THAT(Codes(), Contains("kv-cache"));
  hf_quant_ = "[]";
  EXPECT_THAT(Codes(), Contains("hf-quant-config"));
}

// --- mxfp8 --------------------------------------------------------------------------------------

TEST_F(AuditFormats, Mxfp8BytesAreNeverNan) {
  Load(WeightFormat::kMxfp8);
  stored_.at(std::string(kUp) + ".weight_scale_inv").bytes[7] = std::byte{0xFF};
  EXPECT_THAT(Codes(), Contains("scale-value"));
}

TEST_F(AuditFormats, AnOutputOfTheFloorRuleIsNamed) {
  Load(WeightFormat::kMxfp8);
  Quantization().erase("octavo");  // As another converter writes it.
  const TestTensor& source = weights_.at(std::string(kUp) + ".weight");
  TestTensor& codes = stored_.at(std::string(kUp) + ".weight");
  TestTensor& scales = stored_.at(std::string(kUp) + ".weight_scale_inv");
  for (size_t group = 0; group < scales.bytes.size(); ++group) {
    float amax = 0.0F;
    std::vector<float> values;
    for (size_t i = group * 32; i < group * 32 + 32; ++i) {
      uint16_t bits = 0;
      std::memcpy(&bits, &source.bytes[i * 2], sizeof(bits));
      values.push_back(Bf16ToFloat(bits));
      amax = std::max(amax, std::fabs(values.back()));
    }
    const uint8_t byte = MxByte(amax, MxScale::kFloor, 0);
    scales.bytes[group] = std::byte{byte};
    for (size_t i = 0; i < 32; ++i) {
      codes.bytes[group * 32 + i] =
          std::byte{EncodeE4m3(std::ldexp(values[i], 127 - byte), ElementRule{})};
    }
  }
  const AuditReport report = AuditStored(Source());
  std::string text;
  for (const AuditFinding& finding : report.findings) {
    text += finding.code + " " + finding.message + "\n";
  }
  EXPECT_THAT(text, HasSubstr("differs-by-rule"));
  EXPECT_THAT(text, HasSubstr("OCP MX v1.0"));
  EXPECT_THAT(text, Not(HasSubstr("differs model")));
}

// --- fp8 ----------------------------------------------------------------------------------------

TEST_F(AuditFormats, ScaleFmtMustFitTheScales) {
  Load(WeightFormat::kFp8);
  Quantization()["scale_fmt"] = "ue8m0";
  EXPECT_THAT(Codes(), Contains("scale-fmt"));
  Load(WeightFormat::kFp8Ue8m0);
  Quantization().erase("scale_fmt");
  Quantization().erase("octavo");
  EXPECT_THAT(Codes(), Contains("scale-fmt-absent"));
}

TEST_F(AuditFormats, ConfigAndTensorsMustAgree) {
  Load(WeightFormat::kFp8);
  const Json saved = config_;
  config_.erase("quantization_config");
  EXPECT_THAT(Codes(), Contains("config-missing"));
  config_ = saved;
  Quantization()["quant_method"] = "mxfp8";
  EXPECT_THAT(Codes(), Contains("config-format"));
  config_ = saved;
  config_["compression_config"] = Json{{"quant_method", "other"}};
  EXPECT_THAT(Codes(), Contains("config-twice"));
  config_ = saved;
  Quantization()["kv_cache_scheme"] = Json{{"num_bits", 8}};
  EXPECT_THAT(Codes(), Contains("kv-cache"));
  config_ = saved;
  Quantization()["modules_to_not_convert"] = {"model.layers.0."};
  EXPECT_THAT(Codes(), Contains("entry-trailing-dot"));
  config_ = saved;
  stored_ = weights_;
  EXPECT_THAT(Codes(), Contains("config-unquantized"));
}

TEST_F(AuditFormats, AZeroBlockThatWasDividedByZeroIsNamed) {
  Load(WeightFormat::kFp8);
  SetFloat(std::string(kUp) + ".weight_scale_inv", 0, 0.0F);
  auto& codes = stored_.at(std::string(kUp) + ".weight").bytes;
  for (size_t row = 0; row < 128; ++row) {
    std::fill_n(codes.begin() + static_cast<std::ptrdiff_t>(row * 160), 128, std::byte{0x7F});
  }
  const std::vector<std::string> found = Codes();
  EXPECT_THAT(found, Contains("zero-block"));
  EXPECT_THAT(found, Not(Contains("scale-value")));
}

TEST_F(AuditFormats, FnuzCodesAreSuspected) {
  Load(WeightFormat::kFp8);
  for (std::byte& code : stored_.at(std::string(kUp) + ".weight").bytes) {
    if ((code & std::byte{0x7F}) == std::byte{0x7E}) {
      code |= std::byte{0x01};  // The largest value of FNUZ, 240.
    } else if (code == std::byte{0x80}) {
      code = std::byte{0};
    }
  }
  EXPECT_THAT(Codes(), Contains("fnuz-codes"));
}

TEST_F(AuditFormats, ScalesInOtherFormsAreSeen) {
  Load(WeightFormat::kFp8);
  const TestTensors saved = stored_;
  stored_.at(std::string(kUp) + ".weight_scale_inv").dtype = DType::kI32;
  EXPECT_THAT(Codes(), Contains("scale-packed"));
  stored_ = saved;
  stored_.at(std::string(kUp) + ".weight_scale_inv").dtype = DType::kU32;
  EXPECT_THAT(Codes(), Contains("scale-dtype"));
  stored_ = saved;
  for (size_t i = 0; i < 6; ++i) {  // Too large: no block reaches the largest code any more.
    const std::string scales = std::string(kUp) + ".weight_scale_inv";
    SetFloat(scales, i, FloatAt(scales, i));
  }
  for (std::byte& code : stored_.at(std::string(kUp) + ".weight").bytes) {
    code = (code & std::byte{0x7F}) > std::byte{0x70} ? code & std::byte{0xF0} : code;
  }
  EXPECT_THAT(Codes(), Contains("scale-loose"));
  stored_ = saved;
  stored_.at(std::string(kUp) + ".weight").dtype = DType::kF8E5m2;
  EXPECT_THAT(Codes(), Contains("codes-dtype"));
  stored_ = saved;
  stored_.erase(std::string(kUp) + ".weight");
  EXPECT_THAT(Codes(), Contains("orphan-scale"));
}

TEST_F(AuditFormats, WhatEnginesKeepMustNotBeQuantized) {
  Load(WeightFormat::kFp8);
  stored_["model.layers.0.mlp.gate.weight"] = stored_.at(std::string(kUp) + ".weight");
  stored_["model.layers.0.mlp.gate.weight_scale_inv"] =
      stored_.at(std::string(kUp) + ".weight_scale_inv");
  EXPECT_THAT(Codes(), Contains("role-quantized"));
  stored_["model.layers.0.conv1d.weight"] = {DType::kF8E4m3, {4}, std::vector<std::byte>(4)};
  EXPECT_THAT(Codes(), Contains("not-a-matrix"));
}

TEST_F(AuditFormats, BothDirectionsOfAWrongListAreSeen) {
  Load(WeightFormat::kFp8);
  Quantization().erase("octavo");
  const Json saved = config_;
  Quantization()["modules_to_not_convert"] = {kUp, kGate};
  EXPECT_THAT(Codes(), Contains("expected-bf16"));
  config_ = saved;
  for (const char* module : {kUp, kGate}) {
    stored_[std::string(module) + ".weight"] = weights_.at(std::string(module) + ".weight");
    stored_.erase(std::string(module) + ".weight_scale_inv");
  }
  EXPECT_THAT(Codes(), Contains("expected-quantized"));
}

TEST_F(AuditFormats, UnsharedTensorScalesAreAWarning) {
  Load(WeightFormat::kFp8Tensor);
  const std::string scale = std::string(kUp) + ".weight_scale";
  SetFloat(scale, 0, FloatAt(scale, 0) * 1.5F);
  EXPECT_THAT(Codes(), Contains("scale-unshared-fp8"));
}

TEST_F(AuditFormats, AnUnknownArchitectureIsJudgedByItsTensors) {
  Load(WeightFormat::kFp8);
  config_["architectures"] = {"SomethingForCausalLM"};
  SetFloat(std::string(kUp) + ".weight_scale_inv", 0, -1.0F);
  const std::vector<std::string> found = Codes();
  EXPECT_THAT(found, Contains("architecture"));
  EXPECT_THAT(found, Contains("scale-value"));
}

// --- The table of codes -------------------------------------------------------------------------

TEST(AuditCodeTable, IsTheTableOfTheDocumentation) {
  const auto text = ReadTextFile("docs/audit.md");
  ASSERT_TRUE(text.has_value());
  size_t num_rows = 0;
  for (size_t at = text->find("\n| `"); at != std::string::npos; at = text->find("\n| `", at + 1)) {
    ++num_rows;
  }
  EXPECT_EQ(num_rows, AuditCodes().size());
  for (const AuditCode& code : AuditCodes()) {
    EXPECT_THAT(*text, HasSubstr("| `" + std::string(code.code) + "` | " +
                                 std::string(code.severity) + " | " + std::string(code.meaning) +
                                 " | " + std::string(code.cure) + " |"));
  }
}

}  // namespace
}  // namespace octavo
