#pragma once
// Weights into the parts that an engine stores, by its manifest: quantizing in the trainer.

#include <cstddef>
#include <optional>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/policy/manifest.h"

namespace octavo::capi {

// One thread.
class Encoder {
 public:
  // Takes one tensor to be sent; it is borrowed until the call returns.
  using Emit = FunctionRef<Status(std::string_view name, const ConstTensorView& tensor)>;

  // `manifest` and `pool` outlive it; `pool` may be null.
  Encoder(const Manifest* manifest, ThreadPool* pool);

  // Gives a weight that the manifest quantizes to `emit` as codes and scales, by the one transform;
  // everything else as it is: kept weights, parts, experts in one tensor, and names that only the
  // engine can judge. Weights that share a scale wait, in BF16, for the last of them. Scales of
  // activations are left to the engine, as when it quantizes itself.
  // Errors: those of TransformWeight and of `emit`.
  Status Put(std::string_view name, const ConstTensorView& tensor, Emit emit);

  // Errors: kInvalidArgument naming a weight that waits, and for which one.
  Status Finish() const;

 private:
  // A member of a group that waits.
  struct Waiting {
    size_t row_idx = 0;
    Buffer bf16;
  };

  Status EmitWeight(size_t row_idx, const ConstTensorView& source, std::optional<float> amax,
                    Emit emit);
  Status PutMember(size_t row_idx, const ConstTensorView& source, Emit emit);

  const Manifest& manifest_;
  ThreadPool* const pool_;
  std::unordered_map<std::string_view, size_t> row_of_;   // Of quantized weights, by name.
  std::unordered_map<int, std::vector<size_t>> members_;  // Of each group.
  std::unordered_map<int, std::vector<Waiting>> waiting_;
};

}  // namespace octavo::capi
