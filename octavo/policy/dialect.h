#pragma once
// Every reader of a list of modules that stay in BF16, behind one interface: what would this
// engine build from this quantization_config?
//
// The rules of each dialect are in docs/policy.md, "Foreign lists".

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_match.h"
#include "octavo/policy/weights_mapper.h"

namespace octavo {

enum class Dialect {
  kSglangMatch,  // The matcher alone, every kind of module.
  kSglangFp8,    // fp8 and mxfp8.
  kSglangModelOpt,
  kSglangModelOptMixed,
  kSglangNvfp4Online,
  kSglangCompressedTensors,
  kSglangQuark,
  kSglangW8a8Int8,
  kSglangPetitNvfp4,
  kSglangFbgemmFp8,
  kSglangBlockwiseInt8,
  kSglangAwq,
  kSglangGguf,
  kSglangMoeWna16,
  kVllmFp8,
  kVllmModelOpt,
  kVllmCompressedTensors,
  kCompressedTensors,  // The library, and transformers through it.
  kHfFp8,
  // Trainers that choose by parameter name; a module is a parameter here.
  kFilterVerl,
  kFilterAreal,
  kFilterMilesMxfp8,
  kFilterMilesNvfp4,
  kRefitMilesNvfp4,
};

std::span<const Dialect> AllDialects();
// "sglang_fp8", ...: the spelling of the published vectors.
std::string_view DialectName(Dialect dialect);
// nullopt for any other text.
std::optional<Dialect> ParseDialect(std::string_view name);

// What a reader knows apart from the configuration. Each field's default is the common case.
struct ReaderContext {
  std::vector<FusedMapping> mapping = {};  // What the model class declares.
  WeightsMapper mapper = {};               // How the model class renames.
  // Comma-separated: SGLANG_FP8_IGNORED_LAYERS; SGLANG_FP4_IGNORED_LAYERS for sglang_nvfp4_online.
  std::string env_ignored = {};
  bool source_fp8 = false;  // For sglang_nvfp4_online: the checkpoint is FP8, not BF16.
};

struct ModuleQuery {
  std::string_view name;
  ModuleKind kind = ModuleKind::kLinear;
  // For compressed-tensors: the class that targets and entries may name. Empty: "Linear", or
  // "FusedMoE" for a container, "Embedding", ... (ClassNameOf).
  std::string_view class_name = {};
};

// The class by which compressed-tensors knows a kind of module.
std::string_view ClassNameOf(ModuleKind kind);

// The list as the checkpoint wrote it.
struct WrittenList {
  std::string key;  // "ignored_layers", "ignore", ...; empty when the dialect found none.
  std::vector<std::string> names;
};

// One configuration, read in one dialect. const is thread-safe.
class DialectReader {
 public:
  virtual ~DialectReader() = default;

  // Verdict, rule, entry (as written), shards, message and method for one module.
  MatchResult Judge(const ModuleQuery& module) const;
  const WrittenList& list() const { return list_; }

 protected:
  // `method`: what a quantized module is built as, unless Match says otherwise.
  DialectReader(WrittenList list, std::string method)
      : list_(std::move(list)), method_(std::move(method)) {}
  virtual MatchResult Match(const ModuleQuery& module) const = 0;

 private:
  WrittenList list_;
  std::string method_;
};

// Errors: kInvalidArgument for a list of another type, or one that the engine itself refuses while
// it reads the configuration (by key); kUnsupported for expressions that are not read here.
Result<std::unique_ptr<DialectReader>> MakeReader(Dialect dialect, const QuantizationFields& fields,
                                                  const ReaderContext& context);
// From the text of quantization_config; empty for a checkpoint without one.
// Errors: also those of ReadQuantizationFields.
Result<std::unique_ptr<DialectReader>> MakeReader(Dialect dialect,
                                                  std::string_view quantization_config,
                                                  const ReaderContext& context);

}  // namespace octavo
