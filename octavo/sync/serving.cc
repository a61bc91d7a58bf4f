#include "octavo/sync/serving.h"

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "octavo/base/log.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/engine/engine.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/load_weights.h"
#include "octavo/sync/weight_update.h"

namespace octavo {
namespace {

Result<std::unique_ptr<ModelWeights>> MakeWeights(const ServingOptions& options,
                                                  const Serving& serving, Backend& backend) {
  if (options.load_format == LoadFormat::kDummy) {
    return DummyWeights(serving.table, backend);
  }
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(options.model_dir));
  for (const std::string& warning : checkpoint.warnings()) {
    LOG(WARNING, "checkpoint {}", warning);
  }
  return LoadWeights(checkpoint, serving.spec, serving.table, backend);
}

int64_t CanonicalBytes(const PrecisionTable& table) {
  int64_t bytes = 0;
  for (const PrecisionRow& row : table.rows) {
    for (const StoredTensorSpec& tensor : StoredTensorsOf(row)) {
      bytes += NumElements(tensor.shape) * DTypeBytes(tensor.dtype);
    }
  }
  return bytes;
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
  auto serving = std::make_unique<Serving>();
  serving->model_dir = options.model_dir;
  ASSIGN_OR_RETURN(serving->config, ReadHfConfig(options.model_dir));
  ASSIGN_OR_RETURN(serving->spec, MakeModelSpec(serving->config));
  RETURN_IF_ERROR(CheckServable(serving->spec));  // Before a large model's weights are read.
  ASSIGN_OR_RETURN(serving->table, ChooseTable(serving->spec, serving->config, options.policy));

  serving->num_threads = options.num_threads > 0 ? options.num_threads : NumUsableThreads();
  ASSIGN_OR_RETURN(std::unique_ptr<Backend> backend,
                   MakeCpuBackend(options.isa.value_or(BestIsa()), serving->num_threads));
  serving->backend_name = backend->name();
  serving->recipe = backend->recipe();
  serving->weight_bytes = CanonicalBytes(serving->table);

  ASSIGN_OR_RETURN(std::unique_ptr<ModelWeights> weights, MakeWeights(options, *serving, *backend));
  const Backend* const packing = backend.get();  // Owned by the engine from here on.
  ASSIGN_OR_RETURN(serving->engine, Engine::Start(std::move(backend), serving->spec,
                                                  std::move(weights), serving->config.eos_token_ids,
                                                  options.weight_version, options.engine));
  serving->updater = std::make_unique<WeightUpdater>(serving->engine.get(), packing, serving->spec,
                                                     serving->table);
  serving->load_seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  LOG(INFO,
      "loaded model={} architecture={} format={} backend={} threads={} bytes={} seconds={:.2f}",
      options.model_dir, serving->spec.architecture, WeightFormatName(serving->table.format),
      serving->backend_name, serving->num_threads, serving->weight_bytes, serving->load_seconds);
  return serving;
}

}  // namespace octavo
