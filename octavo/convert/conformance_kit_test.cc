// Method: the committed kit holds what a second implementation (scripts/make_conformance.py) makes
// of its inputs; the quantizer, scalar and vectorized, and the transform must give every byte of
// it, and decoding must be within the format's error. tests/test_conformance.py tests what the
// program says about other quantizers.

#include "octavo/convert/conformance_kit.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/convert/conformance_kit_rules.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e2m1.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/e8m0.h"
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

// [bits of an FP32, code], both in hexadecimal, as elements.json holds them.
void ForEachElement(const nlohmann::json& list, const std::function<void(float, int)>& visit) {
  ASSERT_FALSE(list.empty());
  for (const nlohmann::json& entry : list) {
    const auto input = entry[0].get<std::string>();
    const auto code = entry[1].get<std::string>();
    visit(std::bit_cast<float>(static_cast<uint32_t>(std::stoul(input, nullptr, 16))),
          std::stoi(code, nullptr, 16));
  }
}

TEST(ConformanceElements, AreWhatTheCodecsGive) {
  const auto text = ReadTextFile(std::string(kKit) + "/elements.json");
  ASSERT_TRUE(text.has_value()) << text.error().message();
  const nlohmann::json elements = nlohmann::json::parse(*text);
  ForEachElement(elements.at("e4m3"),
                 [](float x, int code) { EXPECT_EQ(FloatToE4m3(x), code) << x; });
  ForEachElement(elements.at("e2m1"),
                 [](float x, int code) { EXPECT_EQ(FloatToE2m1(x), code) << x; });
  ForEachElement(elements.at("e8m0_round_up"),
                 [](float x, int code) { EXPECT_EQ(FloatToE8m0RoundUp(x), code) << x; });
  EXPECT_EQ(elements.size(), 4U);  // And "about": no list is left out.
}

// docs/formats.md, where the bytes of other quantizers part from ours.
TEST(ConformanceRules, GiveThePublishedBytesOfOthers) {
  const ElementRule nan = {.overflow = OverflowRule::kNan};
  const std::vector<std::pair<float, int>> not_saturating = {{448.0F, 0x7e},
                                                             {464.0F, 0x7e},
                                                             {464.0001F, 0x7f},
                                                             {480.0F, 0x7f},
                                                             {-0.0F, 0x80},
                                                             {0x1p-10F, 0x00},
                                                             {0x1p-10F * (1.0F + 0x1p-23F), 0x01},
                                                             {0x1.8p-9F, 0x02}};
  for (const auto& [x, code] : not_saturating) {
    EXPECT_EQ(EncodeE4m3(x, nan), code) << x;
  }
  const std::array amaxes = {448.0F, 1.75F, 1.7578125F, 1.0F, 0.875F, 3.5F};
  const std::array up = {127, 119, 120, 119, 118, 120};
  const std::array floor = {127, 119, 119, 119, 118, 120};
  const std::array even = {128, 120, 120, 119, 119, 121};
  for (size_t i = 0; i < amaxes.size(); ++i) {
    EXPECT_EQ(MxByte(amaxes[i], MxScale::kRoundUp, 0), up[i]) << amaxes[i];
    EXPECT_EQ(MxByte(amaxes[i], MxScale::kFloor, 0), floor[i]) << amaxes[i];
    EXPECT_EQ(MxByte(amaxes[i], MxScale::kEven, 0), even[i]) << amaxes[i];
  }
  const auto fp8 = [](uint16_t amax_bits, uint16_t x, Fp8Floor least, Fp8Element element) {
    const float amax = Bf16ToFloat(amax_bits);
    const float scale = Fp8ScaleOf(amax, Fp8Scale::kDivide, least);
    return EncodeE4m3(Fp8Quotient(Bf16ToFloat(x), scale, amax, least, element), {});
  };
  EXPECT_EQ(fp8(0x3dcc, 0x3b19, Fp8Floor::k1e10, Fp8Element::kDivide), 0x52);
  EXPECT_EQ(fp8(0x3dcc, 0x3b19, Fp8Floor::k1e10, Fp8Element::kReciprocal), 0x53);
  EXPECT_EQ(fp8(0x3d93, 0xbb33, Fp8Floor::k1e12, Fp8Element::kDivide), 0xd9);
  EXPECT_EQ(fp8(0x3d93, 0xbb33, Fp8Floor::k1e12, Fp8Element::kBf16), 0xd8);
  const NvGlobals globals = NvGlobalsOf(1.015625F, NvGlobal::kReciprocalOfS, NvZeroSet::kOne);
  EXPECT_EQ(NvGroupByte(4.6491623e-05F, globals, {}), 0x0b);
  EXPECT_EQ(NvGroupByte(4.6491623e-05F, globals, {.group = NvGroup::kSixthTimesS}), 0x0a);
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
