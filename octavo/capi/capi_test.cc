// Method: the functions of octavo.h as a C program calls them, against the C++ that is behind them;
// tensors at odd strides against dense copies of them; every documented error once.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/float_env.h"
#include "octavo/base/tensor.h"
#include "octavo/capi/source_for_test.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/transform.h"
#include "octavo/octavo.h"
#include "octavo/policy/precision_table.h"

namespace octavo::capi {
namespace {

using ::testing::ElementsAre;
using ::testing::EndsWith;
using ::testing::HasSubstr;
using ::testing::StartsWith;

using QuantizedPtr = std::unique_ptr<octavo_quantized, void (*)(octavo_quantized*)>;
using PolicyPtr = std::unique_ptr<octavo_policy, void (*)(octavo_policy*)>;

octavo_quantize_options OptionsFor(octavo_format format) {
  octavo_quantize_options options = {};
  options.struct_size = sizeof(options);
  options.format = format;
  return options;
}

QuantizedPtr QuantizeOk(const octavo_tensor& tensor, const octavo_quantize_options& options) {
  octavo_quantized* out = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_quantize(&tensor, &options, &out, &error), OCTAVO_OK) << error.message;
  return {out, octavo_quantized_free};
}

std::string BytesOf(const octavo_quantized* quantized) {
  std::string bytes;
  for (int32_t i = 0; i < octavo_quantized_num_parts(quantized); ++i) {
    octavo_part part = {};
    EXPECT_EQ(octavo_quantized_part(quantized, i, &part, nullptr), OCTAVO_OK);
    bytes.append(static_cast<const char*>(part.tensor.data), part.num_bytes);
  }
  return bytes;
}

std::string Refusal(const octavo_tensor& tensor, const octavo_quantize_options& options) {
  octavo_quantized* out = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_quantize(&tensor, &options, &out, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_EQ(out, nullptr);
  EXPECT_EQ(error.status, OCTAVO_INVALID_ARGUMENT);
  return error.message;
}

// --- Names -------------------------------------------------------------------------------------

TEST(CapiNames, GoThereAndBack) {
  EXPECT_EQ(octavo_abi_version(), OCTAVO_ABI_VERSION);
  EXPECT_STRNE(octavo_version(), "");
  for (octavo_dtype dtype = OCTAVO_BOOL; dtype <= OCTAVO_F64; ++dtype) {
    EXPECT_EQ(octavo_dtype_parse(octavo_dtype_name(dtype)), dtype);
  }
  for (octavo_format format = OCTAVO_FORMAT_BF16; format <= OCTAVO_FORMAT_NVFP4; ++format) {
    EXPECT_EQ(octavo_format_parse(octavo_format_name(format)), format);
  }
  EXPECT_EQ(octavo_dtype_parse("FP5"), -1);
  EXPECT_EQ(octavo_format_parse(nullptr), -1);
  EXPECT_EQ(octavo_dtype_name(99), nullptr);
  EXPECT_STREQ(octavo_format_name(OCTAVO_FORMAT_NVFP4), "nvfp4");
  EXPECT_STREQ(octavo_status_name(OCTAVO_UNAVAILABLE), "unavailable");
  EXPECT_STREQ(octavo_status_name(-1), "unknown");
}

// --- Quantize ----------------------------------------------------------------------------------

TEST(CapiQuantize, GivesTheTensorsOfTheTransform) {
  const Source source;
  for (octavo_format format = OCTAVO_FORMAT_BF16; format <= OCTAVO_FORMAT_NVFP4; ++format) {
    for (octavo_layout layout : {OCTAVO_LAYOUT_DEFAULT, OCTAVO_LAYOUT_COMPRESSED_TENSORS}) {
      octavo_quantize_options options = OptionsFor(format);
      options.layout = layout;
      options.name = "model.layers.0.mlp.up_proj.weight";
      const QuantizedPtr quantized = QuantizeOk(source.tensor(), options);
      const PrecisionRow row = {
          .name = options.name, .shape = source.shape, .format = static_cast<WeightFormat>(format)};
      const auto expected =
          TransformWeight(row, source.view(), {.layout = static_cast<StoredLayout>(layout)});
      ASSERT_EQ(octavo_quantized_num_parts(quantized.get()),
                static_cast<int32_t>(expected->size()));
      for (size_t i = 0; i < expected->size(); ++i) {
        const OwnedTensor& stored = (*expected)[i];
        octavo_part part = {};
        ASSERT_EQ(octavo_quantized_part(quantized.get(), static_cast<int32_t>(i), &part, nullptr),
                  OCTAVO_OK);
        EXPECT_EQ(part.name, stored.name);
        EXPECT_EQ(octavo_dtype_name(part.tensor.dtype), DTypeName(stored.dtype));
        EXPECT_EQ(Shape(part.tensor.shape, part.tensor.shape + part.tensor.ndim), stored.shape);
        ASSERT_EQ(part.num_bytes, static_cast<size_t>(stored.bytes.num_bytes()));
        EXPECT_EQ(std::memcmp(part.tensor.data, stored.bytes.data(), part.num_bytes), 0);
      }
    }
  }
}

TEST(CapiQuantize, HonoursStridesOfAnyKindAndNeverWrites) {
  const Source dense;
  const std::vector<std::byte> before = dense.bytes;
  const octavo_quantize_options options = OptionsFor(OCTAVO_FORMAT_FP8);
  const std::string expected = BytesOf(QuantizeOk(dense.tensor(), options).get());

  // Transposed: columns lie next to each other.
  std::vector<uint16_t> values(kRows * kCols);
  std::memcpy(values.data(), dense.bytes.data(), dense.bytes.size());
  std::vector<uint16_t> transposed(values.size());
  // Every second element of rows that are 3 longer, from the last row up.
  constexpr int64_t kWide = 2 * kCols + 3;
  std::vector<uint16_t> sparse(kRows * kWide);
  for (int64_t row = 0; row < kRows; ++row) {
    for (int64_t col = 0; col < kCols; ++col) {
      const uint16_t value = values[static_cast<size_t>(row * kCols + col)];
      transposed[static_cast<size_t>(col * kRows + row)] = value;
      sparse[static_cast<size_t>((kRows - 1 - row) * kWide + 2 * col)] = value;
    }
  }
  const std::array<int64_t, 2> columns = {1, kRows};
  octavo_tensor tensor = dense.tensor();
  tensor.data = transposed.data();
  tensor.strides = columns.data();
  EXPECT_EQ(BytesOf(QuantizeOk(tensor, options).get()), expected);

  const std::array<int64_t, 2> upwards = {-kWide, 2};
  tensor.data = sparse.data() + (kRows - 1) * kWide;
  tensor.strides = upwards.data();
  EXPECT_EQ(BytesOf(QuantizeOk(tensor, options).get()), expected);

  const std::array<int64_t, 2> written_out = {kCols, 1};
  tensor = dense.tensor();
  tensor.strides = written_out.data();
  EXPECT_EQ(BytesOf(QuantizeOk(tensor, options).get()), expected);
  EXPECT_EQ(dense.bytes, before);
}

TEST(CapiQuantize, KeepsTensorsOfEveryRankInBf16) {
  for (const Shape& shape : {Shape{}, Shape{7}, Shape{3, 4, 5}, Shape{2, 1, 3, 2}}) {
    const Source source(shape);
    const QuantizedPtr kept = QuantizeOk(source.tensor(), OptionsFor(OCTAVO_FORMAT_BF16));
    EXPECT_EQ(BytesOf(kept.get()),
              std::string(reinterpret_cast<const char*>(source.bytes.data()), source.bytes.size()));
  }
}

TEST(CapiQuantize, TakesAnyAlignmentAndAnyNumberOfThreads) {
  const Source source;
  std::vector<std::byte> shifted(source.bytes.size() + 1);
  std::memcpy(shifted.data() + 1, source.bytes.data(), source.bytes.size());
  octavo_tensor tensor = source.tensor();
  tensor.data = shifted.data() + 1;
  octavo_threads* threads = nullptr;
  ASSERT_EQ(octavo_threads_create(3, &threads, nullptr), OCTAVO_OK);
  octavo_quantize_options options = OptionsFor(OCTAVO_FORMAT_NVFP4);
  const std::string expected = BytesOf(QuantizeOk(source.tensor(), options).get());
  options.threads = threads;
  EXPECT_EQ(BytesOf(QuantizeOk(tensor, options).get()), expected);
  octavo_threads_free(threads);
  EXPECT_EQ(octavo_threads_create(-1, &threads, nullptr), OCTAVO_INVALID_ARGUMENT);
}

// PyTorch's set_flush_denormal, and libraries built with -ffast-math, leave threads so.
TEST(CapiQuantize, KeepsSubnormalsWhereTheThreadFlushesThem) {
  Source source({128, 128});
  std::vector<uint16_t> values(128 * 128);
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<uint16_t>(1 + i % 100);  // All below BF16's smallest normal.
  }
  std::memcpy(source.bytes.data(), values.data(), source.bytes.size());
  const octavo_quantize_options options = OptionsFor(OCTAVO_FORMAT_FP8_CHANNEL);
  const std::string expected = BytesOf(QuantizeOk(source.tensor(), options).get());
  const ScopedFlushSubnormals flushed;
  EXPECT_EQ(BytesOf(QuantizeOk(source.tensor(), options).get()), expected);
  float amax = 0.0F;
  const octavo_tensor tensor = source.tensor();
  ASSERT_EQ(octavo_amax(&tensor, &options, &amax, nullptr), OCTAVO_OK);
  uint32_t bits = 0;
  std::memcpy(&bits, &amax, sizeof(bits));
  EXPECT_EQ(bits, 100U << 16);
}

TEST(CapiQuantize, SharesTheScaleOfASetWhenItIsGiven) {
  const Source source;
  octavo_quantize_options options = OptionsFor(OCTAVO_FORMAT_FP8_TENSOR);
  const float amax = 3.5F;
  options.shared_amax = &amax;
  const QuantizedPtr quantized = QuantizeOk(source.tensor(), options);
  octavo_part scale = {};
  ASSERT_EQ(octavo_quantized_part(quantized.get(), 1, &scale, nullptr), OCTAVO_OK);
  EXPECT_STREQ(scale.kind, "tensor_scale");
  float value = 0.0F;
  std::memcpy(&value, scale.tensor.data, sizeof(value));
  EXPECT_EQ(value, 3.5F / 448.0F);
}

TEST(CapiQuantize, NamesWhatIsWrong) {
  const Source source;
  const octavo_quantize_options fp8 = OptionsFor(OCTAVO_FORMAT_FP8);
  octavo_tensor tensor = source.tensor();
  tensor.dtype = OCTAVO_I32;
  EXPECT_THAT(Refusal(tensor, fp8), HasSubstr("I32"));
  tensor.dtype = 99;
  EXPECT_THAT(Refusal(tensor, fp8), HasSubstr("99"));
  tensor = source.tensor();
  tensor.data = nullptr;
  EXPECT_THAT(Refusal(tensor, fp8), HasSubstr("NULL"));
  tensor.ndim = 9;
  EXPECT_THAT(Refusal(tensor, fp8), HasSubstr("axes"));
  const std::array<int64_t, 2> huge = {int64_t{1} << 40, int64_t{1} << 40};
  tensor = source.tensor();
  tensor.shape = huge.data();
  EXPECT_THAT(Refusal(tensor, fp8), HasSubstr("extents"));
  EXPECT_THAT(Refusal(Source({4}).tensor(), fp8), HasSubstr("matrix"));
  EXPECT_THAT(Refusal(Source({4, 40}).tensor(), OptionsFor(OCTAVO_FORMAT_MXFP8)),
              HasSubstr("multiple of 32"));
  EXPECT_THAT(Refusal(source.tensor(), OptionsFor(42)), HasSubstr("format"));
  octavo_quantize_options options = fp8;
  options.layout = 7;
  EXPECT_THAT(Refusal(source.tensor(), options), HasSubstr("layout"));
  options = fp8;
  options.struct_size = 8;
  EXPECT_THAT(Refusal(source.tensor(), options), HasSubstr("struct_size"));
  options = OptionsFor(OCTAVO_FORMAT_NVFP4);
  const float small = 1e-6F;
  options.shared_amax = &small;
  EXPECT_THAT(Refusal(source.tensor(), options), HasSubstr("magnitude"));
  const float nan = std::numeric_limits<float>::quiet_NaN();
  options.shared_amax = &nan;
  EXPECT_THAT(Refusal(source.tensor(), options), HasSubstr("shared_amax"));

  Source bad;
  const uint16_t infinity = 0x7F80;
  std::memcpy(bad.bytes.data() + 2 * (3 * kCols + 5), &infinity, sizeof(infinity));
  options = fp8;
  options.name = "w.weight";
  const std::string message = Refusal(bad.tensor(), options);
  EXPECT_THAT(message, StartsWith("w.weight"));
  EXPECT_THAT(message, EndsWith("[3, 5]"));
  EXPECT_EQ(octavo_quantize(nullptr, &fp8, nullptr, nullptr), OCTAVO_INVALID_ARGUMENT);
  octavo_part part = {};
  EXPECT_EQ(octavo_quantized_part(nullptr, 0, &part, nullptr), OCTAVO_NOT_FOUND);
}

TEST(CapiError, CutsAMessageThatIsTooLongAtACharacter) {
  std::string name;
  for (int i = 0; i < 3000; ++i) {
    name += "ä";
  }
  const Source source({4});
  octavo_quantize_options options = OptionsFor(OCTAVO_FORMAT_FP8);
  options.name = name.c_str();
  const std::string message = Refusal(source.tensor(), options);
  EXPECT_EQ(message.size(), OCTAVO_MESSAGE_BYTES - 2U);  // An odd byte of room is left.
  EXPECT_THAT(message, EndsWith("ä"));
}

// --- Policy ------------------------------------------------------------------------------------

TEST(CapiPolicy, SaysWhatAModelFolderAndAPolicyFileSay) {
  const TestFolder folder;
  ASSERT_TRUE(WriteTextFile(folder.Path("config.json"), kTestConfig).ok());
  octavo_policy* made = nullptr;
  octavo_error error = {};
  ASSERT_EQ(
      octavo_policy_load(folder.Path("").c_str(), "format = \"fp8\"\nkeep_last = 1", &made, &error),
      OCTAVO_OK)
      << error.message;
  const PolicyPtr policy(made, octavo_policy_free);
  EXPECT_EQ(octavo_policy_num_weights(made), static_cast<int64_t>(TestSpec().weights.size()));
  octavo_weight weight = {};
  ASSERT_EQ(octavo_policy_find(made, "model.layers.0.mlp.up_proj.weight", &weight, nullptr),
            OCTAVO_OK);
  EXPECT_EQ(weight.format, OCTAVO_FORMAT_FP8);
  EXPECT_STREQ(weight.role, "mlp.up");
  EXPECT_EQ(weight.layer, 0);
  EXPECT_EQ(weight.group, -1);
  EXPECT_THAT(std::vector<int64_t>(weight.shape, weight.shape + weight.ndim),
              ElementsAre(260, 160));
  ASSERT_EQ(octavo_policy_find(made, "model.layers.2.mlp.up_proj.weight", &weight, nullptr),
            OCTAVO_OK);
  EXPECT_EQ(weight.format, OCTAVO_FORMAT_BF16);
  ASSERT_EQ(octavo_policy_weight(made, 0, &weight, nullptr), OCTAVO_OK);
  EXPECT_STREQ(weight.name, "model.embed_tokens.weight");
  EXPECT_EQ(octavo_policy_weight(made, -1, &weight, nullptr), OCTAVO_NOT_FOUND);
  EXPECT_EQ(octavo_policy_find(made, "model.embed", &weight, &error), OCTAVO_NOT_FOUND);

  octavo_buf manifest = {};
  ASSERT_EQ(octavo_policy_manifest(made, &manifest, nullptr), OCTAVO_OK);
  octavo_policy* again = nullptr;
  ASSERT_EQ(octavo_policy_parse(manifest.data, manifest.size, &again, &error), OCTAVO_OK)
      << error.message;
  octavo_buf copy = {};
  ASSERT_EQ(octavo_policy_manifest(again, &copy, nullptr), OCTAVO_OK);
  EXPECT_STREQ(copy.data, manifest.data);
  octavo_buf_free(&copy);
  octavo_buf_free(&manifest);
  EXPECT_EQ(manifest.data, nullptr);
  octavo_policy_free(again);
}

TEST(CapiPolicy, NamesWhatIsWrong) {
  const TestFolder folder;
  octavo_policy* made = nullptr;
  octavo_error error = {};
  EXPECT_EQ(octavo_policy_load(folder.Path("none").c_str(), nullptr, &made, &error),
            OCTAVO_NOT_FOUND);
  ASSERT_TRUE(WriteTextFile(folder.Path("config.json"), kTestConfig).ok());
  EXPECT_EQ(octavo_policy_load(folder.Path("").c_str(), "format = 3", &made, &error),
            OCTAVO_INVALID_ARGUMENT);
  EXPECT_THAT(error.message, HasSubstr("format"));
  EXPECT_EQ(octavo_policy_load(nullptr, nullptr, &made, &error), OCTAVO_INVALID_ARGUMENT);
  EXPECT_EQ(octavo_policy_parse("{", 1, &made, &error), OCTAVO_CORRUPT);
  EXPECT_EQ(made, nullptr);
}

TEST(CapiFree, TakesNull) {
  octavo_buf_free(nullptr);
  octavo_threads_free(nullptr);
  octavo_quantized_free(nullptr);
  octavo_policy_free(nullptr);
  octavo_client_free(nullptr);
  octavo_update_free(nullptr);
  octavo_update_abort(nullptr);
}

}  // namespace
}  // namespace octavo::capi
