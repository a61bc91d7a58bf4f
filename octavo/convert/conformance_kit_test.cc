// Method: the committed kit holds what a second implementation (scripts/make_conformance.py) makes
// of its inputs; the quantizer, scalar and vectorized, and the transform must give every byte of
// it, and decoding must be within the format's error. tests/test_conformance.py tests what the
// program says about other quantizers.

#include "octavo/convert/conformance_kit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/convert/conformance_kit_rules.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr char kKit[] = "conformance";

const SafetensorsEntry* Find(const SafetensorsFile& file, std::string_view name) {
  for (const SafetensorsEntry& entry : file.header().entries) {
    if (entry.name == name) {
      return &entry;
    }
  }
  return nullptr;
}

// The cases of one format, and the largest magnitude of each one's sharing set.
class KitFormat {
 public:
  explicit KitFormat(const std::string& name)
      : layout_(name == "nvfp4-compressed-tensors" ? StoredLayout::kCompressedTensors
                                                   : StoredLayout::kDefault),
        format_(*ParseWeightFormat(name.substr(0, name.find("-compressed")))),
        inputs_(*SafetensorsFile::Open(std::string(kKit) + "/inputs.safetensors")),
        expected_(
            *SafetensorsFile::Open(std::string(kKit) + "/expected/" + name + ".safetensors")) {
    const auto json = nlohmann::json::parse(*ReadTextFile(std::string(kKit) + "/cases.json"));
    for (const nlohmann::json& one : json["cases"]) {
      const std::string case_name = one["name"].get<std::string>();
      const std::string set =
          one.contains("shares_scale") ? one["shares_scale"].get<std::string>() : case_name;
      sets_[case_name] = set;
      float& amax = amax_[set];
      amax = std::max(amax, Amax(Input(case_name)));
      for (const nlohmann::json& format : one["formats"]) {
        if (format.get<std::string>() == name) {
          cases_.push_back(case_name);
        }
      }
    }
  }

  WeightFormat format() const { return format_; }
  StoredLayout layout() const { return layout_; }
  const std::vector<std::string>& cases() const { return cases_; }
  float SetAmax(const std::string& name) const { return amax_.at(sets_.at(name)); }
  // Aligned: the inputs' header is padded and BF16 is all there is.
  ConstTensorView Input(const std::string& name) const {
    return inputs_.View(*Find(inputs_, name + ".weight"));
  }
  PrecisionRow Row(const std::string& name) const {
    return {.name = name + ".weight",
            .role = Role::kMlpUp,
            .layer = 0,
            .shape = Input(name).shape,
            .format = format_};
  }
  std::optional<ConstTensorView> Expected(const std::string& tensor) const {
    const SafetensorsEntry* entry = Find(expected_, tensor);
    return entry == nullptr ? std::nullopt : std::optional(expected_.View(*entry));
  }

 private:
  StoredLayout layout_;
  WeightFormat format_;
  SafetensorsFile inputs_;
  SafetensorsFile expected_;
  std::map<std::string, std::string> sets_;
  std::map<std::string, float> amax_;
  std::vector<std::string> cases_;
};

class ConformanceKit : public ::testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(Formats, ConformanceKit,
                         ::testing::Values("fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8",
                                           "nvfp4", "nvfp4-compressed-tensors"),
                         [](const auto& info) {
                           std::string name = info.param;
                           std::ranges::replace(name, '-', '_');
                           return name;
                         });

TEST_P(ConformanceKit, TheTransformGivesEveryByte) {
  const KitFormat kit(GetParam());
  ASSERT_FALSE(kit.cases().empty());
  for (const std::string& name : kit.cases()) {
    const auto stored = TransformWeight(kit.Row(name), kit.Input(name),
                                        {.shared_amax = kit.SetAmax(name), .layout = kit.layout()});
    ASSERT_TRUE(stored.has_value()) << stored.error().message();
    for (const OwnedTensor& tensor : *stored) {
      const auto expected = kit.Expected(tensor.name);
      ASSERT_TRUE(expected.has_value()) << tensor.name;
      EXPECT_EQ(DTypeName(tensor.dtype), DTypeName(expected->dtype)) << tensor.name;
      EXPECT_EQ(tensor.shape, expected->shape) << tensor.name;
      const auto want = expected->Bytes();
      const auto got = tensor.View().Bytes();
      ASSERT_EQ(want.size(), got.size()) << tensor.name;
      for (size_t i = 0; i < want.size(); ++i) {
        ASSERT_EQ(want[i], got[i]) << tensor.name << " byte " << i;
      }
    }
  }
}

TEST_P(ConformanceKit, ScalarAndVectorQuantizersAgreeWithIt) {
  const KitFormat kit(GetParam());
  for (const std::string& name : kit.cases()) {
    const ConstTensorView input = kit.Input(name);
    const int64_t rows = input.shape[0];
    const int64_t cols = input.shape[1];
    std::vector<uint8_t> codes(static_cast<size_t>(CodeBytes(kit.format(), rows, cols)));
    std::vector<float> scales(static_cast<size_t>(ScaleBytes(kit.format(), rows, cols) + 3) / 4);
    const QuantizeArgs args = {
        .format = kit.format(),
        .values = input,
        .amax = kit.SetAmax(name),
        .codes = codes,
        .scales = std::as_writable_bytes(std::span(scales))
                      .first(static_cast<size_t>(ScaleBytes(kit.format(), rows, cols)))};
    const bool packed = kit.layout() == StoredLayout::kCompressedTensors;
    const auto want = kit.Expected(name + (packed ? ".weight_packed" : ".weight"))->Bytes();
    for (const bool scalar : {true, false}) {
      std::ranges::fill(codes, uint8_t{0x55});
      ASSERT_TRUE((scalar ? QuantizeScalar(args) : Quantize(args)).ok());
      ASSERT_EQ(want.size(), codes.size());
      EXPECT_EQ(std::memcmp(want.data(), codes.data(), codes.size()), 0)
          << name << " scalar " << scalar;
    }
  }
}

TEST(ConformanceRules, OursAreTheFunctionsOfTheFormats) {
  // Where rules and codecs meet: every E4M3 code and its neighbourhood.
  for (int code = 0; code < 256; ++code) {
    const float value = E4m3ToFloat(static_cast<uint8_t>(code));
    for (const float near : {value, std::nextafter(value, 0.0F), std::nextafter(value, 1e9F),
                             std::nextafter(value, -1e9F), value * 1.03125F}) {
      if (!std::isnan(near)) {
        EXPECT_EQ(EncodeE4m3(near, {}), FloatToE4m3(near)) << near;
      }
    }
  }
  for (uint32_t bits = 0; bits < 0x7F80; ++bits) {  // Every finite BF16 amax.
    const float amax = Bf16ToFloat(static_cast<uint16_t>(bits));
    ASSERT_EQ(NvGlobalsOf(amax, NvGlobal::kReciprocalOfS, NvZeroSet::kOne).small,
              TensorScale(WeightFormat::kNvfp4, amax))
        << amax;
    ASSERT_EQ(Fp8ScaleOf(amax, Fp8Scale::kDivide, Fp8Floor::k1e12),
              TensorScale(WeightFormat::kFp8Tensor, amax))
        << amax;
  }
}

TEST(ConformanceRules, TiesGoWhereTheRuleSays) {
  // Between 1 (38) and 1.125 (39) of E4M3 lies 1.0625; between 2 (4) and 3 (5) of E2M1 lies 2.5.
  EXPECT_EQ(EncodeE4m3(1.0625F, {.ties = TieRule::kEven}), 0x38);
  EXPECT_EQ(EncodeE4m3(1.0625F, {.ties = TieRule::kAway}), 0x39);
  EXPECT_EQ(EncodeE4m3(1.1875F, {.ties = TieRule::kEven}), 0x3A);
  EXPECT_EQ(EncodeE4m3(1.1875F, {.ties = TieRule::kToZero}), 0x39);
  EXPECT_EQ(EncodeE2m1(-2.5F, {.ties = TieRule::kAway}), 0xD);
  EXPECT_EQ(EncodeE2m1(3.5F, {.ties = TieRule::kToZero}), 0x5);
  EXPECT_EQ(EncodeE4m3(-0.0F, {.zero_sign = ZeroSignRule::kExactDropped}), 0x00);
  EXPECT_EQ(EncodeE4m3(-1e-9F, {.zero_sign = ZeroSignRule::kExactDropped}), 0x80);
  EXPECT_EQ(EncodeE4m3(-1e-9F, {.zero_sign = ZeroSignRule::kDropped}), 0x00);
  EXPECT_EQ(EncodeE4m3(470.0F, {.overflow = OverflowRule::kNan}), 0x7F);
  EXPECT_EQ(EncodeE4m3(464.0F, {.overflow = OverflowRule::kNan}), 0x7E);
}

TEST(JudgeQuantizer, PassesOurOwnBytesAndRefusesWhatIsNoKit) {
  const auto report = JudgeQuantizer(kKit, std::string(kKit) + "/expected");
  ASSERT_TRUE(report.has_value()) << report.error().message();
  EXPECT_TRUE(report->Passed());
  EXPECT_EQ(report->formats.size(), 7U);
  EXPECT_EQ(JudgeQuantizer("tests", kKit).error().code(), StatusCode::kNotFound);
  EXPECT_EQ(JudgeQuantizer(kKit, "docs").error().code(), StatusCode::kNotFound);
}

}  // namespace
}  // namespace octavo
