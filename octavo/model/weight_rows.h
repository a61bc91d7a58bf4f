#pragma once
// Rows of a model's weight table, found by name once when a forward pass is built.

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// Rows of one linear layer; -1: there is none.
struct LinearRows {
  int weight = -1;
  int bias = -1;
};

// Position of the weight named `name`. Errors: kInvalidArgument, by name.
Result<int> FindRow(const ModelSpec& spec, const std::string& name);

// The modules of one decoder layer. `spec` must outlive it.
class LayerRows {
 public:
  LayerRows(const ModelSpec& spec, int64_t layer);

  // "input_layernorm" finds model.layers.N.input_layernorm.weight with the spec's prefix.
  // Errors: kInvalidArgument, by name.
  Result<int> Weight(std::string_view module) const;
  // The weight and, where the table has one, the bias.
  Result<LinearRows> Linear(std::string_view module) const;
  // The row of any name in the layer, such as "mlp.gate.e_score_correction_bias".
  Result<int> Named(std::string_view name) const;

 private:
  const ModelSpec& spec_;
  std::string prefix_;  // "model.layers.3."
};

}  // namespace octavo
