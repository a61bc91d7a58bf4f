#pragma once
// Transaction 0: the weights of a checkpoint, packed for a backend.

#include <memory>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/staging.h"

namespace octavo {

// Puts every tensor of `checkpoint` into `staging`, in file order. A checkpoint with a
// quantization_config must hold each weight in the form its table says; one without is transformed.
// A second copy of a tied head is accepted when it equals the embedding.
// Errors: kInvalidArgument naming the tensor: missing, unknown, or of another dtype or shape.
Status StageCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                       const PrecisionTable& table, Staging* staging);

// StageCheckpoint into a fresh staging, checked complete.
Result<std::unique_ptr<ModelWeights>> LoadWeights(const Checkpoint& checkpoint,
                                                  const ModelSpec& spec,
                                                  const PrecisionTable& table, Backend& backend);

// Random weights of the right shapes, through the same transform: N(0, 0.02), norms 1, seeded by
// the tensor's name.
Result<std::unique_ptr<ModelWeights>> DummyWeights(const PrecisionTable& table, Backend& backend);

// ok when `config` describes the model of `spec`; otherwise kInvalidArgument naming the first
// dimension that differs.
Status CheckSameModel(const ModelSpec& spec, const HfConfig& config);

// The first row whose format differs between two tables of one model, as an error; else ok.
Status CheckSameTable(const PrecisionTable& served, const PrecisionTable& source);

}  // namespace octavo
