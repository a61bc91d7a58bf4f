#pragma once
// What stored codes and scales of each format may be.

#include <cstddef>
#include <cstdint>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Whether `view` can stand for `spec`: its dtype and shape, or ones from which the way is exact
// (transform.h, AdoptStored). Errors: kInvalidArgument with name, expected and actual.
Status CheckStoredType(const PrecisionRow& row, const StoredTensorSpec& spec,
                       const ConstTensorView& view);

// No E4M3 code is NaN. Every byte is a pair of E2M1 codes.
Status CheckStoredCodes(const PrecisionRow& row, std::span<const uint8_t> codes);

// Of a part other than the codes: finite and positive, and a power of two for fp8-ue8m0. E4M3 group
// scales may be 0, and an E8M0 byte is anything but NaN. Errors: with the index of the first.
Status CheckStoredScales(const PrecisionRow& row, const StoredTensorSpec& spec,
                         const ConstTensorView& view);

// The bytes of `view`, which CheckStoredType accepts, as `spec` has them.
void CopyStored(const StoredTensorSpec& spec, const ConstTensorView& view,
                std::span<std::byte> out);

}  // namespace octavo
