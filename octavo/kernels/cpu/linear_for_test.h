#pragma once
// For tests of linear layers: every weight format with every form of input that goes with it, and
// one layer by one call.

#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {

struct FormCase {
  WeightFormat format;
  InputForm input;
};

// Every pair that goes together.
inline constexpr std::array kForms = {
    FormCase{WeightFormat::kBf16, InputForm::kBf16},
    FormCase{WeightFormat::kFp8, InputForm::kFp8Group},
    FormCase{WeightFormat::kFp8, InputForm::kBf16},
    FormCase{WeightFormat::kFp8Ue8m0, InputForm::kFp8Group},
    FormCase{WeightFormat::kFp8Ue8m0, InputForm::kBf16},
    FormCase{WeightFormat::kFp8Channel, InputForm::kFp8Token},
    FormCase{WeightFormat::kFp8Channel, InputForm::kBf16},
    FormCase{WeightFormat::kFp8Tensor, InputForm::kFp8Token},
    FormCase{WeightFormat::kFp8Tensor, InputForm::kFp8Static},
    FormCase{WeightFormat::kFp8Tensor, InputForm::kBf16},
    FormCase{WeightFormat::kMxfp8, InputForm::kMxfp8},
    FormCase{WeightFormat::kMxfp8, InputForm::kBf16},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Token},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Pow2},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Static},
    FormCase{WeightFormat::kNvfp4, InputForm::kNvfp4Batch},
    FormCase{WeightFormat::kNvfp4, InputForm::kBf16},
};

inline std::string Describe(const FormCase& form) {
  return fmt::format("{} with input form {}", WeightFormatName(form.format),
                     static_cast<int>(form.input));
}

inline TestActivations RunLinear(Backend* backend, const PackedMatrix& weight,
                                 const TestActivations& x, DType dtype = DType::kBf16,
                                 const PackedMatrix* bias = nullptr) {
  TestActivations y(dtype, x.view().rows, weight.rows);
  const LinearPart part{&weight, y.view(), bias};
  const Status status = backend->Linear({x.view(), {&part, 1}});
  EXPECT_TRUE(status.ok()) << status.message();
  return y;
}

// Rows picked from x, in order.
inline TestActivations Rows(const TestActivations& x, std::span<const int64_t> rows) {
  TestActivations picked(DType::kBf16, static_cast<int64_t>(rows.size()), x.view().cols);
  for (size_t i = 0; i < rows.size(); ++i) {
    for (int64_t c = 0; c < x.view().cols; ++c) {
      picked.Set(static_cast<int64_t>(i), c, x.At(rows[i], c));
    }
  }
  return picked;
}

}  // namespace octavo
