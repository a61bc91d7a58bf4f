#pragma once
// The table that a foreign FP8 list means for a model.

#include "octavo/base/status.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"

namespace octavo {

// Judges every module that SGLang builds for `spec`, in the dialect sglang_fp8. A kept row's rule
// names the key and the entry, as the checkpoint wrote it.
// Errors: kInvalidArgument for a list that splits a fused set: module, shards and entries.
Result<PrecisionTable> TableFromSglangFp8List(const ModelSpec& spec, const SglangFp8List& list);

}  // namespace octavo
