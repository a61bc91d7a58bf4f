#include "octavo/capi/encoder.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/policy/manifest.h"
#include "octavo/policy/precision_table.h"

namespace octavo::capi {
namespace {

bool IsPlain(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

}  // namespace

Encoder::Encoder(const Manifest* manifest, ThreadPool* pool) : manifest_(*manifest), pool_(pool) {
  for (size_t i = 0; i < manifest_.table.rows.size(); ++i) {
    const PrecisionRow& row = manifest_.table.rows[i];
    if (row.format == WeightFormat::kBf16) {
      continue;
    }
    row_of_.emplace(row.name, i);
    if (const int group = manifest_.group_of[i]; group >= 0) {
      members_[group].push_back(i);
    }
  }
}

Status Encoder::Put(std::string_view name, const ConstTensorView& tensor, Emit emit) {
  const auto found = row_of_.find(name);
  if (found == row_of_.end() || !IsPlain(tensor.dtype)) {
    return emit(name, tensor);
  }
  return manifest_.group_of[found->second] < 0
             ? EmitWeight(found->second, tensor, std::nullopt, emit)
             : PutMember(found->second, tensor, emit);
}

Status Encoder::EmitWeight(size_t row_idx, const ConstTensorView& source, std::optional<float> amax,
                           Emit emit) {
  const PrecisionRow& row = manifest_.table.rows[row_idx];
  const StoredLayout layout = manifest_.table.layout;
  const TransformOptions options = {.shared_amax = amax, .layout = layout, .pool = pool_};
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> tensors, TransformWeight(row, source, options));
  const std::vector<StoredTensorSpec> specs = StoredTensorsOf(row, layout);
  for (size_t i = 0; i < specs.size(); ++i) {
    if (!specs[i].is_optional) {
      RETURN_IF_ERROR(emit(tensors[i].name, tensors[i].View()));
    }
  }
  return OkStatus();
}

Status Encoder::PutMember(size_t row_idx, const ConstTensorView& source, Emit emit) {
  const int group = manifest_.group_of[row_idx];
  std::vector<Waiting>& waiting = waiting_[group];
  PrecisionRow kept = manifest_.table.rows[row_idx];
  kept.format = WeightFormat::kBf16;
  ASSIGN_OR_RETURN(std::vector<OwnedTensor> copy, TransformWeight(kept, source, {.pool = pool_}));
  // Sent again, it takes the place of what came before; the engine judges what has gone out.
  std::erase_if(waiting, [&](const Waiting& other) { return other.row_idx == row_idx; });
  waiting.push_back({.row_idx = row_idx, .bf16 = std::move(copy[0].bytes)});
  if (waiting.size() < members_.at(group).size()) {
    return OkStatus();
  }
  const std::vector<Waiting> complete = std::move(waiting);
  waiting_.erase(group);
  const auto view_of = [&](const Waiting& member) {
    return ConstTensorView{DType::kBf16, manifest_.table.rows[member.row_idx].shape,
                           member.bf16.data()};
  };
  float amax = 0.0F;
  for (const Waiting& member : complete) {
    ASSIGN_OR_RETURN(const float own, WeightAmax(manifest_.table.rows[member.row_idx],
                                                 view_of(member), {.pool = pool_}));
    amax = std::max(amax, own);
  }
  for (const Waiting& member : complete) {
    RETURN_IF_ERROR(EmitWeight(member.row_idx, view_of(member), amax, emit));
  }
  return OkStatus();
}

Status Encoder::Finish() const {
  for (const auto& [group, waiting] : waiting_) {
    for (const size_t row_idx : members_.at(group)) {
      if (std::ranges::find(waiting, row_idx, &Waiting::row_idx) == waiting.end()) {
        return InvalidArgument("{}: shares its scale with {}, which is missing",
                               manifest_.table.rows[waiting.front().row_idx].name,
                               manifest_.table.rows[row_idx].name);
      }
    }
  }
  return OkStatus();
}

}  // namespace octavo::capi
