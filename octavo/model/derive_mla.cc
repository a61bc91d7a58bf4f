// DeriveMlaWeights: kv_b_proj of each layer, decoded and split by head.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/mla.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/model/weight_rows.h"

namespace octavo {
namespace {

// [rows, cols] in BF16: the stored bits, or codes times scales rounded once.
Result<std::vector<uint16_t>> DecodeToBf16(const Backend& backend, const PackedMatrix& packed) {
  std::vector<uint16_t> values(static_cast<size_t>(packed.rows * packed.cols));
  if (packed.format == WeightFormat::kBf16) {
    RETURN_IF_ERROR(
        backend.UnpackCodes(packed, 0, packed.rows, std::as_writable_bytes(std::span(values))));
    return values;
  }
  std::vector<std::byte> codes(
      static_cast<size_t>(CodeBytes(packed.format, packed.rows, packed.cols)));
  // FP32 scales want their alignment.
  const auto scale_bytes = static_cast<size_t>(ScaleBytes(packed.format, packed.rows, packed.cols));
  std::vector<float> scale_words((scale_bytes + sizeof(float) - 1) / sizeof(float));
  const auto scales = std::as_writable_bytes(std::span(scale_words)).first(scale_bytes);
  RETURN_IF_ERROR(backend.UnpackCodes(packed, 0, packed.rows, codes));
  RETURN_IF_ERROR(backend.UnpackScales(packed, scales));
  RETURN_IF_ERROR(
      Dequantize({.format = packed.format,
                  .rows = packed.rows,
                  .cols = packed.cols,
                  .codes = {reinterpret_cast<const uint8_t*>(codes.data()), codes.size()},
                  .scales = scales,
                  .tensor_scale = packed.tensor_scale,
                  .tensor_scale_divides = packed.tensor_scale_divides,
                  .values = {.dtype = DType::kBf16,
                             .shape = {packed.rows, packed.cols},
                             .data = reinterpret_cast<std::byte*>(values.data())}}));
  return values;
}

// [cols, rows] of row-major [rows, cols].
std::vector<uint16_t> Transposed(std::span<const uint16_t> values, int64_t rows, int64_t cols) {
  std::vector<uint16_t> transposed(values.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      transposed[static_cast<size_t>(c * rows + r)] = values[static_cast<size_t>(r * cols + c)];
    }
  }
  return transposed;
}

Result<PackedMatrix> PackBf16(const Backend& backend, std::span<const uint16_t> values,
                              int64_t rows, int64_t cols) {
  PackedMatrix packed;
  RETURN_IF_ERROR(backend.Pack(
      {.rows = rows, .cols = cols, .codes = std::as_bytes(values), .scales = {}}, &packed));
  return packed;
}

Status DeriveLayer(const ModelSpec& spec, const Backend& backend, const PackedMatrix& kv_b,
                   std::span<PackedMatrix> derived) {
  const int64_t nope = spec.mla.qk_nope_head_dim;
  const int64_t v_dim = spec.mla.v_head_dim;
  const int64_t lora = spec.mla.kv_lora_rank;
  CHECK(kv_b.rows == spec.num_heads * (nope + v_dim));
  CHECK(kv_b.cols == lora);
  ASSIGN_OR_RETURN(const std::vector<uint16_t> values, DecodeToBf16(backend, kv_b));
  for (int64_t head = 0; head < spec.num_heads; ++head) {
    const auto rows = std::span(values).subspan(static_cast<size_t>(head * (nope + v_dim) * lora));
    const auto key_elems = static_cast<size_t>(nope * lora);
    const std::vector<uint16_t> key_t = Transposed(rows.first(key_elems), nope, lora);
    ASSIGN_OR_RETURN(derived[static_cast<size_t>(head)], PackBf16(backend, key_t, lora, nope));
    ASSIGN_OR_RETURN(
        derived[static_cast<size_t>(spec.num_heads + head)],
        PackBf16(backend, rows.subspan(key_elems, static_cast<size_t>(v_dim * lora)), v_dim, lora));
  }
  return OkStatus();
}

}  // namespace

Status DeriveMlaWeights(const ModelSpec& spec, const Backend& backend, ModelWeights* weights) {
  const auto per_layer = static_cast<size_t>(2 * spec.num_heads);
  weights->derived.resize(static_cast<size_t>(spec.num_layers) * per_layer);
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    ASSIGN_OR_RETURN(const int row, LayerRows(spec, layer).Weight("self_attn.kv_b_proj"));
    RETURN_IF_ERROR(DeriveLayer(
        spec, backend, weights->matrices[static_cast<size_t>(row)],
        std::span(weights->derived).subspan(static_cast<size_t>(layer) * per_layer, per_layer)));
  }
  return OkStatus();
}

}  // namespace octavo
