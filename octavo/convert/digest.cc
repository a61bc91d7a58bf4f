#include "octavo/convert/digest.h"

#include <fmt/core.h>
#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"

namespace octavo {

TensorDigestLine DigestTensor(std::string name, const ConstTensorView& tensor) {
  return {.name = std::move(name),
          .dtype = tensor.dtype,
          .shape = tensor.shape,
          .hex = HashHex(TensorDigest(tensor.Bytes()))};
}

ModelDigest ModelDigestOf(std::vector<TensorDigestLine> lines) {
  std::ranges::sort(lines, {}, &TensorDigestLine::name);
  std::string text;
  for (const TensorDigestLine& line : lines) {
    text += fmt::format("{} {} {} {}\n", line.name, DTypeName(line.dtype),
                        fmt::join(line.shape, ","), line.hex);
  }
  const Hash128 hash = HashText(text);
  return {.tensors = std::move(lines), .hex = HashHex(hash), .hash = hash};
}

ModelDigest DigestCheckpoint(const Checkpoint& checkpoint, ThreadPool* pool) {
  const std::span<const StoredTensor> tensors = checkpoint.tensors();
  std::vector<TensorDigestLine> lines(tensors.size());
  const auto digest = [&](int64_t begin, int64_t end, int /*worker_idx*/) {
    for (auto i = static_cast<size_t>(begin); i < static_cast<size_t>(end); ++i) {
      lines[i] = DigestTensor(tensors[i].name, tensors[i].view);
    }
  };
  if (pool != nullptr) {
    pool->ParallelFor(static_cast<int64_t>(tensors.size()), digest);
  } else {
    digest(0, static_cast<int64_t>(tensors.size()), 0);
  }
  return ModelDigestOf(std::move(lines));
}

std::string ModelDigestJson(const ModelDigest& digest) {
  nlohmann::json tensors = nlohmann::json::object();
  for (const TensorDigestLine& line : digest.tensors) {
    tensors[line.name] = line.hex;
  }
  const nlohmann::json json = {{"digest", digest.hex}, {"tensors", std::move(tensors)}};
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace);
}

}  // namespace octavo
