#pragma once
// Transaction 0: the weights of a checkpoint, packed for a backend.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/staging.h"
#include "octavo/sync/weight_plan.h"

namespace octavo {

// Puts every tensor of `checkpoint` into `staging` and seals it. A checkpoint with a
// quantization_config must hold each weight in the form its table says; one without is transformed.
// Stacked experts are taken apart. A second copy of a tied head is accepted when it equals the
// embedding; other text-free parts of a larger model, rotary buffers and scales of a KV cache are
// left out, with one warning.
// Errors: kInvalidArgument naming the tensor: missing, unknown, or of another dtype or shape.
Status StageCheckpoint(const Checkpoint& checkpoint, const WeightPlan& plan, Staging* staging);

// StageCheckpoint into a fresh staging.
Result<std::unique_ptr<ModelWeights>> LoadWeights(const Checkpoint& checkpoint,
                                                  const WeightPlan& plan, Backend& backend);

// Random weights of the right shapes, through the same transform: N(0, 0.02), norms 1, seeded by
// the tensor's name. Static input scales are 1.
Result<std::unique_ptr<ModelWeights>> DummyWeights(const WeightPlan& plan, Backend& backend);

// Random weights in place of live ones: another draw than DummyWeights, norms included, of every
// weight that `base` holds; its input scales stay. `pool` may be null.
Result<std::unique_ptr<ModelWeights>> NoiseWeights(const WeightPlan& plan, const Backend& backend,
                                                   LiveBase base, ThreadPool* pool);

// ok when `config` describes the model of `spec`; otherwise kInvalidArgument naming the first
// dimension that differs.
Status CheckSameModel(const ModelSpec& spec, const HfConfig& config);

// The first row whose format differs between two tables of one model, as an error; else ok.
Status CheckSameTable(const PrecisionTable& served, const PrecisionTable& source);

}  // namespace octavo
