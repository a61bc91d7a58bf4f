// The dialects of SGLang that rest on its matcher: sglang_match, sglang_fp8, sglang_nvfp4_online,
// petit_nvfp4, fbgemm_fp8, blockwise_int8; and the plain substring of awq, gguf and moe_wna16.

#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/policy/dialect.h"
#include "octavo/policy/dialect_readers.h"
#include "octavo/policy/fused_shards.h"
#include "octavo/policy/modelopt_excluded.h"
#include "octavo/policy/module_kind.h"
#include "octavo/policy/name_list.h"
#include "octavo/policy/quantization_fields.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

MatchResult NeverQuantized() {
  return {.verdict = Verdict::kSkipped, .rule = MatchRule::kClass, .entry = {}, .shards = {}};
}

bool IsLinearOrMoe(ModuleKind kind) {
  return kind == ModuleKind::kLinear || kind == ModuleKind::kMoe;
}

// sglang_match judges every kind; sglang_fp8 only linear layers and containers.
class MatcherReader : public DialectReader {
 public:
  MatcherReader(WrittenList list, std::string method, std::vector<IgnoreEntry> entries,
                std::vector<FusedMapping> mapping, bool judges_every_kind)
      : DialectReader(std::move(list), std::move(method)),
        entries_(std::move(entries)),
        mapping_(std::move(mapping)),
        judges_every_kind_(judges_every_kind) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    return judges_every_kind_ ? SglangMatch(entries_, module.name, mapping_)
                              : SglangFp8Match(entries_, module.name, module.kind, mapping_);
  }

 private:
  std::vector<IgnoreEntry> entries_;
  std::vector<FusedMapping> mapping_;
  bool judges_every_kind_;
};

// FP4 made at load, experts only.
class Nvfp4OnlineReader : public DialectReader {
 public:
  Nvfp4OnlineReader(WrittenList list, const ReaderContext& context, ExcludedNames excluded,
                    std::vector<IgnoreEntry> entries)
      : DialectReader(std::move(list), "nvfp4"),
        excluded_(std::move(excluded)),
        entries_(std::move(entries)),
        fp4_entries_(SglangFp8Entries(this->list().names, {.env_ignored = {}, .mapper = {}})),
        mapping_(context.mapping),
        source_fp8_(context.source_fp8) {
    // Unlike its FP8 namesake this environment list is normalised.
    const std::vector<IgnoreEntry> env =
        SglangFp8Entries({}, {.env_ignored = context.env_ignored, .mapper = {}});
    std::vector<std::string> texts;
    texts.reserve(env.size());
    for (const IgnoreEntry& entry : env) {
      texts.push_back(entry.text);
    }
    for (IgnoreEntry& entry : SglangFp8Entries(texts, {})) {
      fp4_entries_.push_back(std::move(entry));
    }
  }

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (!IsLinearOrMoe(module.kind)) {
      return NeverQuantized();
    }
    MatchResult listed = SglangMatch(entries_, module.name, mapping_);
    if (listed.verdict != Verdict::kQuantized) {
      return listed;
    }
    if (NameHit hit = excluded_.FirstHit(module.name); hit.hit || !hit.error.empty()) {
      return JudgeName(module.name, std::move(hit));
    }
    if (module.kind == ModuleKind::kLinear) {
      return Served(MatchResult{.rule = MatchRule::kTarget, .entry = {}, .shards = {}});
    }
    MatchResult fp4 = SglangMatch(fp4_entries_, module.name, mapping_);
    return fp4.verdict == Verdict::kSkipped ? Served(std::move(fp4)) : fp4;
  }

 private:
  // What is not made FP4 stays as the source has it.
  MatchResult Served(MatchResult result) const {
    result.verdict = source_fp8_ ? Verdict::kQuantized : Verdict::kSkipped;
    result.method = source_fp8_ ? "fp8" : "bf16";
    return result;
  }

  ExcludedNames excluded_;
  std::vector<IgnoreEntry> entries_;
  std::vector<IgnoreEntry> fp4_entries_;
  std::vector<FusedMapping> mapping_;
  bool source_fp8_;
};

// The matcher without a mapping, for linear layers.
class PlainReader : public DialectReader {
 public:
  PlainReader(WrittenList list, std::string method, bool serves_moe, ExcludedNames excluded)
      : DialectReader(std::move(list), std::move(method)),
        entries_(AsWritten(this->list().names)),
        excluded_(std::move(excluded)),
        serves_moe_(serves_moe) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (module.kind == ModuleKind::kMoe && serves_moe_) {
      return {};
    }
    if (module.kind != ModuleKind::kLinear) {
      return NeverQuantized();
    }
    MatchResult listed = SglangMatch(entries_, module.name, {});
    if (listed.verdict != Verdict::kQuantized) {
      return listed;
    }
    NameHit hit = excluded_.FirstHit(module.name);
    return hit.hit || !hit.error.empty() ? JudgeName(module.name, std::move(hit)) : listed;
  }

 private:
  std::vector<IgnoreEntry> entries_;
  ExcludedNames excluded_;  // Empty but for petit_nvfp4.
  bool serves_moe_;
};

class SubstringReader : public DialectReader {
 public:
  SubstringReader(WrittenList list, std::string method)
      : DialectReader(std::move(list), std::move(method)) {}

 protected:
  MatchResult Match(const ModuleQuery& module) const override {
    if (!IsLinearOrMoe(module.kind)) {
      return NeverQuantized();
    }
    for (const std::string& name : list().names) {
      if (module.name.find(name) != std::string_view::npos) {
        return {.verdict = Verdict::kSkipped,
                .rule = MatchRule::kSubstring,
                .entry = name,
                .shards = {}};
      }
    }
    return {};
  }
};

Result<WrittenList> Written(const NameList& list) {
  ASSIGN_OR_RETURN(std::vector<std::string> names, NamesOf(list));
  return WrittenList{list.exists() ? list.key : std::string(), std::move(names)};
}

}  // namespace

ReaderResult MakeSglangMatchReader(const QuantizationFields& fields, const ReaderContext& context) {
  ASSIGN_OR_RETURN(WrittenList list, Written(fields.modules_to_not_convert));
  std::vector<IgnoreEntry> entries = AsWritten(list.names);
  return std::unique_ptr<DialectReader>(std::make_unique<MatcherReader>(
      std::move(list), fields.quant_method, std::move(entries), context.mapping,
      /*judges_every_kind=*/true));
}

ReaderResult MakeSglangFp8Reader(const QuantizationFields& fields, const ReaderContext& context) {
  ASSIGN_OR_RETURN(SglangFp8List read, SglangFp8ListOf(fields, {.env_ignored = context.env_ignored,
                                                                .mapper = context.mapper}));
  return std::unique_ptr<DialectReader>(std::make_unique<MatcherReader>(
      WrittenList{std::move(read.key), std::move(read.written)},
      fields.quant_method.empty() ? "fp8" : fields.quant_method, std::move(read.entries),
      context.mapping, /*judges_every_kind=*/false));
}

ReaderResult MakeSglangNvfp4OnlineReader(const QuantizationFields& fields,
                                         const ReaderContext& context) {
  ASSIGN_OR_RETURN(const std::vector<std::string> first, NamesOf(fields.ignored_layers));
  // Empty falls through here, unlike in sglang_fp8.
  ASSIGN_OR_RETURN(WrittenList list,
                   Written(first.empty() ? fields.modules_to_not_convert : fields.ignored_layers));
  std::vector<IgnoreEntry> entries =
      SglangFp8Entries(list.names, {.env_ignored = {}, .mapper = context.mapper});
  ASSIGN_OR_RETURN(ExcludedNames excluded, ExcludedNames::Compile(entries));
  return std::unique_ptr<DialectReader>(std::make_unique<Nvfp4OnlineReader>(
      std::move(list), context, std::move(excluded), std::move(entries)));
}

ReaderResult MakeSglangPlainReader(Dialect dialect, const QuantizationFields& fields,
                                   const ReaderContext& /*context*/) {
  const NameList& read = dialect == Dialect::kSglangPetitNvfp4  ? fields.exclude_modules
                         : dialect == Dialect::kSglangFbgemmFp8 ? fields.modules_to_not_convert
                                                                : fields.ignored_layers;
  if (dialect == Dialect::kSglangFbgemmFp8 && !read.exists()) {
    return InvalidArgument("quantization_config.modules_to_not_convert: expected a list, got none");
  }
  ASSIGN_OR_RETURN(WrittenList list, Written(read));
  const bool is_petit = dialect == Dialect::kSglangPetitNvfp4;
  ASSIGN_OR_RETURN(ExcludedNames excluded,
                   ExcludedNames::CompileWholeNames(is_petit ? AsWritten(list.names)
                                                             : std::vector<IgnoreEntry>()));
  const std::string_view method = is_petit                               ? "nvfp4"
                                  : dialect == Dialect::kSglangFbgemmFp8 ? "fp8"
                                                                         : "int8";
  return std::unique_ptr<DialectReader>(std::make_unique<PlainReader>(
      std::move(list), std::string(method), /*serves_moe=*/!is_petit, std::move(excluded)));
}

ReaderResult MakeSglangSubstringReader(Dialect dialect, const QuantizationFields& fields,
                                       const ReaderContext& /*context*/) {
  ASSIGN_OR_RETURN(WrittenList list, Written(fields.modules_to_not_convert));
  std::string method(DialectName(dialect).substr(std::string_view("sglang_").size()));
  return std::unique_ptr<DialectReader>(
      std::make_unique<SubstringReader>(std::move(list), std::move(method)));
}

}  // namespace octavo
