#pragma once
// The table that a foreign quantization_config means for a model.

#include <string_view>

#include "octavo/base/status.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Judges every module that the engine of the configuration's dialect builds for `spec`
// (foreign_format.h says which formats and dialects are read); our own key is not looked at. A kept
// row's rule names the key and the entry, as the checkpoint wrote it.
// Errors: those of ReadQuantizationFields, ReadForeignFormats and MakeReader; kInvalidArgument for
// a list that splits what engines serve as one (module, shards and entries), and for a quantized
// weight whose rows do not fit the format; kUnsupported for a quantized head, router or embedding.
Result<PrecisionTable> TableFromForeignConfig(const ModelSpec& spec,
                                              std::string_view quantization_config);

}  // namespace octavo
