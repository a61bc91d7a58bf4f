#pragma once
// LayerStep: what the blocks of a decoder layer work with in one Forward.

#include <cstddef>
#include <cstdint>
#include <optional>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/weight_rows.h"

namespace octavo {

// What a block reads [tokens, hidden]. With `norm` it is not there yet: the block's first linear
// layer makes it.
struct BlockInput {
  Activations x;
  std::optional<RmsNormArgs> norm = {};
};

// Views of the caller's batch and of the decoder's activations, valid for one layer of one Forward.
struct LayerStep {
  Backend& backend;
  const ForwardBatch& batch;
  const ModelWeights& weights;
  const KvLayer& kv;
  int64_t layer = 0;
  Activations hidden;  // h, the residual stream [tokens, hidden].
  Activations normed;  // Room for the input of a block, [tokens, hidden].
  Activations delta;   // What a block adds to h, [tokens, hidden].

  int64_t num_tokens() const { return hidden.rows; }
  const PackedMatrix* Weight(int row) const {
    return row < 0 ? nullptr : &weights.matrices[static_cast<size_t>(row)];
  }
  LinearPart Part(LinearRows rows, Activations y) const {
    return {.weight = Weight(rows.weight), .y = y, .bias = Weight(rows.bias)};
  }

  // y = Linear(x).
  Status Linear(Activations x, LinearRows rows, Activations y) const {
    const LinearPart parts[] = {Part(rows, y)};
    return backend.Linear({.x = x, .parts = parts});
  }
  // y = Norm(x) with the weight of `row`; y may be x.
  Status Norm(Activations x, int row, float eps, Activations y) const {
    return backend.RmsNorm({.x = x, .weight = Weight(row), .eps = eps, .y = y});
  }
  // normed = Norm(h), left to the linear layer that reads it first.
  BlockInput NormedHidden(int row, float eps) const {
    return {.x = normed,
            .norm = RmsNormArgs{.x = hidden, .weight = Weight(row), .eps = eps, .y = normed}};
  }
  // h = h + delta.
  Status AddDelta() const { return backend.Add({.x = hidden, .delta = delta}); }
};

}  // namespace octavo
