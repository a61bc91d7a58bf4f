#pragma once
// The parts of Audit (audit.h). Each appends its findings.

#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/audit.h"
#include "octavo/convert/audit_modules.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// What quantization_config declares, read without a model. Every member of `formats` is a format
// that it allows; empty: none that we know.
struct DeclaredQuantization {
  bool present = false;
  std::string method;  // quant_method, and quant_algo behind a slash.
  std::set<WeightFormat> formats = {};
  bool ue8m0 = false;               // scale_fmt
  bool static_activations = false;  // activation_scheme static, or inputs that are not dynamic.
  bool fp8_kv_cache = false;
  std::vector<std::string> kept = {};  // Entries of its list, as they stand there.
};
DeclaredQuantization ReadDeclared(std::string_view quantization_config);

// The files of a folder before they are read as a checkpoint: what index and shards say of each
// other. Findings: index-file, index-tensor, index-unlisted.
void CheckIndexAgainstShards(const std::string& dir, AuditReport& report);

// index-missing, total-size, checkpoint.
void CheckIndexFile(const Checkpoint& checkpoint, AuditReport& report);

// Configuration against what is stored, hf_quant_config.json, the KV cache, input scales.
void CheckDeclared(const Checkpoint& checkpoint, const StoredModules& modules,
                   const DeclaredQuantization& declared, AuditReport& report);

// Codes and scales of every module, and what members of fused sets must share.
void CheckModules(const StoredModules& modules, const DeclaredQuantization& declared,
                  ThreadPool* pool, AuditReport& report);

// Weights of the model: missing, misshapen, stored otherwise than the table says, not finite.
// `may_miss` names those that a checkpoint may leave out: MTP layers, all of a layer.
void CheckWeights(const Checkpoint& checkpoint, const PrecisionTable& table,
                  const StoredModules& modules, const std::set<std::string>& may_miss,
                  ThreadPool* pool, AuditReport& report);

// What it means when an engine would build something else than is stored.
enum class EngineWeight {
  kNone,   // It is not asked: the table is its own view, so that CheckWeights says the same.
  kFirst,  // An error: lists are written for it.
  kOther,  // A warning.
};

// What SGLang, vLLM and transformers would build of the configuration, against what is stored.
void CheckEngines(const Checkpoint& checkpoint, const ModelSpec& spec, EngineWeight sglang,
                  AuditReport& report);

// Every weight made again from `source` and compared with what is stored. `is_own`: the checkpoint
// carries our table, so that no other rule is an excuse.
void CheckAgainstSource(const Checkpoint& checkpoint, const Checkpoint& source,
                        const ModelSpec& spec, const PrecisionTable& table,
                        const StoredModules& modules, bool is_own, ThreadPool* pool,
                        AuditReport& report);

}  // namespace octavo
