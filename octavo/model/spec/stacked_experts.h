#pragma once
// Experts of a layer that a source may hold as two 3-D tensors instead of three 2-D ones an expert.
//
//   …mlp.experts.gate_up_proj  [experts, 2 * intermediate, hidden]  gate rows, then up rows
//   …mlp.experts.down_proj     [experts, hidden, intermediate]
//
// Neither name ends in ".weight". Output features come before input features, as in every 2-D
// weight; which of the two orders a file has follows from its architecture, never from shapes. The
// architectures that put input features first (Llama-4, gpt-oss) are not in this release.
// Source: HF transformers 5 (fused experts of Qwen and DeepSeek models); docs/formats.md.

#include <cstdint>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// Where one expert's weight lies in a stacked tensor: rows of one expert, which are consecutive in
// memory. Offset in elements: (expert * stacked_rows + row_begin) * cols.
struct StackedSlice {
  int weight = -1;        // Position in spec.weights.
  int64_t expert = 0;     // Along the first axis.
  int64_t row_begin = 0;  // Along the second.
  int64_t num_rows = 0;   // The weight's own rows.
};

struct StackedSource {
  std::string name;  // "model.layers.3.mlp.experts.gate_up_proj"
  int layer = -1;
  Shape shape;                       // [experts, rows, cols]
  std::vector<StackedSlice> slices;  // In the order of memory; together the whole tensor.
};

// Two for each sparse layer, MTP layers included, in forward order; none for a dense model.
std::vector<StackedSource> StackedSourcesOf(const ModelSpec& spec);

// Errors: kUnsupported for the shape with input features first, kInvalidArgument for any other
// shape than source.shape.
Status CheckStackedShape(const StackedSource& source, const Shape& shape);

}  // namespace octavo
