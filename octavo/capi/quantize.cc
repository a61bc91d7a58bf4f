// octavo_quantize and octavo_amax: the one transform behind the C ABI.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/capi/boundary.h"
#include "octavo/capi/tensor_in.h"
#include "octavo/capi/threads.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/octavo.h"
#include "octavo/policy/manifest.h"
#include "octavo/policy/precision_table.h"

using octavo::PrecisionRow;
using octavo::Result;
using octavo::Status;
using octavo::StoredTensorSpec;
using octavo::WeightFormat;

struct octavo_quantized {
  std::vector<octavo::OwnedTensor> tensors;
  std::vector<StoredTensorSpec> specs;  // Of the same tensors.
};

namespace octavo::capi {
namespace {

static_assert(static_cast<int>(WeightFormat::kBf16) == OCTAVO_FORMAT_BF16);
static_assert(static_cast<int>(WeightFormat::kFp8) == OCTAVO_FORMAT_FP8);
static_assert(static_cast<int>(WeightFormat::kFp8Ue8m0) == OCTAVO_FORMAT_FP8_UE8M0);
static_assert(static_cast<int>(WeightFormat::kFp8Channel) == OCTAVO_FORMAT_FP8_CHANNEL);
static_assert(static_cast<int>(WeightFormat::kFp8Tensor) == OCTAVO_FORMAT_FP8_TENSOR);
static_assert(static_cast<int>(WeightFormat::kMxfp8) == OCTAVO_FORMAT_MXFP8);
static_assert(static_cast<int>(WeightFormat::kNvfp4) == OCTAVO_FORMAT_NVFP4);
static_assert(static_cast<int>(StoredLayout::kCompressedTensors) ==
              OCTAVO_LAYOUT_COMPRESSED_TENSORS);

// One call's tensor and what is to become of it.
struct Job {
  DenseTensor source;
  PrecisionRow row;
  TransformOptions options;
};

Result<Job> MakeJob(const octavo_tensor* tensor, const octavo_quantize_options* options) {
  RETURN_IF_ERROR(CheckStruct(options, sizeof(octavo_quantize_options), "options"));
  if (options->format < OCTAVO_FORMAT_BF16 || options->format > OCTAVO_FORMAT_NVFP4) {
    return InvalidArgument("format: expected one of octavo.h, got {}", options->format);
  }
  if (options->layout != OCTAVO_LAYOUT_DEFAULT &&
      options->layout != OCTAVO_LAYOUT_COMPRESSED_TENSORS) {
    return InvalidArgument("layout: expected one of octavo.h, got {}", options->layout);
  }
  Job job;
  job.row.name = options->name == nullptr ? "weight" : options->name;
  ASSIGN_OR_RETURN(job.source, DenseTensor::From(tensor, job.row.name));
  job.row.shape = job.source.view().shape;
  job.row.format = static_cast<WeightFormat>(options->format);
  job.options = {.layout = static_cast<StoredLayout>(options->layout),
                 .direct = options->direct != 0,
                 .pool = PoolOf(options->threads)};
  if (options->shared_amax != nullptr) {
    if (!std::isfinite(*options->shared_amax) || *options->shared_amax < 0.0F) {
      return InvalidArgument("shared_amax: expected a finite magnitude, got {}",
                             *options->shared_amax);
    }
    job.options.shared_amax = *options->shared_amax;
  }
  return job;
}

}  // namespace
}  // namespace octavo::capi

const char* octavo_format_name(octavo_format format) {
  return format >= OCTAVO_FORMAT_BF16 && format <= OCTAVO_FORMAT_NVFP4
             ? octavo::WeightFormatName(static_cast<WeightFormat>(format)).data()
             : nullptr;
}

octavo_format octavo_format_parse(const char* name) {
  const auto format = octavo::ParseWeightFormat(name == nullptr ? "" : name);
  return format.has_value() ? static_cast<octavo_format>(*format) : -1;
}

octavo_status octavo_threads_create(int32_t num_threads, octavo_threads** out,
                                    octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    if (num_threads < 0 || num_threads > 1024) {
      return octavo::InvalidArgument("num_threads: expected 0 to 1024, got {}", num_threads);
    }
    *out = std::make_unique<octavo_threads>(num_threads == 0 ? octavo::NumUsableThreads()
                                                             : num_threads)
               .release();
    return octavo::OkStatus();
  });
}

void octavo_threads_free(octavo_threads* threads) {
  const std::unique_ptr<octavo_threads> owner(threads);
}

octavo_status octavo_quantize(const octavo_tensor* tensor, const octavo_quantize_options* options,
                              octavo_quantized** out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(const octavo::capi::Job job, octavo::capi::MakeJob(tensor, options));
    auto quantized = std::make_unique<octavo_quantized>();
    ASSIGN_OR_RETURN(quantized->tensors,
                     octavo::TransformWeight(job.row, job.source.view(), job.options));
    quantized->specs = octavo::StoredTensorsOf(job.row, job.options.layout);
    *out = quantized.release();
    return octavo::OkStatus();
  });
}

int32_t octavo_quantized_num_parts(const octavo_quantized* quantized) {
  return quantized == nullptr ? 0 : static_cast<int32_t>(quantized->tensors.size());
}

octavo_status octavo_quantized_part(const octavo_quantized* quantized, int32_t part_idx,
                                    octavo_part* out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    if (part_idx < 0 || part_idx >= octavo_quantized_num_parts(quantized)) {
      return octavo::NotFound("part_idx: expected 0 to {}, got {}",
                              octavo_quantized_num_parts(quantized) - 1, part_idx);
    }
    const auto idx = static_cast<size_t>(part_idx);
    const octavo::OwnedTensor& stored = quantized->tensors[idx];
    *out = {.name = stored.name.c_str(),
            .kind = octavo::StoredPartName(quantized->specs[idx].part).data(),
            .tensor = {.data = stored.bytes.data(),
                       .dtype = static_cast<octavo_dtype>(stored.dtype),
                       .ndim = static_cast<int32_t>(stored.shape.size()),
                       .shape = stored.shape.data(),
                       .strides = nullptr},
            .num_bytes = static_cast<size_t>(stored.bytes.num_bytes())};
    return octavo::OkStatus();
  });
}

void octavo_quantized_free(octavo_quantized* quantized) {
  const std::unique_ptr<octavo_quantized> owner(quantized);
}

octavo_status octavo_amax(const octavo_tensor* tensor, const octavo_quantize_options* options,
                          float* out, octavo_error* error) {
  return octavo::capi::Run(error, [&]() -> Status {
    RETURN_IF_ERROR(octavo::capi::CheckGiven(out, "out"));
    ASSIGN_OR_RETURN(const octavo::capi::Job job, octavo::capi::MakeJob(tensor, options));
    ASSIGN_OR_RETURN(*out, octavo::WeightAmax(job.row, job.source.view(), job.options));
    return octavo::OkStatus();
  });
}
