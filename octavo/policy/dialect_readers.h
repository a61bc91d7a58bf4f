#pragma once
// The constructors behind MakeReader (dialect.h), one a family.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/quantization_fields.h"

namespace octavo {

using ReaderResult = Result<std::unique_ptr<DialectReader>>;

ReaderResult MakeSglangMatchReader(const QuantizationFields& fields, const ReaderContext& context);
ReaderResult MakeSglangFp8Reader(const QuantizationFields& fields, const ReaderContext& context);
ReaderResult MakeSglangNvfp4OnlineReader(const QuantizationFields& fields,
                                         const ReaderContext& context);
// Also petit_nvfp4, fbgemm_fp8 and blockwise_int8: the matcher without a mapping, linear only.
ReaderResult MakeSglangPlainReader(Dialect dialect, const QuantizationFields& fields,
                                   const ReaderContext& context);
// awq, gguf, moe_wna16.
ReaderResult MakeSglangSubstringReader(Dialect dialect, const QuantizationFields& fields,
                                       const ReaderContext& context);
ReaderResult MakeSglangModelOptReader(const QuantizationFields& fields,
                                      const ReaderContext& context);
ReaderResult MakeSglangModelOptMixedReader(const QuantizationFields& fields,
                                           const ReaderContext& context);
// sglang_compressed_tensors, vllm_compressed_tensors, sglang_quark, sglang_w8a8_int8.
ReaderResult MakeShardedNamesReader(Dialect dialect, const QuantizationFields& fields,
                                    const ReaderContext& context);
ReaderResult MakeCompressedTensorsReader(const QuantizationFields& fields,
                                         const ReaderContext& context);
ReaderResult MakeVllmFp8Reader(const QuantizationFields& fields, const ReaderContext& context);
ReaderResult MakeVllmModelOptReader(const QuantizationFields& fields, const ReaderContext& context);
ReaderResult MakeHfFp8Reader(const QuantizationFields& fields, const ReaderContext& context);
// The trainers' filters, and the refit of miles.
ReaderResult MakeTrainerReader(Dialect dialect, const QuantizationFields& fields,
                               const ReaderContext& context);

}  // namespace octavo
