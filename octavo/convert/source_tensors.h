#pragma once
// Which tensors of a checkpoint make which weight of a model, whatever format they are stored in.
// Tensors are believed over the configuration: names, dtypes and shapes decide (docs/convert.md).

#include <optional>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/source.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// A stored tensor and what it is to its weight. The dtype and shape in `spec` are the file's.
struct SourcePart {
  const StoredTensor* tensor = nullptr;
  StoredPart part = StoredPart::kCodes;
};

struct FoundWeight {
  WeightSource source;
  std::vector<SourcePart> parts;  // Codes or values first. Of a stacked tensor: that alone.
  bool is_stacked = false;        // A slice of parts[0].

  // Null when the weight is stored without it.
  const StoredTensor* Find(StoredPart part) const;
};

struct SourceTensors {
  // Position in spec.weights -> what stores it; nullopt where nothing does.
  std::vector<std::optional<FoundWeight>> weights;
  std::vector<const StoredTensor*> others;  // Belong to no weight; by name.
};

// Pointers are into `checkpoint`, which must outlive them.
// Errors: kUnsupported for what is not read, by name: INT4, FNUZ, MXFP4, DeepSeek-V4's own names,
// other block sizes, stacked codes; kInvalidArgument for another shape or dtype, a scale without
// its weight, codes without their scale, and scales that seem to divide.
Result<SourceTensors> FindSources(const Checkpoint& checkpoint, const ModelSpec& spec);

// The refusals that need no ModelSpec: from the configuration and from names.
Status CheckAcceptedSource(const Checkpoint& checkpoint);

}  // namespace octavo
