#include "octavo/client/bucket_stream.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <random>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/client/http_client.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;

constexpr size_t kAlignment = 256;
// Rows between which a tensor may be cut: no format has a block that is cut there.
constexpr int64_t kSliceRows = 128;

size_t PaddingAt(size_t offset) { return (kAlignment - offset % kAlignment) % kAlignment; }

// At most what a tensor adds to the header of its bucket: its entry, its checksum, and what fills
// the space behind it with an entry of its own.
int64_t HeaderBytesOf(const PushTensor& tensor) {
  constexpr int64_t kNumbers = 24;  // Digits and a comma.
  const auto shape_bytes = static_cast<int64_t>(tensor.view.shape.size()) * kNumbers;
  // Names are escaped, at worst to six bytes for one.
  return 2 * 6 * static_cast<int64_t>(tensor.name.size()) + shape_bytes + 4 * kNumbers + 256 +
         static_cast<int64_t>(kAlignment);
}

constexpr int64_t kEmptyHeaderBytes = 2 * static_cast<int64_t>(kAlignment);

// Rows of `tensor` that fit into `bytes_max`, as a multiple of where it may be cut; 0: none.
int64_t RowsWithin(const ConstTensorView& tensor, int64_t bytes_max) {
  if (tensor.shape.size() < 2 || tensor.shape[0] == 0) {
    return 0;
  }
  const int64_t granule = tensor.shape.size() == 2 ? kSliceRows : 1;
  const int64_t row_bytes = std::max<int64_t>(tensor.NumBytes() / tensor.shape[0], 1);
  return bytes_max / row_bytes / granule * granule;
}

Status CutTensor(const PushTensor& tensor, const BucketLimits& limits,
                 std::vector<PushTensor>* pieces) {
  // The name of a piece is longer than that of the whole.
  const int64_t room = limits.body_bytes - kEmptyHeaderBytes - HeaderBytesOf(tensor) - 1024;
  int64_t num_rows = RowsWithin(tensor.view, std::min(room, limits.tensor_bytes));
  num_rows = num_rows > 0 ? num_rows : std::min(RowsWithin(tensor.view, room), kSliceRows);
  if (num_rows <= 0) {
    return InvalidArgument(
        "{}: {} bytes of {} do not fit the {} bytes that the server takes at once, and neither do "
        "the fewest rows that can be sent alone: raise its --max-body-bytes",
        tensor.name, tensor.view.NumBytes(), ShapeString(tensor.view.shape), limits.body_bytes);
  }
  const int64_t row_bytes = tensor.view.NumBytes() / tensor.view.shape[0];
  for (int64_t begin = 0; begin < tensor.view.shape[0]; begin += num_rows) {
    const int64_t end = std::min(begin + num_rows, tensor.view.shape[0]);
    PushTensor piece{fmt::format("{}[{}:{}]", tensor.name, begin, end), tensor.view};
    piece.view.shape[0] = end - begin;
    piece.view.data += begin * row_bytes;
    pieces->push_back(std::move(piece));
  }
  return OkStatus();
}

}  // namespace

std::string SafetensorsBuffer(std::span<const PushTensor> tensors) {
  Json metadata = Json::object();
  for (const PushTensor& tensor : tensors) {
    metadata["xxh3-128:" + tensor.name] = HashHex(HashBytes(tensor.view.Bytes()));
  }
  Json header = {{"__metadata__", std::move(metadata)}};
  std::vector<size_t> begins;
  size_t num_bytes = 0;
  for (const PushTensor& tensor : tensors) {
    if (const size_t padding = PaddingAt(num_bytes); padding > 0) {
      header[fmt::format("__pad__.{}", begins.size())] = {
          {"dtype", "U8"},
          {"shape", {padding}},
          {"data_offsets", {num_bytes, num_bytes + padding}}};
      num_bytes += padding;
    }
    begins.push_back(num_bytes);
    num_bytes += tensor.view.Bytes().size();
    header[tensor.name] = {{"dtype", std::string(DTypeName(tensor.view.dtype))},
                           {"shape", tensor.view.shape},
                           {"data_offsets", {begins.back(), num_bytes}}};
  }
  std::string text = header.dump(-1, ' ', /*ensure_ascii=*/false, Json::error_handler_t::replace);
  text.append(PaddingAt(sizeof(uint64_t) + text.size()), ' ');

  std::string buffer;
  buffer.reserve(sizeof(uint64_t) + text.size() + num_bytes);
  for (size_t i = 0; i < sizeof(uint64_t); ++i) {  // Little-endian length of the header.
    buffer.push_back(static_cast<char>(static_cast<uint64_t>(text.size()) >> (8 * i)));
  }
  buffer += text;
  const size_t data_begin = buffer.size();
  for (size_t i = 0; i < tensors.size(); ++i) {
    const auto bytes = tensors[i].view.Bytes();
    buffer.append(data_begin + begins[i] - buffer.size(), '\0');
    buffer.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return buffer;
}

Result<int64_t> GetBodyLimit(HttpClient& client) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, "/server_info"));
  const Json info = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!info.is_object()) {
    return Corrupt("GET {}/server_info: expected a JSON object, got '{}'", client.url().ToString(),
                   text.substr(0, 200));
  }
  const Json::json_pointer limit("/limits/body_bytes");
  return info.contains(limit) && info[limit].is_number_integer()
             ? info[limit].get<int64_t>()
             : std::numeric_limits<int64_t>::max();
}

Result<std::vector<PushTensor>> CutTensors(std::span<const PushTensor> tensors,
                                           const BucketLimits& limits) {
  std::vector<PushTensor> pieces;
  for (const PushTensor& tensor : tensors) {
    const int64_t room = limits.body_bytes - kEmptyHeaderBytes - HeaderBytesOf(tensor);
    if (tensor.view.NumBytes() <= room) {
      pieces.push_back(tensor);
    } else {
      RETURN_IF_ERROR(CutTensor(tensor, limits, &pieces));
    }
  }
  return pieces;
}

std::vector<size_t> PlanBuckets(std::span<const PushTensor> tensors, const BucketLimits& limits) {
  std::vector<size_t> starts;
  int64_t tensor_bytes = 0;
  int64_t header_bytes = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    tensor_bytes += tensors[i].view.NumBytes();
    header_bytes += HeaderBytesOf(tensors[i]);
    if (starts.empty() || tensor_bytes > limits.tensor_bytes ||
        tensor_bytes > limits.body_bytes - kEmptyHeaderBytes - header_bytes) {
      starts.push_back(i);
      tensor_bytes = tensors[i].view.NumBytes();
      header_bytes = HeaderBytesOf(tensors[i]);
    }
  }
  return starts;
}

std::string NewRequestKey() {
  std::random_device random;
  std::string key;
  for (int i = 0; i < 4; ++i) {
    key += fmt::format("{:08x}", random());
  }
  return key;
}

}  // namespace octavo
