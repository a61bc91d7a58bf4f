#include "octavo/checkpoint/writer.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/folder.h"
#include "octavo/checkpoint/safetensors.h"
#include "octavo/checkpoint/shard_index.h"
#include "octavo/checkpoint/unique_keys.h"

namespace octavo {
namespace {

constexpr int64_t kAlignBytes = 8;

// Requires a header that CheckHeaders let pass.
int64_t BytesOf(const TensorHeader& header) {
  return NumElements(header.shape) * DTypeBytes(header.dtype);
}

bool StandsInTail(const TensorHeader& header) { return BytesOf(header) % kAlignBytes != 0; }

// Names, sizes and their sum are fit to write; returns the sum.
Result<int64_t> CheckHeaders(const std::vector<TensorHeader>& headers) {
  int64_t total = 0;
  std::vector<std::string_view> names;
  for (const TensorHeader& header : headers) {
    if (const Status status = CheckTensorName(header.name); !status.ok()) {
      return InvalidArgument("{}", status.message());
    }
    names.push_back(header.name);
    const std::optional<int64_t> bytes = CheckedTensorBytes(header.dtype, header.shape);
    if (!bytes || __builtin_add_overflow(total, *bytes, &total)) {
      return InvalidArgument("tensor {}: shape {}: expected extents >= 0 and fewer than 2^63 bytes",
                             header.name, ShapeString(header.shape));
    }
  }
  if (const auto twin = FirstDuplicate(std::move(names))) {
    return InvalidArgument("tensor {}: expected once, got it more than once", *twin);
  }
  return total;
}

// The headers that stand behind the others: wide elements first, then in the order given.
std::vector<size_t> TailOf(const std::vector<TensorHeader>& headers) {
  std::vector<size_t> tail;
  for (size_t i = 0; i < headers.size(); ++i) {
    if (StandsInTail(headers[i])) {
      tail.push_back(i);
    }
  }
  std::sort(tail.begin(), tail.end(), [&headers](size_t a, size_t b) {
    const int64_t a_bytes = DTypeBytes(headers[a].dtype);
    const int64_t b_bytes = DTypeBytes(headers[b].dtype);
    return a_bytes != b_bytes ? a_bytes > b_bytes : a < b;
  });
  return tail;
}

// Positions in `headers` in the order in which the tensors stand in the buffer.
std::vector<size_t> BufferOrder(const std::vector<TensorHeader>& headers) {
  std::vector<size_t> order;
  for (size_t i = 0; i < headers.size(); ++i) {
    if (!StandsInTail(headers[i])) {
      order.push_back(i);
    }
  }
  const std::vector<size_t> tail = TailOf(headers);
  order.insert(order.end(), tail.begin(), tail.end());
  return order;
}

// Where each tensor begins in the buffer.
std::vector<int64_t> BufferOffsets(const std::vector<TensorHeader>& headers,
                                   const std::vector<size_t>& order) {
  std::vector<int64_t> offsets(headers.size());
  int64_t end = 0;
  for (const size_t i : order) {
    offsets[i] = end;
    end += BytesOf(headers[i]);
  }
  return offsets;
}

// Header length, JSON and padding: what stands before the buffer.
std::string HeaderBytes(const std::vector<TensorHeader>& headers, const std::vector<size_t>& order,
                        const std::vector<int64_t>& offsets) {
  std::string text = R"({"__metadata__":{"format":"pt"})";
  for (const size_t i : order) {
    const TensorHeader& header = headers[i];
    text +=
        fmt::format(R"(,{}:{{"dtype":"{}","shape":{},"data_offsets":[{},{}]}})",
                    nlohmann::json(header.name).dump(), DTypeName(header.dtype),
                    nlohmann::json(header.shape).dump(), offsets[i], offsets[i] + BytesOf(header));
  }
  text += '}';
  const size_t align = static_cast<size_t>(kAlignBytes);
  text.resize((text.size() + align - 1) / align * align, ' ');
  const uint64_t num_bytes = text.size();
  static_assert(std::endian::native == std::endian::little && sizeof(num_bytes) == 8);
  std::string length(sizeof(num_bytes), '\0');
  std::memcpy(length.data(), &num_bytes, sizeof(num_bytes));
  return length + text;
}

}  // namespace

Result<ShardWriter> ShardWriter::Create(const std::string& path,
                                        std::vector<TensorHeader> headers) {
  const auto total = CheckHeaders(headers);
  if (!total) {
    return total.error().WithContext(path);
  }
  ShardWriter writer;
  writer.path_ = path;
  writer.tensor_bytes_ = *total;
  writer.headers_ = std::move(headers);
  const std::vector<size_t> order = BufferOrder(writer.headers_);
  writer.offsets_ = BufferOffsets(writer.headers_, order);
  writer.bytes_written_ = std::vector<std::atomic<int64_t>>(writer.headers_.size());
  const std::string prefix = HeaderBytes(writer.headers_, order, writer.offsets_);
  for (int64_t& offset : writer.offsets_) {
    offset += static_cast<int64_t>(prefix.size());
  }
  if (static_cast<int64_t>(prefix.size()) - kSafetensorsLengthBytes > kSafetensorsHeaderBytesMax) {
    return InvalidArgument("{}: header: expected at most {} bytes, got {}", path,
                           kSafetensorsHeaderBytesMax, prefix.size());
  }
  ASSIGN_OR_RETURN(writer.file_, AtomicFile::Create(path));
  RETURN_IF_ERROR(writer.file_.Append(prefix));
  return writer;
}

Status ShardWriter::Append(const ConstTensorView& tensor) {
  if (next_ == headers_.size()) {
    return InvalidArgument("{}: expected {} tensors, got more", path_, headers_.size());
  }
  const TensorHeader& header = headers_[next_];
  if (tensor.dtype != header.dtype || tensor.shape != header.shape) {
    return InvalidArgument("{}: tensor {}: expected {} {}, got {} {}", path_, header.name,
                           ShapeString(header.shape), DTypeName(header.dtype),
                           ShapeString(tensor.shape), DTypeName(tensor.dtype));
  }
  return WriteAt(next_++, 0, tensor.Bytes());
}

Status ShardWriter::WriteAt(size_t header_idx, int64_t offset_bytes,
                            std::span<const std::byte> bytes) {
  const auto num_bytes = static_cast<int64_t>(bytes.size());
  DCHECK(offset_bytes + num_bytes <= BytesOf(headers_[header_idx]));
  RETURN_IF_ERROR(file_.WriteAt(offsets_[header_idx] + offset_bytes, bytes));
  bytes_written_[header_idx].fetch_add(num_bytes, std::memory_order_relaxed);
  return OkStatus();
}

Status ShardWriter::Commit() {
  for (size_t i = 0; i < headers_.size(); ++i) {
    const int64_t written = bytes_written_[i].load(std::memory_order_relaxed);
    if (written != BytesOf(headers_[i])) {
      return InvalidArgument("{}: tensor {}: expected its bytes before the end, got {} of {}",
                             path_, headers_[i].name, written, BytesOf(headers_[i]));
    }
  }
  return file_.Commit();
}

Result<std::string> IndexJson(std::span<const ShardContents> shards) {
  std::map<std::string, std::string> files;  // By tensor name; sorted as bytes.
  int64_t total = 0;
  for (const ShardContents& shard : shards) {
    if (!IsPlainShardName(shard.file)) {
      return InvalidArgument("expected the plain name of a *.safetensors file, got \"{}\"",
                             shard.file);
    }
    ASSIGN_OR_RETURN(const int64_t bytes, CheckHeaders(shard.tensors));
    if (__builtin_add_overflow(total, bytes, &total)) {
      return InvalidArgument("{}: expected fewer than 2^63 bytes in all", shard.file);
    }
    for (const TensorHeader& header : shard.tensors) {
      const auto [place, is_new] = files.emplace(header.name, shard.file);
      if (!is_new) {
        return InvalidArgument("tensor {}: expected in one file, got {} and {}", header.name,
                               place->second, shard.file);
      }
    }
  }
  nlohmann::json json;
  json["metadata"]["total_size"] = total;
  json["weight_map"] = files;
  return json.dump(2) + "\n";
}

Status WriteIndex(const std::string& dir, std::span<const ShardContents> shards) {
  ASSIGN_OR_RETURN(const std::string text, IndexJson(shards));
  return WriteTextFile((std::filesystem::path(dir) / kShardIndexFile).string(), text);
}

Status CopyExtraFiles(const Checkpoint& checkpoint, const std::string& out_dir) {
  const auto names = checkpoint.extra_files();
  return CopyAlong(checkpoint.dir(), {names.begin(), names.end()}, out_dir);
}

}  // namespace octavo
