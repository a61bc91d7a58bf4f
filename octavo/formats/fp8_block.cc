#include "octavo/formats/fp8_block.h"

#include <cstddef>
#include <span>

#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"

namespace octavo {

Status EncodeFp8Block(const Fp8BlockEncodeArgs& args) {
  return Quantize({.format = WeightFormat::kFp8,
                   .values = {DType::kBf16,
                              {args.rows, args.cols},
                              reinterpret_cast<const std::byte*>(args.values.data())},
                   .codes = args.codes,
                   .scales = std::as_writable_bytes(args.scales)});
}

}  // namespace octavo
