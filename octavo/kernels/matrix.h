#pragma once
// Weights as kernels see them: canonical views (HF layout, the truth) and packed ones (whatever the
// backend computes with; a pure function of the canonical bytes).

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/buffer.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"

namespace octavo {

// How a linear layer reads its input: part of the arithmetic, decided when a weight is loaded.
// Formulas are in ops.h (LinearArgs) and linear_input.h. Source: docs/numerics.md.
enum class InputForm {
  kBf16,         // As it is: BF16 weights, and the weight-only forms (W8A16, W4A16) of the others.
  kFp8Group,     // E4M3, an FP32 scale per token and 128 of depth: fp8, fp8-ue8m0.
  kFp8Token,     // E4M3, an FP32 scale per token: fp8-channel, fp8-tensor.
  kFp8Static,    // E4M3, input_scale of the checkpoint: foreign fp8-tensor.
  kMxfp8,        // E4M3, an E8M0 scale per token and 32 of depth: mxfp8.
  kNvfp4Token,   // E2M1 and E4M3 group scales; the global scale from the token's row.
  kNvfp4Pow2,    // The global scale is 1 for all.
  kNvfp4Static,  // The global scale is input_scale of the checkpoint.
  kNvfp4Batch,   // From all rows of the call: the only form in which tokens depend on each other.
};

// y = x W^T with W [rows, cols] = [out, in]. Views; the tensors they came from must outlive them.
// Of scales, Pack refuses by row and columns what no formula of ops.h has: a group scale of nvfp4
// that is negative or NaN (bytes above 0x7E), one of mxfp8 outside 2^-117 to 2^119 beside codes
// that are not all zero, a tensor scale that is not finite, an input scale that is not finite or
// above 0.
struct CanonicalMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  std::span<const std::byte> codes;   // CodeBytes of formats/quantize.h; bf16: BF16 [rows, cols].
  std::span<const std::byte> scales;  // ScaleBytes of formats/quantize.h; aligned as its elements.
  float tensor_scale = 1.0F;          // fp8-tensor, nvfp4: as DequantizeArgs has it.
  bool tensor_scale_divides = false;
  InputForm input = InputForm::kBf16;
  float input_scale = 1.0F;  // Multiplies codes; read for kFp8Static and kNvfp4Static alone.
};

// The same in a backend's layout. Made by Backend::Pack, and only readable by that backend.
// Vectors (norm weights, biases) are kept as one canonical row: BF16, but F32 where vector_dtype
// says so (a router's bias).
struct PackedMatrix {
  WeightFormat format = WeightFormat::kBf16;
  int64_t rows = 0;
  int64_t cols = 0;
  Buffer codes;
  Buffer scales;
  float tensor_scale = 1.0F;
  bool tensor_scale_divides = false;
  InputForm input = InputForm::kBf16;
  float input_scale = 1.0F;
  DType vector_dtype = DType::kBf16;

  // What multiplies, whichever way the checkpoint stores it.
  float TensorScale() const { return tensor_scale_divides ? 1.0F / tensor_scale : tensor_scale; }
};

}  // namespace octavo
