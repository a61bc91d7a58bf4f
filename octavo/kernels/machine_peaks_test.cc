// Method: no times are judged. The peaks are positive where they exist and refused by name where
// they do not.

#include "octavo/kernels/machine_peaks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <span>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"

namespace octavo {
namespace {

TEST(MeasureReadBandwidth, ReadsSpansOfAnySize) {
  ThreadPool pool(2);
  const std::vector<std::byte> memory(100000);
  const std::vector<std::span<const std::byte>> spans = {
      memory, std::span(memory).first(64), std::span(memory).first(10), {}};
  EXPECT_GT(MeasureReadBandwidth(spans, &pool), 0.0);
  EXPECT_EQ(MeasureReadBandwidth({}, &pool), 0.0);
}

TEST(MeasureMatrixPeak, IsPositiveWhereThePathExists) {
  ThreadPool pool(2);
  for (const Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2}) {
    const Result<double> peak = MeasureMatrixPeak(isa, &pool, 0.001);
    EXPECT_EQ(peak.has_value(), MakeCpuBackend(isa, 1).has_value());
    if (peak.has_value()) {
      EXPECT_GT(*peak, 0.0);
    }
  }
  const Result<double> scalar = MeasureMatrixPeak(Isa::kScalar, &pool, 0.001);
  EXPECT_EQ(scalar.error().code(), StatusCode::kUnsupported);
  EXPECT_THAT(scalar.error().message(), ::testing::HasSubstr("scalar"));
}

}  // namespace
}  // namespace octavo
