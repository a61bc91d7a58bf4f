#pragma once
// Which tensors of a checkpoint make which weight of a model, whatever format they are stored in.
// Tensors are believed over the configuration: names, dtypes and shapes decide (docs/convert.md).

#include <memory>
#include <optional>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/inverse_scales.h"
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

struct SourceOptions {
  // The floating-point scales of E4M3 codes divide: they are read as their reciprocals. Default:
  // false; a source that looks like it is refused.
  bool scales_divide = false;
};

struct SourceTensors {
  // Position in spec.weights -> what stores it; nullopt where nothing does.
  std::vector<std::optional<FoundWeight>> weights;
  std::vector<const StoredTensor*> others;  // Belong to no weight; by name.
  // What stands in for the scales of a source whose scales divide.
  std::vector<std::unique_ptr<InvertedScales>> inverted = {};
};

// Pointers are into `checkpoint`, which must outlive them, and into `inverted`.
// Errors: kUnsupported for what is not read, by name: INT4, FNUZ, MXFP4, DeepSeek-V4's own names,
// other block sizes, stacked codes; kInvalidArgument for another shape or dtype, a scale without
// its weight, codes without their scale, and scales that seem to be the other way round than
// `options` say.
Result<SourceTensors> FindSources(const Checkpoint& checkpoint, const ModelSpec& spec,
                                  const SourceOptions& options = {});

// The refusals that need no ModelSpec: from the configuration and from names.
Status CheckAcceptedSource(const Checkpoint& checkpoint);

}  // namespace octavo
