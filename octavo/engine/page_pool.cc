#include "octavo/engine/page_pool.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

PagePool::PagePool(int64_t num_pages) : ref_counts_(static_cast<size_t>(num_pages), 0) {
  CHECK(num_pages <= int64_t{std::numeric_limits<int32_t>::max()});
  free_.reserve(ref_counts_.size());
  for (int64_t page = num_pages - 1; page >= 0; --page) {
    free_.push_back(static_cast<int32_t>(page));  // Page 0 on top.
  }
}

Status PagePool::AllocateMemory(const ModelSpec& spec, const Backend& backend, DType dtype) {
  const KvShape shape = KvShapeOf(spec, dtype);
  const int64_t page_bytes = backend.KvPageBytes(shape);
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    ASSIGN_OR_RETURN(Buffer pages, Buffer::AllocateHost(page_bytes * num_pages()));
    layers_.push_back({.pages = pages.data(),
                       .page_bytes = page_bytes,
                       .num_pages = num_pages(),
                       .shape = shape});
    memory_.push_back(std::move(pages));
  }
  return OkStatus();
}

void PagePool::ReleaseMemory() {
  CHECK(num_free() == num_pages());
  memory_.clear();
  for (KvLayer& layer : layers_) {
    layer.pages = nullptr;
  }
  experts_.ReleaseMemory();
}

Status PagePool::ResumeMemory() {
  std::vector<Buffer> memory;
  for (const KvLayer& layer : layers_) {
    ASSIGN_OR_RETURN(memory.emplace_back(),
                     Buffer::AllocateHost(layer.page_bytes * layer.num_pages));
  }
  if (experts_.enabled()) {
    RETURN_IF_ERROR(experts_.Allocate(num_pages(), experts_.row_size()));
  }
  for (size_t i = 0; i < layers_.size(); ++i) {
    layers_[i].pages = memory[i].data();
  }
  memory_ = std::move(memory);
  return OkStatus();
}

Status PagePool::AllocateExperts(const ModelSpec& spec) {
  return experts_.Allocate(num_pages(), spec.num_layers * spec.moe.top_k);
}

int32_t PagePool::Allocate() {
  if (free_.empty()) {
    return -1;
  }
  const int32_t page = free_.back();
  free_.pop_back();
  ref_counts_[static_cast<size_t>(page)] = 1;
  for (const KvLayer& layer : layers_) {
    std::memset(layer.pages + page * layer.page_bytes, 0, static_cast<size_t>(layer.page_bytes));
  }
  return page;
}

void PagePool::AddRef(int32_t page) {
  int32_t& count = ref_counts_[static_cast<size_t>(page)];
  CHECK(count > 0);
  ++count;
}

void PagePool::CopyPage(int32_t from, int32_t to) {
  DCHECK(from != to);
  for (const KvLayer& layer : layers_) {
    std::memcpy(layer.pages + to * layer.page_bytes, layer.pages + from * layer.page_bytes,
                static_cast<size_t>(layer.page_bytes));
  }
  if (experts_.enabled()) {
    experts_.CopyPage(from, to);
  }
}

int32_t PagePool::Release(int32_t page) {
  int32_t& count = ref_counts_[static_cast<size_t>(page)];
  CHECK(count > 0);
  --count;
  if (count == 0) {
    free_.push_back(page);
  }
  return count;
}

void PagePool::CheckInvariants() const {
  std::vector<bool> seen(ref_counts_.size(), false);
  for (const int32_t page : free_) {
    CHECK(ref_count(page) == 0);
    CHECK(!seen[static_cast<size_t>(page)]);
    seen[static_cast<size_t>(page)] = true;
  }
  for (size_t page = 0; page < ref_counts_.size(); ++page) {
    CHECK(ref_counts_[page] >= 0);
    CHECK((ref_counts_[page] == 0) == seen[page]);
  }
}

}  // namespace octavo
