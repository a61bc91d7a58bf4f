#include "octavo/sync/serving.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/convert/digest.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/memory_budget.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/arithmetic.h"
#include "octavo/sync/live_digest.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/pack_row.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/version_record.h"
#include "octavo/sync/weight_plan.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

// Canonical bytes of what is held.
int64_t HeldBytes(const WeightPlan& plan, const ModelWeights& weights) {
  int64_t bytes = 0;
  for (size_t i = 0; i < plan.parts.size(); ++i) {
    const PackedMatrix& matrix = weights.matrices[i];
    if (matrix.codes.empty()) {
      continue;
    }
    for (const StoredTensorSpec& part : plan.parts[i]) {
      const DType dtype = IsVector(plan.table->rows[i]) ? matrix.vector_dtype : part.dtype;
      const bool is_held = !IsInputScale(part.part) || weights.stored_input_scales[i] != 0.0F;
      bytes += is_held ? NumElements(part.shape) * DTypeBytes(dtype) : 0;
    }
  }
  return bytes;
}

// Nothing but a format: what --format w8a16 and w4a16 mean for a checkpoint that has one already.
bool AsksForFormatAlone(const PolicyOptions& policy) {
  return policy.keep_first == 0 && policy.keep_last == 0 && !policy.scope.has_value() &&
         policy.layout == StoredLayout::kDefault && policy.keep.empty() && policy.rules.empty() &&
         !policy.keep_mtp;
}

// What was asked for, or nothing where a stored format is served as it is.
std::optional<PolicyOptions> PolicyOf(const ServingOptions& options, const HfConfig& config) {
  const bool is_stored = !config.quantization_config.empty();
  const bool takes_stored =
      options.arithmetic.weight_only != WeightOnly::kNone || !options.formats.empty();
  if (is_stored && takes_stored && options.policy.has_value() &&
      AsksForFormatAlone(*options.policy)) {
    return std::nullopt;
  }
  return options.policy;
}

Status CheckFormat(const ServingOptions& options, WeightFormat format) {
  const std::vector<WeightFormat>& formats = options.formats;
  if (formats.empty() || std::find(formats.begin(), formats.end(), format) != formats.end()) {
    return OkStatus();
  }
  std::vector<std::string_view> names;
  for (const WeightFormat expected : formats) {
    names.push_back(WeightFormatName(expected));
  }
  return InvalidArgument("{}: expected a checkpoint of format {}, got {}", options.model_dir,
                         fmt::join(names, " or "), WeightFormatName(format));
}

// Options of the engine once the weights are known: what they leave of memory_fraction is the pool.
Result<EngineOptions> WithPool(const ServingOptions& options, const Result<int64_t>& free_before,
                               int64_t weight_bytes) {
  EngineOptions engine = options.engine;
  if (options.memory_fraction <= 0.0) {
    return engine;
  }
  if (engine.max_total_tokens > 0) {
    return engine;  // Both bound the pool; tokens are the exact word.
  }
  RETURN_IF_ERROR(free_before.error());
  const auto share =
      static_cast<int64_t>(static_cast<double>(*free_before) * options.memory_fraction);
  if (share <= weight_bytes) {
    return Exhausted("memory fraction {}: expected more than the {} bytes of the weights, got {}",
                     options.memory_fraction, weight_bytes, share);
  }
  engine.kv_cache_bytes = share - weight_bytes;
  return engine;
}

// Spec, table and plan of the folder, and its checkpoint unless the weights are made up.
Result<std::optional<Checkpoint>> DescribeModel(const ServingOptions& options, Serving* serving) {
  ASSIGN_OR_RETURN(serving->config, ReadHfConfig(options.model_dir, options.config_overrides));
  RETURN_IF_ERROR(CheckServedConfig(serving->config).WithContext(options.model_dir));
  ASSIGN_OR_RETURN(serving->spec, MakeModelSpec(serving->config));
  RETURN_IF_ERROR(CheckServable(serving->spec));  // Before a large model's files are opened.
  std::optional<Checkpoint> checkpoint;
  if (options.load_format == LoadFormat::kAuto) {
    ASSIGN_OR_RETURN(checkpoint, Checkpoint::Open(options.model_dir, options.config_overrides));
    for (const std::string& warning : checkpoint->warnings()) {
      LOG(WARNING, "checkpoint {}", warning);
    }
    ASSIGN_OR_RETURN(serving->spec, MakeCheckpointSpec(*checkpoint));
  }
  ASSIGN_OR_RETURN(serving->table,
                   ChooseTable(serving->spec, serving->config, PolicyOf(options, serving->config)));
  RETURN_IF_ERROR(CheckFormat(options, serving->table.format));
  ASSIGN_OR_RETURN(serving->plan,
                   MakeWeightPlan(serving->spec, serving->table, options.arithmetic));
  return checkpoint;
}

// The weights to start with, sealed. Without any, their place is counted all the same.
Result<std::unique_ptr<ModelWeights>> FirstWeights(const ServingOptions& options,
                                                   const std::optional<Checkpoint>& checkpoint,
                                                   Backend& backend, Serving* serving) {
  if (options.load_format == LoadFormat::kNone) {
    serving->weight_bytes = EmptyBase(*serving->plan).packed_bytes;
    return std::make_unique<ModelWeights>();
  }
  ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> weights,
                   checkpoint.has_value() ? LoadWeights(*checkpoint, *serving->plan, backend)
                                          : DummyWeights(*serving->plan, backend));
  serving->weight_bytes = HeldBytes(*serving->plan, *weights);
  ASSIGN_OR_RETURN(const ModelDigest digest,
                   DigestLiveWeights(serving->table, *weights, backend, &backend.pool()));
  weights->digest = digest.hash;
  return weights;
}

}  // namespace

Result<PrecisionTable> ChooseTable(const ModelSpec& spec, const HfConfig& config,
                                   const std::optional<PolicyOptions>& policy) {
  if (config.quantization_config.empty()) {
    return CompilePolicy(spec, policy.value_or(PolicyOptions{}));
  }
  ASSIGN_OR_RETURN(PrecisionTable stored,
                   TableFromQuantizationConfig(spec, config.quantization_config));
  if (policy.has_value()) {
    ASSIGN_OR_RETURN(const PrecisionTable asked, CompilePolicy(spec, *policy));
    const Status status = CheckSameTable(asked, stored);
    if (!status.ok()) {
      return status.WithContext("the checkpoint is already quantized by another table");
    }
  }
  return stored;
}

Result<std::unique_ptr<Serving>> StartServing(const ServingOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const Result<int64_t> free_before = AvailableMemoryBytes();
  auto serving = std::make_unique<Serving>();
  serving->model_dir = options.model_dir;
  if (!options.state_dir.empty()) {
    ASSIGN_OR_RETURN(serving->versions, VersionRecord::Open(options.state_dir));
  }
  ASSIGN_OR_RETURN(const std::optional<Checkpoint> checkpoint,
                   DescribeModel(options, serving.get()));
  serving->num_threads = options.num_threads > 0 ? options.num_threads : NumUsableThreads();
  if (serving->num_threads > NumUsableThreads()) {
    LOG(WARNING, "threads={} usable={}: more threads than processors wait for each other",
        serving->num_threads, NumUsableThreads());
  }
  serving->isa = options.isa.value_or(BestIsa());
  serving->chunk_tokens = options.engine.chunk_tokens;
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                   MakeCpuBackend(serving->isa, serving->num_threads));
  serving->backend_name = backend->name();
  serving->recipe = RecipeId(backend->recipe(), serving->table, serving->plan->inputs,
                             options.engine.kv_cache_dtype);
  serving->is_emulated = IsEmulated(serving->plan->inputs);
  serving->depends_on_batch = DependsOnBatch(serving->plan->inputs);
  serving->kv_cache_dtype = options.engine.kv_cache_dtype;
  ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> weights,
                   FirstWeights(options, checkpoint, *backend, serving.get()));
  ASSIGN_OR_RETURN(const EngineOptions engine,
                   WithPool(options, free_before, serving->weight_bytes));
  const Backend* const packing = backend.get();  // Owned by the engine from here on.
  serving->starts_without_weights = options.load_format == LoadFormat::kNone;
  ASSIGN_OR_RETURN(
      serving->engine,
      Engine::Start(std::move(backend), serving->spec, std::move(weights),
                    serving->config.eos_token_ids,
                    serving->starts_without_weights ? "" : options.weight_version, engine));
  serving->updater = std::make_unique<WeightUpdater>(
      serving->engine.get(), packing, serving->plan.get(),
      WeightUpdater::Options{.config_overrides = options.config_overrides,
                             .live = {.keep_backup = options.keep_weights_backup},
                             .versions = serving->versions.get()});
  if (serving->starts_without_weights) {
    RETURN_IF_ERROR(serving->updater->live().Release({.weights = true}));
  }
  serving->load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LOG(INFO,
      "loaded model={} architecture={} format={} recipe={} emulated={} backend={} threads={} "
      "bytes={} seconds={:.2f}",
      options.model_dir, serving->spec.architecture, WeightFormatName(serving->table.format),
      serving->recipe, serving->is_emulated, serving->backend_name, serving->num_threads,
      serving->weight_bytes, serving->load_seconds);
  return serving;
}

}  // namespace octavo
