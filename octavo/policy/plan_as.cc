#include "octavo/policy/plan_as.h"

#include <fmt/core.h>

#include <algorithm>
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/verdicts.h"

namespace octavo {
namespace {

constexpr std::string_view kMissing = "missing";
constexpr std::string_view kMixed = "mixed";
constexpr std::string_view kNoScales = "fp8 without scales";
constexpr std::string_view kBf16 = "bf16";

using DTypes = std::map<std::string, DType, std::less<>>;

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

const DType* Find(const DTypes& dtypes, std::string_view name) {
  const auto found = dtypes.find(name);
  return found == dtypes.end() ? nullptr : &found->second;
}

// Experts may be stored as one 3-D tensor a projection, beside the container's name.
const DType* FindStacked(const DTypes& dtypes, const WeightSpec& weight) {
  const size_t at = weight.name.find(".experts.");
  if (!IsExpertRole(weight.role) || at == std::string::npos) {
    return nullptr;
  }
  const std::string stem = weight.name.substr(0, at) + ".experts.";
  return Find(dtypes, stem + (weight.role == Role::kExpertDown ? "down_proj" : "gate_up_proj"));
}

std::string StoredOf(const DTypes& dtypes, const WeightSpec& weight) {
  const std::string module(ModuleOfWeight(weight.name));
  if (Find(dtypes, module + ".weight_packed") != nullptr) {
    return "nvfp4";
  }
  const DType* codes = Find(dtypes, weight.name);
  if (codes == nullptr) {
    codes = FindStacked(dtypes, weight);
  }
  if (codes == nullptr) {
    return std::string(kMissing);
  }
  const DType* scale_inv = Find(dtypes, module + ".weight_scale_inv");
  const DType* scale = Find(dtypes, module + ".weight_scale");
  switch (*codes) {
    case DType::kBf16:
    case DType::kF16:
    case DType::kF32:
      return std::string(kBf16);
    case DType::kF8E4m3:
      if (scale_inv == nullptr && scale == nullptr) {
        return std::string(kNoScales);
      }
      return scale_inv != nullptr && *scale_inv == DType::kU8 ? "mxfp8" : "fp8";
    case DType::kU8:
      return scale != nullptr && *scale == DType::kF8E4m3 ? "nvfp4" : "U8";
    default:
      return std::string(DTypeName(*codes));
  }
}

// One word for all weights of a module.
std::string StoredOf(const DTypes& dtypes, const ModelSpec& spec, const EngineModule& module) {
  std::string stored;
  for (const int weight_idx : module.weights) {
    std::string one = StoredOf(dtypes, spec.weights[static_cast<size_t>(weight_idx)]);
    if (stored.empty()) {
      stored = std::move(one);
    } else if (stored != one) {
      return one == kMissing || stored == kMissing ? std::string(kMissing) : std::string(kMixed);
    }
  }
  return stored;
}

// --- What differs --------------------------------------------------------------------------------

PolicyFinding Finding(std::string_view code, std::string_view severity, std::string_view tensor,
                      std::string message, std::string cure) {
  return {std::string(code), std::string(severity), std::string(tensor), std::move(message),
          std::move(cure)};
}

bool IsBuilt(ModuleKind kind) { return kind != ModuleKind::kNorm; }

// Methods whose stored form is known here; others are not compared.
bool IsKnownMethod(std::string_view method) {
  return method == "fp8" || method == "mxfp8" || method == "nvfp4";
}

std::optional<PolicyFinding> DifferenceOf(const PlannedModule& planned) {
  const std::string& name = planned.module.name;
  const auto error = [&](std::string_view code, std::string message, std::string cure) {
    return Finding(code, "error", name, fmt::format("{}: {}", name, message), std::move(cure));
  };
  const MatchResult& match = planned.match;
  const bool is_low = IsKnownMethod(planned.stored);
  if (match.verdict == Verdict::kError) {
    return Finding("build-error", "error", name, match.error,
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

// Readers of the main model and of the MTP model, whose class renames entries.
struct Readers {
  std::unique_ptr<DialectReader> main;
  std::unique_ptr<DialectReader> mtp;
};

class Planner {
 public:
  Planner(const PlanAsInput& input, QuantizationFields fields)
      : input_(input), fields_(std::move(fields)) {
    for (const StoredDType& tensor : input.stored) {
      dtypes_.emplace(tensor.name, tensor.dtype);
    }
  }

  Result<PlanAsReport> Run() {
    report_.engine = input_.engine;
    report_.dialect = "none";
    std::optional<Readers> readers;
    ForeignEngine view = input_.engine;
    if (fields_.has_config) {
      ASSIGN_OR_RETURN(dialect_, DialectOf(input_.engine, fields_));
      report_.dialect = DialectName(dialect_);
      // Transformers hands these checkpoints to the library, which sees every expert alone.
      view = dialect_ == Dialect::kCompressedTensors ? ForeignEngine::kCompressedTensors : view;
      ASSIGN_OR_RETURN(readers, MakeReaders(fields_));
      report_.list_key = readers->main->list().key;
    }
    for (EngineModule& module : EngineModulesOf(*input_.spec, view)) {
      AddModule(std::move(module), readers);
    }
    AddDifferences();
    if (readers) {
      RETURN_IF_ERROR(AddUnmatched(readers->main->list()));
    }
    return std::move(report_);
  }

 private:
  Result<Readers> MakeReaders(const QuantizationFields& fields) const {
    ReaderContext context{.mapping = DeclaredMappingOf(*input_.spec, input_.engine)};
    Readers readers;
    ASSIGN_OR_RETURN(readers.main, MakeReader(dialect_, fields, context));
    context.mapper = MtpMapperOf(*input_.spec, input_.engine);
    ASSIGN_OR_RETURN(readers.mtp, MakeReader(dialect_, fields, context));
    return readers;
  }

  // SGLang builds the MTP model of a ModelOpt FP4 checkpoint without its configuration.
  bool DropsMtp() const {
    return input_.engine == ForeignEngine::kSglang && dialect_ == Dialect::kSglangModelOpt &&
           fields_.quant_algo.find("FP4") != std::string::npos;
  }

  void AddModule(EngineModule module, const std::optional<Readers>& readers) {
    const bool is_transformers =
        input_.engine != ForeignEngine::kSglang && input_.engine != ForeignEngine::kVllm;
    PlannedModule planned{.module = std::move(module), .match = {}, .stored = {}};
    planned.stored = StoredOf(dtypes_, *input_.spec, planned.module);
    // A checkpoint may leave the MTP layers out, and transformers never builds them.
    if (planned.module.is_mtp && (planned.stored == kMissing || is_transformers)) {
      return;
    }
    if (!readers || (planned.module.is_mtp && DropsMtp())) {
      planned.match.verdict = Verdict::kSkipped;
      planned.match.rule = readers ? MatchRule::kClass : MatchRule::kNone;
      planned.match.method = kBf16;
    } else {
      const DialectReader& reader = planned.module.is_mtp ? *readers->mtp : *readers->main;
      planned.match = reader.Judge({.name = planned.module.name, .kind = planned.module.kind});
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
      if (planned.match.rule == MatchRule::kExpertReverse &&
          planned.module.kind == ModuleKind::kMoe) {
        report_.differences.push_back(Finding(
            "kept-by-one-expert", "warning", planned.module.name,
            fmt::format("{}: all experts stay in BF16, only because entry \"{}\" names one of them",
                        planned.module.name, planned.match.entry.value_or("")),
            fmt::format("list {} if all are meant, otherwise remove the entry",
                        planned.module.name)));
      }
      if (planned.module.kind == ModuleKind::kMoe) {
        containers.emplace(planned.module.name, &planned);
      }
    }
    CompareSharedExperts(containers);
    if (dialect_ == Dialect::kSglangFp8 && fields_.ignored_layers.exists() &&
        !fields_.modules_to_not_convert.names.empty()) {
      report_.differences.push_back(
          Finding("list-hidden", "warning", "modules_to_not_convert",
                  "modules_to_not_convert is not read, because ignored_layers exists",
                  "write one of the two keys"));
    }
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

  // The modules of every engine's view but the ones planned here. Weights that nothing here builds
  // (of MTP layers that are left out) count as kept.
  struct OtherModule {
    EngineModule module;
    bool is_kept = false;  // Everything in it stays in BF16 here too.
  };
  std::vector<OtherModule> OtherModules() const {
    std::vector<bool> kept(input_.spec->weights.size(), true);
    std::set<std::string, std::less<>> seen;
    for (const PlannedModule& planned : report_.modules) {
      seen.insert(planned.module.name);
      for (const int weight_idx : planned.module.weights) {
        kept[static_cast<size_t>(weight_idx)] = planned.match.verdict == Verdict::kSkipped;
      }
    }
    std::vector<OtherModule> others;
    const auto add = [&](const EngineModule& module) {
      if (seen.insert(module.name).second) {
        const bool is_kept = std::ranges::all_of(
            module.weights, [&](int weight_idx) { return kept[static_cast<size_t>(weight_idx)]; });
        others.push_back({module, is_kept});
      }
    };
    for (const ForeignEngine engine : AllEngines()) {
      std::ranges::for_each(EngineModulesOf(*input_.spec, engine), add);
    }
    // As the checkpoint would name them; some engines build them under another name.
    for (const FusedSet& set : FusedSetsOf(*input_.spec)) {
      add({set.module, ModuleKind::kLinear, set.members});
    }
    if (input_.spec->tie_word_embeddings) {
      // Not stored, and served by the embedding.
      others.push_back({{"lm_head", ModuleKind::kLmHead, {}}, true});
    }
    return others;
  }

  // Modules that are never quantized count as linear layers: converters list norms and heads as a
  // habit, and it does no harm.
  static bool Reaches(const DialectReader& reader, const EngineModule& module) {
    const ModuleKind kind =
        module.kind == ModuleKind::kMoe ? ModuleKind::kMoe : ModuleKind::kLinear;
    const MatchResult match = reader.Judge({.name = module.name, .kind = kind});
    return match.entry.has_value() ||
           std::ranges::any_of(match.shards,
                               [](const ShardMatch& shard) { return shard.entry.has_value(); });
  }

  // True when a list of `entry` alone reaches some module or shard; or a module of another engine
  // that stays in BF16 here anyway, for whose sake it may stand there.
  Result<bool> IsOfUse(const std::string& entry, const std::vector<OtherModule>& others) const {
    QuantizationFields fields = fields_;
    for (NameList* list : {&fields.ignored_layers, &fields.modules_to_not_convert, &fields.ignore,
                           &fields.exclude_modules, &fields.exclude}) {
      if (list->key == report_.list_key) {
        list->names = {entry};
      }
    }
    ASSIGN_OR_RETURN(const Readers readers, MakeReaders(fields));
    bool helps_others = false;
    for (const PlannedModule& planned : report_.modules) {
      if (Reaches(planned.module.is_mtp ? *readers.mtp : *readers.main, planned.module)) {
        return true;
      }
      helps_others = helps_others ||
                     (entry == planned.module.name && planned.match.verdict == Verdict::kSkipped);
    }
    for (const OtherModule& other : others) {
      if (entry == other.module.name || Reaches(*readers.main, other.module) ||
          Reaches(*readers.mtp, other.module)) {
        if (!other.is_kept) {
          return false;
        }
        helps_others = true;
      }
    }
    return helps_others;
  }

  Status AddUnmatched(const WrittenList& list) {
    const std::vector<OtherModule> others = OtherModules();
    std::set<std::string, std::less<>> named;
    for (const PlannedModule& planned : report_.modules) {
      if (planned.match.entry) {
        named.insert(*planned.match.entry);
      }
      for (const ShardMatch& shard : planned.match.shards) {
        if (shard.entry) {
          named.insert(*shard.entry);
        }
      }
    }
    for (const std::string& entry : list.names) {
      if (!named.insert(entry).second) {
        continue;
      }
      ASSIGN_OR_RETURN(const bool is_of_use, IsOfUse(entry, others));
      if (!is_of_use) {
        report_.differences.push_back(
            Finding("entry-unmatched", "warning", entry,
                    fmt::format("{}: entry \"{}\" reaches no module in the dialect {}", list.key,
                                entry, report_.dialect),
                    "remove it, or write the full name of a module that the engine builds"));
      }
    }
    return OkStatus();
  }

  PlanAsInput input_;
  QuantizationFields fields_;
  DTypes dtypes_;
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
      return is_mixed ? Dialect::kSglangModelOptMixed : known.dialect;
    }
  }
  return Unsupported("quant_method {}: how {} reads it is not known here",
                     method.empty() ? "(none)" : method, EngineName(engine));
}

Result<PlanAsReport> PlanAs(const PlanAsInput& input) {
  CHECK(input.spec != nullptr);
  ASSIGN_OR_RETURN(QuantizationFields fields, ReadQuantizationFields(input.quantization_config));
  return Planner(input, std::move(fields)).Run();
}

}  // namespace octavo
