#include "octavo/sync/live_digest.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/digest.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// Bytes unpacked at a time.
constexpr int64_t kBandBytes = int64_t{1} << 20;

Result<std::string> DigestCodes(const PackedMatrix& packed, int64_t row_bytes,
                                const Backend& backend) {
  const int64_t band_rows = std::clamp<int64_t>(kBandBytes / row_bytes, 1, packed.rows);
  ASSIGN_OR_RETURN(Buffer band, Buffer::AllocateHost(band_rows * row_bytes));
  TensorHasher hasher;
  for (int64_t row = 0; row < packed.rows; row += band_rows) {
    const int64_t num_rows = std::min(band_rows, packed.rows - row);
    const std::span<std::byte> bytes =
        band.bytes().first(static_cast<size_t>(num_rows * row_bytes));
    RETURN_IF_ERROR(backend.UnpackCodes(packed, row, num_rows, bytes));
    hasher.Update(bytes);
  }
  return HashHex(hasher.Finish());
}

Result<std::string> DigestScales(const PackedMatrix& packed, const Shape& shape,
                                 const Backend& backend) {
  std::vector<float> scales(static_cast<size_t>(NumElements(shape)));
  const std::span<std::byte> bytes = std::as_writable_bytes(std::span(scales));
  RETURN_IF_ERROR(backend.UnpackScales(packed, bytes));
  return HashHex(TensorDigest(bytes));
}

}  // namespace

Result<ModelDigest> DigestLiveWeights(const PrecisionTable& table, const ModelWeights& weights,
                                      const Backend& backend) {
  CHECK(weights.matrices.size() == table.rows.size());
  std::vector<TensorDigestLine> lines;
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    const PackedMatrix& packed = weights.matrices[i];
    const std::vector<StoredTensorSpec> stored = StoredTensorsOf(row);
    std::string hex;
    if (row.role == Role::kNorm) {
      hex = HashHex(TensorDigest(packed.codes.bytes()));
    } else {
      ASSIGN_OR_RETURN(hex,
                       DigestCodes(packed, packed.cols * DTypeBytes(stored[0].dtype), backend));
    }
    lines.push_back({stored[0].name, stored[0].dtype, stored[0].shape, hex});
    if (stored.size() > 1) {
      ASSIGN_OR_RETURN(hex, DigestScales(packed, stored[1].shape, backend));
      lines.push_back({stored[1].name, stored[1].dtype, stored[1].shape, hex});
    }
  }
  return ModelDigestOf(std::move(lines));
}

}  // namespace octavo
