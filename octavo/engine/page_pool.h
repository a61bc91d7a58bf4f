#pragma once
// PagePool: the memory of the paged KV cache, its free list and its reference counts.

#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/engine/routed_experts.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

// ceil(num_tokens / kPageTokens).
inline constexpr int64_t NumPagesFor(int64_t num_tokens) {
  return (num_tokens + kPageTokens - 1) / kPageTokens;
}

// A page holds kPageTokens positions of one sequence, in every layer. One thread.
class PagePool {
 public:
  // A pool that only counts; AllocateMemory gives its pages memory.
  explicit PagePool(int64_t num_pages);

  // num_layers * KvPageBytes * num_pages bytes. Errors: kExhausted.
  Status AllocateMemory(const ModelSpec& spec, const Backend& backend, DType dtype = DType::kBf16);
  // Gives the memory back, experts included, and takes it again with every page zero. In between
  // the pool only counts; nobody may hold a page. Errors: kExhausted; then nothing is taken.
  void ReleaseMemory();
  Status ResumeMemory();
  // Pages hold the experts of their tokens from now on. Errors: kExhausted.
  Status AllocateExperts(const ModelSpec& spec);

  // One view a layer; they live as long as the pool.
  std::span<const KvLayer> layers() const { return layers_; }
  RoutedExpertPages& experts() { return experts_; }
  const RoutedExpertPages& experts() const { return experts_; }
  int64_t num_pages() const { return static_cast<int64_t>(ref_counts_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int32_t ref_count(int32_t page) const { return ref_counts_[static_cast<size_t>(page)]; }

  // A page of zero bytes with one reference, or -1 when none is free.
  int32_t Allocate();
  void AddRef(int32_t page);
  // Makes page `to` a copy of page `from`, in every layer.
  void CopyPage(int32_t from, int32_t to);
  // Drops a reference; the last one frees the page. Returns how many are left.
  int32_t Release(int32_t page);

  // CHECKs that exactly the pages without references are free, each once.
  void CheckInvariants() const;

 private:
  std::vector<Buffer> memory_;   // One a layer.
  std::vector<KvLayer> layers_;  // Views of memory_.
  RoutedExpertPages experts_;
  std::vector<int32_t> free_;  // A stack: the page freed last is handed out first.
  std::vector<int32_t> ref_counts_;
};

}  // namespace octavo
