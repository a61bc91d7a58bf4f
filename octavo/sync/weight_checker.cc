#include "octavo/sync/weight_checker.h"

#include <fmt/core.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/buffer.h"
#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/live_weights.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/weight_file.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {
namespace {

// Differing weights that an error names before it only counts.
constexpr int kMaxNamed = 20;

// How far a weight may move by one code when somebody else encodes it.
struct CodeStep {
  // The widest gap between neighbouring normal codes, as a share of the larger one. E4M3 has three
  // bits of mantissa: 1 - 1 / 1.125. E2M1 has one: 1 - 1 / 1.5.
  float of_value = 0.0F;
  // The gap between subnormal codes, as a share of the largest magnitude under the same scale: E4M3
  // 2^-9 / 448, twice that where scales are powers of two; E2M1 0.5 / 6.
  float of_amax = 0.0F;
  int64_t group = 0;  // Consecutive values that share a scale; 0: all of them at most.
};
CodeStep StepOf(WeightFormat format) {
  if (format == WeightFormat::kBf16) {
    return {};
  }
  if (format == WeightFormat::kNvfp4) {
    return {.of_value = 1.0F / 3.0F, .of_amax = 0.5F / 6.0F, .group = 16};
  }
  return {.of_value = 1.0F / 9.0F, .of_amax = 0x1p-8F / 448.0F, .group = 0};
}

float MaxAbs(std::span<const float> values) {
  float largest = 0.0F;
  for (const float value : values) {
    largest = std::max(largest, std::abs(value));
  }
  return largest;
}

bool SameBytes(const Buffer& a, const Buffer& b) {
  return std::ranges::equal(a.bytes(), b.bytes());
}

bool SameForm(const PackedMatrix& a, const PackedMatrix& b) {
  return a.tensor_scale == b.tensor_scale && a.input_scale == b.input_scale &&
         a.vector_dtype == b.vector_dtype;
}

// The values that a weight stands for, F32.
Result<Buffer> Values(const PackedMatrix& matrix, bool is_vector, const Backend& backend) {
  const int64_t count = matrix.rows * matrix.cols;
  ASSIGN_OR_RETURN(Buffer values, Buffer::AllocateHost(count * int64_t{sizeof(float)}));
  const std::span<float> floats = values.As<float>();
  if (is_vector && matrix.vector_dtype == DType::kF32) {
    std::ranges::copy(matrix.codes.As<float>(), floats.begin());
    return values;
  }
  if (matrix.format == WeightFormat::kBf16) {
    ASSIGN_OR_RETURN(Buffer bf16, Buffer::AllocateHost(2 * count));
    if (is_vector) {
      std::ranges::copy(matrix.codes.bytes(), bf16.data());
    } else {
      RETURN_IF_ERROR(backend.UnpackCodes(matrix, 0, matrix.rows, bf16.bytes()));
    }
    std::ranges::transform(bf16.As<uint16_t>(), floats.begin(), &Bf16ToFloat);
    return values;
  }
  ASSIGN_OR_RETURN(Buffer codes,
                   Buffer::AllocateHost(CodeBytes(matrix.format, matrix.rows, matrix.cols)));
  ASSIGN_OR_RETURN(Buffer scales,
                   Buffer::AllocateHost(ScaleBytes(matrix.format, matrix.rows, matrix.cols)));
  RETURN_IF_ERROR(backend.UnpackCodes(matrix, 0, matrix.rows, codes.bytes()));
  RETURN_IF_ERROR(backend.UnpackScales(matrix, scales.bytes()));
  RETURN_IF_ERROR(Dequantize({.format = matrix.format,
                              .rows = matrix.rows,
                              .cols = matrix.cols,
                              .codes = codes.As<uint8_t>(),
                              .scales = scales.bytes(),
                              .tensor_scale = matrix.tensor_scale,
                              .tensor_scale_divides = matrix.tensor_scale_divides,
                              .values = {DType::kF32, {matrix.rows, matrix.cols}, values.data()}}));
  return values;
}

// Values of one group, before and after.
void CompareGroup(std::span<const float> before, std::span<const float> after, const CodeStep& step,
                  ValueDifference* difference) {
  const float floor = step.of_amax * std::max(MaxAbs(before), MaxAbs(after));
  for (size_t i = 0; i < before.size(); ++i) {
    const float distance = std::abs(before[i] - after[i]);
    const float largest = std::max(std::abs(before[i]), std::abs(after[i]));
    // Written so that NaN differs from everything.
    if (!(distance <= std::max(step.of_value * largest, floor))) {
      ++difference->count;
      difference->max_abs = std::max(difference->max_abs, distance);
    }
  }
}

}  // namespace

WeightChecker::WeightChecker(LiveWeights* live)
    : live_(*live), plan_(live->plan()), backend_(live->backend()) {}

bool WeightChecker::IsSkipped(size_t row_idx, const WeightCheckOptions& options) const {
  const std::string& name = plan_.table->rows[row_idx].name;
  return std::ranges::any_of(
      options.skip, [&](const std::string& part) { return name.find(part) != std::string::npos; });
}

Status WeightChecker::Snapshot() {
  RETURN_IF_ERROR(live_.Read([this](const ModelWeights& live) -> Status {
    ASSIGN_OR_RETURN(snapshot_, WeightFile::Write(live, live_.options().backup_dir));
    return OkStatus();
  }));
  LOG(INFO, "weights snapshot bytes={}", snapshot_->num_bytes());
  return OkStatus();
}

Status WeightChecker::ResetTensors(const WeightCheckOptions& options) {
  ThreadPool pool(NumUsableThreads());
  ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> noise,
                   NoiseWeights(plan_, backend_, live_.Base(), &pool));
  RETURN_IF_ERROR(live_.Read([&](const ModelWeights& live) -> Status {
    bool is_skipping = false;
    for (size_t i = 0; i < noise->matrices.size(); ++i) {
      if (IsSkipped(i, options)) {
        ASSIGN_OR_RETURN(noise->matrices[i], Clone(live.matrices[i]));
        is_skipping = true;
      }
    }
    return is_skipping ? DeriveWeights(*plan_.spec, backend_, noise.get()) : OkStatus();
  }));
  RETURN_IF_ERROR(live_.Void(std::move(noise)));
  LOG(WARNING, "weights overwritten with noise: requests are held until an update is complete");
  return OkStatus();
}

Result<ValueDifference> WeightChecker::CompareMatrix(size_t row_idx, const ModelWeights& live,
                                                     const WeightCheckOptions& options) const {
  ASSIGN_OR_RETURN(const PackedMatrix before, snapshot_->ReadMatrix(row_idx));
  const PackedMatrix& after = live.matrices[row_idx];
  const float input_scale =
      live.stored_input_scales.empty() ? 0.0F : live.stored_input_scales[row_idx];
  ValueDifference difference = {.num_values = before.rows * before.cols};
  if (snapshot_->stored_input_scale(row_idx) != input_scale ||
      before.codes.empty() != after.codes.empty() || before.input_scale != after.input_scale) {
    difference.count = difference.num_values;
    return difference;
  }
  if (SameForm(before, after) && SameBytes(before.codes, after.codes) &&
      SameBytes(before.scales, after.scales)) {
    return difference;
  }
  const bool is_vector = IsVector(plan_.table->rows[row_idx]);
  ASSIGN_OR_RETURN(const Buffer old_values, Values(before, is_vector, backend_));
  ASSIGN_OR_RETURN(const Buffer new_values, Values(after, is_vector, backend_));
  const CodeStep step =
      options.allow_quant_error ? StepOf(before.format) : StepOf(WeightFormat::kBf16);
  const std::span<const float> old_floats = old_values.As<float>();
  const auto count = old_floats.size();
  const size_t group = step.group > 0 ? static_cast<size_t>(step.group) : count;
  for (size_t first = 0; first < count; first += group) {
    const size_t size = std::min(group, count - first);
    CompareGroup(old_floats.subspan(first, size), new_values.As<float>().subspan(first, size), step,
                 &difference);
  }
  return difference;
}

Status WeightChecker::Compare(const WeightCheckOptions& options) {
  if (!snapshot_.has_value()) {
    return Unavailable("compare: there is no snapshot; take one with the action snapshot");
  }
  std::string named;
  int num_differing = 0;
  int num_compared = 0;
  RETURN_IF_ERROR(live_.Read([&](const ModelWeights& live) -> Status {
    for (size_t i = 0; i < live.matrices.size(); ++i) {
      if (IsSkipped(i, options)) {
        continue;
      }
      ASSIGN_OR_RETURN(const ValueDifference difference, CompareMatrix(i, live, options));
      ++num_compared;
      if (difference.count > 0 && ++num_differing <= kMaxNamed) {
        named += fmt::format("{}{} ({} of {} values, by up to {})", named.empty() ? "" : ", ",
                             plan_.table->rows[i].name, difference.count, difference.num_values,
                             difference.max_abs);
      }
    }
    return OkStatus();
  }));
  if (num_differing == 0) {
    return OkStatus();
  }
  if (num_differing > kMaxNamed) {
    named += fmt::format(" and {} more", num_differing - kMaxNamed);
  }
  return Corrupt("compare: {} of {} weights differ from the snapshot: {}", num_differing,
                 num_compared, named);
}

}  // namespace octavo
