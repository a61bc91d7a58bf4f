#pragma once
// Which stored format a foreign quantization_config declares, and in which dialect its list is to
// be read. Everything that it can say and that is not read here is refused by the name of its key.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {

struct DeclaredFormat {
  WeightFormat format = WeightFormat::kBf16;
  std::string rule;  // For a row's `rule`: "quant_method fp8", "config_groups.group_0", ...
};

struct ForeignFormats {
  Dialect dialect = Dialect::kSglangFp8;
  // Whose modules the dialect judges: SGLang's, or those of the library of compressed-tensors.
  ForeignEngine engine = ForeignEngine::kSglang;
  StoredLayout layout = StoredLayout::kDefault;
  bool declares_input_scales = false;
  // The MTP model is built without the configuration: ModelOpt's NVFP4 in SGLang.
  bool drops_mtp = false;
  // compressed-tensors: of each group, in the order written. MIXED_PRECISION: FP8 and NVFP4. All
  // others: one.
  std::vector<DeclaredFormat> formats;

  // Of a module that the dialect found quantized.
  const DeclaredFormat& FormatOf(const MatchResult& match) const;
};

// `fields` are those of the same text.
//   quant_method fp8, mxfp8     as SGLang reads them: FP8 in blocks of 128x128 (scale_fmt ue8m0 or
//                               none), FP8 per tensor (activation_scheme dynamic or static), MXFP8
//   modelopt, modelopt_fp4,     quant_algo FP8, NVFP4 and MIXED_PRECISION of the two; also without
//   modelopt_fp8                quant_method, which hf_quant_config.json does not have
//   compressed-tensors          groups of float-quantized (tensor, channel, blocks of 128x128),
//                               mxfp8-quantized and nvfp4-pack-quantized
// Errors: kUnsupported for everything else, naming the key, what is read and what stands there:
// integers, MXFP4, other block and group sizes, weight-only schemes, rotations, sparsity.
Result<ForeignFormats> ReadForeignFormats(std::string_view quantization_config,
                                          const QuantizationFields& fields);

}  // namespace octavo
