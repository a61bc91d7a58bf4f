// Any bytes as the pickle of /update_weights_from_tensor, in both forms: refused with a reason, or
// tensors whose every byte can be read. Shared memory is not opened: the bytes might name
// somebody's. Then the same bytes behind PROTO, so that what lies behind the first check is
// reached.

#include <cstddef>
#include <cstdint>
#include <string>

#include "octavo/base/check.h"
#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/sync/tensor_payload.h"

namespace {

void CheckPayload(const std::string& pickle, octavo::TensorPayloadForm form) {
  const octavo::TorchPickleOptions options = {.use_shared_memory = false,
                                              .copied_bytes_max = int64_t{1} << 20};
  const auto payload = octavo::TensorPayload::Read(pickle, form, options);
  if (!payload.has_value()) {
    CHECK(!payload.error().message().empty());
    return;
  }
  for (const octavo::NamedTensor& tensor : payload->tensors()) {
    CHECK(octavo::CheckTensorName(tensor.name).ok());
    CHECK(tensor.view.NumBytes() <= static_cast<int64_t>(pickle.size()));
    octavo::HashBytes(tensor.view.Bytes());
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string pickle(reinterpret_cast<const char*>(data), num_bytes);
  for (const auto form :
       {octavo::TensorPayloadForm::kNamedTensors, octavo::TensorPayloadForm::kFlattenedBucket}) {
    CheckPayload(pickle, form);
    CheckPayload("\x80\x04" + pickle, form);
  }
  return 0;
}
