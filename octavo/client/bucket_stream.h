#pragma once
// Buckets of weights as a sender streams them: safetensors buffers with a checksum of every tensor,
// aligned, none larger than the server takes; tensors that are larger go in rows.

#include <cstddef>
#include <cstdint>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/http_client.h"

namespace octavo {

// A tensor to send; the bytes must live while it is sent.
struct PushTensor {
  std::string name;
  ConstTensorView view;
};

// A complete safetensors file in memory (length, header, bytes) with `tensors` in this order. The
// bytes of each start at a multiple of 256; what fills the space between two is a tensor of its
// own,
// "__pad__.N" in U8. The header says the hash of each as "xxh3-128:NAME" in its __metadata__.
std::string SafetensorsBuffer(std::span<const PushTensor> tensors);

// The largest body that a server takes, by its own word; the largest number when it says none.
// Errors: those of GetText; kCorrupt for an answer that is no JSON object.
Result<int64_t> GetBodyLimit(HttpClient& client);

struct BucketLimits {
  int64_t tensor_bytes = int64_t{64} << 20;  // Of a bucket; a tensor beyond it travels alone.
  int64_t body_bytes =
      std::numeric_limits<int64_t>::max();  // Of one, with its header: GetBodyLimit.
};

// `tensors` in order, those that no body can hold in rows: "NAME[begin:end]", cut at multiples of
// 128 (those of more than two dimensions anywhere along the first). Errors: kInvalidArgument naming
// the tensor whose smallest piece is too large.
Result<std::vector<PushTensor>> CutTensors(std::span<const PushTensor> tensors,
                                           const BucketLimits& limits);

// First index of each bucket over tensors of these sizes, in order: a bucket takes tensors while
// they stay within the limits.
std::vector<size_t> PlanBuckets(std::span<const PushTensor> tensors, const BucketLimits& limits);

// 32 random hexadecimal digits: by the same key a server knows a call that comes again.
std::string NewRequestKey();

}  // namespace octavo
