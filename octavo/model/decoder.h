#pragma once
// The frame that all architectures share: embedding, the layers in order, final norm and head.
//
//   h = Embed(ids);  per layer: what the architecture says;  logits = Linear_head(Norm(h))

#include <cstdint>
#include <memory>
#include <span>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/model/layer_step.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// The layers of one architecture, with the activations of their blocks. One thread.
class DecoderLayers {
 public:
  virtual ~DecoderLayers() = default;

  // Runs layer step.layer: reads and changes step.hidden. Allocates nothing.
  virtual Status Run(const LayerStep& step) = 0;
  // As Model::RoutedExperts, of at least as many tokens as the last batch had.
  virtual std::span<const int32_t> RoutedExperts() const { return {}; }
};

// Reserves the backend, allocates the shared activations and finds the shared weights; `backend`
// must outlive the model.
// Errors: kInvalidArgument for a weight that the table lacks, kExhausted.
Result<std::unique_ptr<Model>> MakeDecoder(const ModelSpec& spec, Backend* backend,
                                           const ModelLimits& limits,
                                           std::unique_ptr<DecoderLayers> layers);

}  // namespace octavo
