#include "octavo/policy/dialect.h"

#include <optional>
#include <span>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/policy/dialect_readers.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr Dialect kDialects[] = {
    Dialect::kSglangMatch,
    Dialect::kSglangFp8,
    Dialect::kSglangModelOpt,
    Dialect::kSglangModelOptMixed,
    Dialect::kSglangNvfp4Online,
    Dialect::kSglangCompressedTensors,
    Dialect::kSglangQuark,
    Dialect::kSglangW8a8Int8,
    Dialect::kSglangPetitNvfp4,
    Dialect::kSglangFbgemmFp8,
    Dialect::kSglangBlockwiseInt8,
    Dialect::kSglangAwq,
    Dialect::kSglangGguf,
    Dialect::kSglangMoeWna16,
    Dialect::kVllmFp8,
    Dialect::kVllmModelOpt,
    Dialect::kVllmCompressedTensors,
    Dialect::kCompressedTensors,
    Dialect::kHfFp8,
    Dialect::kFilterVerl,
    Dialect::kFilterAreal,
    Dialect::kFilterMilesMxfp8,
    Dialect::kFilterMilesNvfp4,
    Dialect::kRefitMilesNvfp4,
};

}  // namespace

std::span<const Dialect> AllDialects() { return kDialects; }

std::string_view DialectName(Dialect dialect) {
  switch (dialect) {
    case Dialect::kSglangMatch:
      return "sglang_match";
    case Dialect::kSglangFp8:
      return "sglang_fp8";
    case Dialect::kSglangModelOpt:
      return "sglang_modelopt";
    case Dialect::kSglangModelOptMixed:
      return "sglang_modelopt_mixed";
    case Dialect::kSglangNvfp4Online:
      return "sglang_nvfp4_online";
    case Dialect::kSglangCompressedTensors:
      return "sglang_compressed_tensors";
    case Dialect::kSglangQuark:
      return "sglang_quark";
    case Dialect::kSglangW8a8Int8:
      return "sglang_w8a8_int8";
    case Dialect::kSglangPetitNvfp4:
      return "sglang_petit_nvfp4";
    case Dialect::kSglangFbgemmFp8:
      return "sglang_fbgemm_fp8";
    case Dialect::kSglangBlockwiseInt8:
      return "sglang_blockwise_int8";
    case Dialect::kSglangAwq:
      return "sglang_awq";
    case Dialect::kSglangGguf:
      return "sglang_gguf";
    case Dialect::kSglangMoeWna16:
      return "sglang_moe_wna16";
    case Dialect::kVllmFp8:
      return "vllm_fp8";
    case Dialect::kVllmModelOpt:
      return "vllm_modelopt";
    case Dialect::kVllmCompressedTensors:
      return "vllm_compressed_tensors";
    case Dialect::kCompressedTensors:
      return "compressed_tensors";
    case Dialect::kHfFp8:
      return "hf_fp8";
    case Dialect::kFilterVerl:
      return "filter_verl";
    case Dialect::kFilterAreal:
      return "filter_areal";
    case Dialect::kFilterMilesMxfp8:
      return "filter_miles_mxfp8";
    case Dialect::kFilterMilesNvfp4:
      return "filter_miles_nvfp4";
    case Dialect::kRefitMilesNvfp4:
      return "refit_miles_nvfp4";
  }
  return "unknown";
}

std::optional<Dialect> ParseDialect(std::string_view name) {
  for (const Dialect dialect : kDialects) {
    if (DialectName(dialect) == name) {
      return dialect;
    }
  }
  return std::nullopt;
}

std::string_view ClassNameOf(ModuleKind kind) {
  switch (kind) {
    case ModuleKind::kMoe:
      return "FusedMoE";
    case ModuleKind::kEmbedding:
      return "Embedding";
    case ModuleKind::kRouter:
      return "Router";
    case ModuleKind::kNorm:
      return "RMSNorm";
    case ModuleKind::kLinear:
    case ModuleKind::kLmHead:
      return "Linear";
  }
  return "Linear";
}

MatchResult DialectReader::Judge(const ModuleQuery& module) const {
  MatchResult result = Match(module);
  if (result.verdict == Verdict::kSkipped) {
    result.method = "bf16";
  } else if (result.verdict == Verdict::kError) {
    result.method.clear();
  } else if (result.method.empty()) {
    result.method = method_;
  }
  return result;
}

ReaderResult MakeReader(Dialect dialect, const QuantizationFields& fields,
                        const ReaderContext& context) {
  switch (dialect) {
    case Dialect::kSglangMatch:
      return MakeSglangMatchReader(fields, context);
    case Dialect::kSglangFp8:
      return MakeSglangFp8Reader(fields, context);
    case Dialect::kSglangModelOpt:
      return MakeSglangModelOptReader(fields, context);
    case Dialect::kSglangModelOptMixed:
      return MakeSglangModelOptMixedReader(fields, context);
    case Dialect::kSglangNvfp4Online:
      return MakeSglangNvfp4OnlineReader(fields, context);
    case Dialect::kSglangCompressedTensors:
    case Dialect::kVllmCompressedTensors:
    case Dialect::kSglangQuark:
    case Dialect::kSglangW8a8Int8:
      return MakeShardedNamesReader(dialect, fields, context);
    case Dialect::kSglangPetitNvfp4:
    case Dialect::kSglangFbgemmFp8:
    case Dialect::kSglangBlockwiseInt8:
      return MakeSglangPlainReader(dialect, fields, context);
    case Dialect::kSglangAwq:
    case Dialect::kSglangGguf:
    case Dialect::kSglangMoeWna16:
      return MakeSglangSubstringReader(dialect, fields, context);
    case Dialect::kVllmFp8:
      return MakeVllmFp8Reader(fields, context);
    case Dialect::kVllmModelOpt:
      return MakeVllmModelOptReader(fields, context);
    case Dialect::kCompressedTensors:
      return MakeCompressedTensorsReader(fields, context);
    case Dialect::kHfFp8:
      return MakeHfFp8Reader(fields, context);
    case Dialect::kFilterVerl:
    case Dialect::kFilterAreal:
    case Dialect::kFilterMilesMxfp8:
    case Dialect::kFilterMilesNvfp4:
    case Dialect::kRefitMilesNvfp4:
      return MakeTrainerReader(dialect, fields, context);
  }
  return Unsupported("dialect {}", static_cast<int>(dialect));
}

ReaderResult MakeReader(Dialect dialect, std::string_view quantization_config,
                        const ReaderContext& context) {
  ASSIGN_OR_RETURN(const QuantizationFields fields, ReadQuantizationFields(quantization_config));
  return MakeReader(dialect, fields, context);
}

}  // namespace octavo
