#pragma once
// From a model folder to a running engine: checkpoint, policy, backend, weights (transaction 0).

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/version_record.h"
#include "octavo/sync/weight_plan.h"
#include "octavo/sync/weight_update.h"

namespace octavo {

enum class LoadFormat {
  kAuto,   // The weights of the folder.
  kDummy,  // Random weights of the right shapes; only config.json is read.
  kNone,   // None, so requests are held until an update is complete; only config.json is read.
};

struct ServingOptions {
  std::string model_dir;
  // Absent: as stored (a BF16 checkpoint in BF16, a quantized one by its own table). Given for a
  // BF16 checkpoint: quantized at load. Given for a quantized one: kInvalidArgument unless the
  // compiled table equals the stored one.
  std::optional<PolicyOptions> policy;
  // Not empty: the format that is served must be one of these, and a quantized checkpoint is served
  // as stored although `policy` names the format that a BF16 one gets at load.
  std::vector<WeightFormat> formats = {};
  // With WeightOnly, policy.format is the stored format that is asked for at load; a checkpoint
  // that already stores a format of that width is served weight-only as it is.
  ArithmeticOptions arithmetic;
  std::optional<Isa> isa;  // Absent: BestIsa().
  int num_threads = 0;     // 0: NumUsableThreads().
  LoadFormat load_format = LoadFormat::kAuto;
  std::string weight_version = "0";  // With LoadFormat::kNone there is none yet.
  // Folder of a VersionRecord; empty: versions may go backwards.
  std::string state_dir = {};
  // A JSON object merged into config.json (checkpoint/config_merge.h), here and in every update
  // from disk; empty: none.
  std::string config_overrides = {};
  // Weights and KV pool take this share of the memory that was free before loading, in (0, 1);
  // 0: EngineOptions says how large the pool is.
  double memory_fraction = 0.0;
  // LiveWeightsOptions::keep_backup: releasing the weights keeps a copy in a file.
  bool keep_weights_backup = false;
  EngineOptions engine;
};

// The table to serve by, from what was asked for (ServingOptions::policy) and what is stored.
Result<PrecisionTable> ChooseTable(const ModelSpec& spec, const HfConfig& config,
                                   const std::optional<PolicyOptions>& policy);

// A loaded model with its engine. The engine stops when this is destroyed. Members are
// thread-safe as their classes say; the plain data is never written after StartServing.
struct Serving {
  std::string model_dir;
  HfConfig config;
  ModelSpec spec;
  PrecisionTable table;
  std::string backend_name;       // Backend::name(), such as "cpu/avx512".
  std::string recipe;             // RecipeId: what is computed, in a word.
  bool is_emulated = false;       // IsEmulated.
  bool depends_on_batch = false;  // DependsOnBatch.
  DType kv_cache_dtype = DType::kBf16;
  Isa isa = Isa::kScalar;
  int num_threads = 0;
  int64_t chunk_tokens = 0;             // EngineOptions::chunk_tokens.
  bool starts_without_weights = false;  // LoadFormat::kNone.
  int64_t weight_bytes = 0;             // Canonical bytes of the live weights.
  double load_seconds = 0.0;
  std::unique_ptr<const WeightPlan> plan;   // Of spec and table.
  std::unique_ptr<VersionRecord> versions;  // Null without a state_dir.
  std::unique_ptr<Engine> engine;
  std::unique_ptr<WeightUpdater> updater;
};

// Errors: whatever is wrong with the folder, the policy or the machine, by name.
Result<std::unique_ptr<Serving>> StartServing(const ServingOptions& options);

}  // namespace octavo
