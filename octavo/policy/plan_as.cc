#include "octavo/policy/plan_as.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/engine_readers.h"
#include "octavo/policy/list_findings.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kMissing = "missing";
constexpr std::string_view kMixed = "mixed";
constexpr std::string_view kNoScales = "fp8 without scales";
constexpr std::string_view kBf16 = "bf16";

using Stored = std::map<std::string, StoredDType, std::less<>>;

struct MethodName {
  ForeignEngine engine;
  std::string_view quant_method;
  Dialect dialect;
};
constexpr MethodName kMethods[] = {
    {ForeignEngine::kSglang, "fp8", Dialect::kSglangFp8},
    {ForeignEngine::kSglang, "mxfp8", Dialect::kSglangFp8},
    {ForeignEngine::kSglang, "modelopt", Dialect::kSglangModelOpt},
    {ForeignEngine::kSglang, "modelopt_fp8", Dialect::kSglangModelOpt},
    {ForeignEngine::kSglang, "modelopt_fp4", Dialect::kSglangModelOpt},
    {ForeignEngine::kSglang, "compressed-tensors", Dialect::kSglangCompressedTensors},
    {ForeignEngine::kSglang, "quark", Dialect::kSglangQuark},
    {ForeignEngine::kSglang, "w8a8_int8", Dialect::kSglangW8a8Int8},
    {ForeignEngine::kSglang, "petit_nvfp4", Dialect::kSglangPetitNvfp4},
    {ForeignEngine::kSglang, "fbgemm_fp8", Dialect::kSglangFbgemmFp8},
    {ForeignEngine::kSglang, "blockwise_int8", Dialect::kSglangBlockwiseInt8},
    {ForeignEngine::kSglang, "awq", Dialect::kSglangAwq},
    {ForeignEngine::kSglang, "gguf", Dialect::kSglangGguf},
    {ForeignEngine::kSglang, "moe_wna16", Dialect::kSglangMoeWna16},
    {ForeignEngine::kVllm, "fp8", Dialect::kVllmFp8},
    {ForeignEngine::kVllm, "modelopt", Dialect::kVllmModelOpt},
    {ForeignEngine::kVllm, "modelopt_fp4", Dialect::kVllmModelOpt},
    {ForeignEngine::kVllm, "compressed-tensors", Dialect::kVllmCompressedTensors},
    {ForeignEngine::kTransformers, "fp8", Dialect::kHfFp8},
    {ForeignEngine::kTransformers, "compressed-tensors", Dialect::kCompressedTensors},
    {ForeignEngine::kCompressedTensors, "compressed-tensors", Dialect::kCompressedTensors},
    {ForeignEngine::kModelOpt, "modelopt", Dialect::kSglangModelOpt},
};

// --- What is stored ------------------------------------------------------------------------------

const StoredDType* Find(const Stored& stored, std::string_view name) {
  const auto found = stored.find(name);
  return found == stored.end() ? nullptr : &found->second;
}

// Experts may be stored as one 3-D tensor a projection, beside the container's name.
const StoredDType* FindStacked(const Stored& stored, const WeightSpec& weight) {
  const size_t at = weight.name.find(".experts.");
  if (!IsExpertRole(weight.role) || at == std::string::npos) {
    return nullptr;
  }
  const std::string stem = weight.name.substr(0, at) + ".experts.";
  return Find(stored, stem + (weight.role == Role::kExpertDown ? "down_proj" : "gate_up_proj"));
}

// Bytes as scales: of groups of 32 along a row, or powers of two of whole blocks.
bool IsGroupScale(const StoredDType& scale, const WeightSpec& weight) {
  const bool is_byte = scale.dtype == DType::kU8 || scale.dtype == DType::kF8E8m0;
  const bool has_shapes = scale.shape.size() == 2 && weight.shape.size() == 2;
  const int64_t group = ColsMultipleOf(WeightFormat::kMxfp8);
  return is_byte && (!has_shapes || scale.shape[1] * group == weight.shape[1]);
}

std::string StoredOf(const Stored& stored, const WeightSpec& weight) {
  const std::string module(ModuleOfWeight(weight.name));
  if (Find(stored, module + ".weight_packed") != nullptr) {
    return "nvfp4";
  }
  const StoredDType* codes = Find(stored, weight.name);
  if (codes == nullptr) {
    codes = FindStacked(stored, weight);
  }
  if (codes == nullptr) {
    return std::string(kMissing);
  }
  const StoredDType* scale = Find(stored, module + ".weight_scale_inv");
  if (scale == nullptr) {
    scale = Find(stored, module + ".weight_scale");
  }
  switch (codes->dtype) {
    case DType::kBf16:
    case DType::kF16:
    case DType::kF32:
      return std::string(kBf16);
    case DType::kF8E4m3:
      if (scale == nullptr) {
        return std::string(kNoScales);
      }
      return IsGroupScale(*scale, weight) ? "mxfp8" : "fp8";
    case DType::kU8:
      return scale != nullptr && scale->dtype == DType::kF8E4m3 ? "nvfp4" : "U8";
    default:
      return std::string(DTypeName(codes->dtype));
  }
}

// One word for all weights of a module.
std::string StoredOf(const Stored& tensors, const ModelSpec& spec, const EngineModule& module) {
  std::string stored;
  for (const int weight_idx : module.weights) {
    std::string one = StoredOf(tensors, spec.weights[static_cast<size_t>(weight_idx)]);
    if (stored.empty()) {
      stored = std::move(one);
    } else if (stored != one) {
      return one == kMissing || stored == kMissing ? std::string(kMissing) : std::string(kMixed);
    }
  }
  return stored;
}

// --- What differs --------------------------------------------------------------------------------

bool IsBuilt(ModuleKind kind) { return kind != ModuleKind::kNorm; }

// Methods whose stored form is known here; others are not compared.
bool IsKnownMethod(std::string_view method) {
  return method == "fp8" || method == "mxfp8" || method == "nvfp4";
}

std::optional<PolicyFinding> DifferenceOf(const PlannedModule& planned) {
  const std::string& name = planned.module.name;
  const auto error = [&](std::string_view code, std::string message, std::string cure) {
    return PolicyError(code, name, fmt::format("{}: {}", name, message), std::move(cure));
  };
  const MatchResult& match = planned.match;
  const bool is_low = IsKnownMethod(planned.stored);
  if (match.verdict == Verdict::kError) {
    return PolicyError("build-error", name, match.error,
                       "list all shards of the module, or none of them");
  }
  if (planned.stored == kMissing) {
    return error("weight-missing", "a weight of this module is not stored",
                 "convert the source again");
  }
  if (planned.stored == kMixed) {
    return error("stored-mixed", "its weights are stored in different formats",
                 "convert the source again: an engine serves one module in one format");
  }
  if (planned.stored == kNoScales) {
    return error("scale-missing", "its codes are stored without scales",
                 "convert the source again: codes without scales mean nothing");
  }
  if (match.verdict == Verdict::kSkipped && is_low) {
    return error("would-not-quantize",
                 fmt::format("built in BF16 (rule {}), stored as {}", MatchRuleName(match.rule),
                             planned.stored),
                 match.entry ? fmt::format("remove the entry \"{}\"", *match.entry)
                             : "store the weight in BF16");
  }
  if (match.verdict == Verdict::kQuantized && planned.stored == kBf16) {
    return error("would-quantize",
                 fmt::format("built as {}, stored in BF16",
                             match.method.empty() ? "a low precision" : match.method),
                 fmt::format("list {} for this engine", name));
  }
  if (match.verdict == Verdict::kQuantized && is_low && IsKnownMethod(match.method) &&
      match.method != planned.stored) {
    return error("method-differs",
                 fmt::format("built as {}, stored as {}", match.method, planned.stored),
                 "write the configuration of the stored format");
  }
  return std::nullopt;
}

// --- The plan ------------------------------------------------------------------------------------

class Planner {
 public:
  Planner(const PlanAsInput& input, QuantizationFields fields)
      : input_(input), fields_(std::move(fields)) {
    for (const StoredDType& tensor : input.stored) {
      stored_.emplace(tensor.name, tensor);
    }
  }

  Result<PlanAsReport> Run() {
    report_.engine = input_.engine;
    report_.dialect = "none";
    std::optional<EngineReaders> readers;
    ForeignEngine view = input_.engine;
    if (fields_.has_config) {
      ASSIGN_OR_RETURN(dialect_, DialectOf(input_.engine, fields_));
      report_.dialect = DialectName(dialect_);
      // Transformers hands these checkpoints to the library, which sees every expert alone.
      view = dialect_ == Dialect::kCompressedTensors ? ForeignEngine::kCompressedTensors : view;
      ASSIGN_OR_RETURN(readers, MakeEngineReaders(*input_.spec, input_.engine, dialect_, fields_));
      report_.list_key = readers->main->list().key;
    }
    for (EngineModule& module : EngineModulesOf(*input_.spec, view)) {
      AddModule(std::move(module), readers);
    }
    AddDifferences();
    if (readers) {
      ASSIGN_OR_RETURN(std::vector<PolicyFinding> findings,
                       ListFindings({.spec = input_.spec,
                                     .engine = input_.engine,
                                     .dialect = dialect_,
                                     .fields = &fields_,
                                     .modules = report_.modules}));
      std::ranges::move(findings, std::back_inserter(report_.differences));
    }
    return std::move(report_);
  }

 private:
  // SGLang builds the MTP model of a ModelOpt FP4 checkpoint without its configuration.
  bool DropsMtp() const {
    return input_.engine == ForeignEngine::kSglang && dialect_ == Dialect::kSglangModelOpt &&
           fields_.quant_algo.find("FP4") != std::string::npos;
  }

  void AddModule(EngineModule module, const std::optional<EngineReaders>& readers) {
    const bool is_transformers =
        input_.engine != ForeignEngine::kSglang && input_.engine != ForeignEngine::kVllm;
    PlannedModule planned{.module = std::move(module), .match = {}, .stored = {}};
    planned.stored = StoredOf(stored_, *input_.spec, planned.module);
    // A checkpoint may leave the MTP layers out, and transformers never builds them.
    if (planned.module.is_mtp && (planned.stored == kMissing || is_transformers)) {
      return;
    }
    if (!readers || (planned.module.is_mtp && DropsMtp())) {
      planned.match.verdict = Verdict::kSkipped;
      planned.match.rule = readers ? MatchRule::kClass : MatchRule::kNone;
      planned.match.method = kBf16;
    } else {
      planned.match = readers->Of(planned.module)
                          .Judge({.name = planned.module.name, .kind = planned.module.kind});
    }
    report_.modules.push_back(std::move(planned));
  }

  void AddDifferences() {
    std::map<std::string, const PlannedModule*> containers;
    for (const PlannedModule& planned : report_.modules) {
      if (!IsBuilt(planned.module.kind)) {
        continue;
      }
      if (std::optional<PolicyFinding> difference = DifferenceOf(planned)) {
        report_.differences.push_back(std::move(*difference));
      }
      if (planned.module.kind == ModuleKind::kMoe) {
        containers.emplace(planned.module.name, &planned);
      }
    }
    CompareSharedExperts(containers);
  }

  // Only SGLang fuses them.
  void CompareSharedExperts(const std::map<std::string, const PlannedModule*>& containers) {
    constexpr std::string_view kShared = ".shared_experts.down_proj";
    for (const PlannedModule& planned : report_.modules) {
      const std::string& name = planned.module.name;
      if (input_.engine != ForeignEngine::kSglang || !name.ends_with(kShared)) {
        continue;
      }
      const auto container =
          containers.find(name.substr(0, name.size() - kShared.size()) + ".experts");
      if (container != containers.end() &&
          container->second->match.verdict != planned.match.verdict) {
        report_.notes.push_back(fmt::format(
            "{}: {}, but {} is {}: serve with --disable-shared-experts-fusion, or SGLang may put "
            "them into the container",
            name, VerdictName(planned.match.verdict), container->first,
            VerdictName(container->second->match.verdict)));
      }
    }
  }

  PlanAsInput input_;
  QuantizationFields fields_;
  Stored stored_;
  Dialect dialect_ = Dialect::kSglangMatch;
  PlanAsReport report_;
};

}  // namespace

bool PlanAsReport::ok() const {
  return std::ranges::none_of(
      differences, [](const PolicyFinding& finding) { return finding.severity == "error"; });
}

Result<Dialect> DialectOf(ForeignEngine engine, const QuantizationFields& fields) {
  const std::string method =
      fields.quant_method.empty() && !fields.quant_algo.empty() ? "modelopt" : fields.quant_method;
  for (const MethodName& known : kMethods) {
    if (known.engine == engine && known.quant_method == method) {
      const bool is_mixed =
          known.dialect == Dialect::kSglangModelOpt && fields.quant_algo == "MIXED_PRECISION";
      if (engine == ForeignEngine::kVllm && fields.quant_algo == "MIXED_PRECISION") {
        break;
      }
      return is_mixed ? Dialect::kSglangModelOptMixed : known.dialect;
    }
  }
  const std::string algo =
      fields.quant_algo.empty() ? "" : fmt::format(" with quant_algo {}", fields.quant_algo);
  return Unsupported("quant_method {}{}: how {} reads it is not known here",
                     method.empty() ? "(none)" : method, algo, EngineName(engine));
}

Result<PlanAsReport> PlanAs(const PlanAsInput& input) {
  CHECK(input.spec != nullptr);
  ASSIGN_OR_RETURN(QuantizationFields fields, ReadQuantizationFields(input.quantization_config));
  return Planner(input, std::move(fields)).Run();
}

}  // namespace octavo
