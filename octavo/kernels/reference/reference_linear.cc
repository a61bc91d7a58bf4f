// Linear layers of the reference backend.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/bf16.h"
#include "octavo/formats/e4m3.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/check_args.h"
#include "octavo/kernels/fp8_activation.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/reference/reference_backend.h"
#include "octavo/kernels/reference/row_math.h"

namespace octavo::reference {

// Fills input_ (rows padded with zeros to whole tiles) and, when quantizing, input_scales_.
void ReferenceBackend::LoadLinearInput(const Activations& x, bool quantize) {
  const int64_t depth = PadTo(x.cols, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(x.cols);
  GrowTo(&input_, x.rows * depth);
  GrowTo(&input_scales_, x.rows * num_blocks);
  pool_.ParallelFor(x.rows, [&](int64_t begin, int64_t end, int /*worker*/) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = input_.data() + t * depth;
      LoadRow(x, t, 0, x.cols, row);
      std::fill(row + x.cols, row + depth, 0.0F);
      for (int64_t block = 0; quantize && block < num_blocks; ++block) {
        const int64_t first = block * kActivationGroup;
        const auto size = static_cast<size_t>(std::min(kActivationGroup, x.cols - first));
        input_scales_[static_cast<size_t>(t * num_blocks + block)] =
            QuantizeFp8Group({row + first, size}, {row + first, size});
      }
    }
  });
}

void ReferenceBackend::LinearOutputs(const LinearArgs& args, const LinearPart& part) {
  const PackedMatrix& weight = *part.weight;
  const int64_t in = args.x.cols;
  const int64_t depth = PadTo(in, kTileDepth);
  const int64_t num_blocks = NumFp8Blocks(in);
  pool_.ParallelFor(weight.rows, [&](int64_t begin, int64_t end, int worker) {
    float* w = workers_[static_cast<size_t>(worker)].row.data();
    std::fill(w + in, w + depth, 0.0F);
    for (int64_t n = begin; n < end; ++n) {
      const float* sw = nullptr;
      if (weight.format == WeightFormat::kBf16) {
        LoadBf16(weight.codes.data() + n * in * 2, in, w);
      } else {
        const auto* codes = reinterpret_cast<const uint8_t*>(weight.codes.data()) + n * in;
        std::transform(codes, codes + in, w, E4m3ToFloat);
        sw = weight.scales.As<float>().data() + n / kFp8BlockDim * num_blocks;
      }
      for (int64_t t = 0; t < args.x.rows; ++t) {
        const float* x = input_.data() + t * depth;
        const float y = sw == nullptr
                            ? math_.dot(x, w, depth)
                            : math_.dot_fp8(x, w, depth, input_scales_.data() + t * num_blocks, sw);
        StoreRow(part.y, t, n, 1, &y);
      }
    }
  });
}

Status ReferenceBackend::Linear(const LinearArgs& args) {
  CheckArgs(args, activation_dtype());
  const OpScope scope(*this);
  ReserveRow(PadTo(args.x.cols, kTileDepth));
  std::optional<bool> loaded_quantized;
  for (const LinearPart& part : args.parts) {
    const bool quantize = is_serving() && part.weight->format == WeightFormat::kFp8;
    if (loaded_quantized != quantize) {
      LoadLinearInput(args.x, quantize);
      loaded_quantized = quantize;
    }
    LinearOutputs(args, part);
  }
  return OkStatus();
}

Status ReferenceBackend::GroupedLinear(const GroupedLinearArgs& args) {
  CheckArgs(args, activation_dtype());
  return Unsupported("GroupedLinear on {}", name());
}

}  // namespace octavo::reference
