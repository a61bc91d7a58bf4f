// Method: malloc, aligned_alloc and mmap are counted (this program's own definitions stand in front
// of libc's) over the first Forward and Logits of a model that was just built, at its largest batch
// and at one token, for every architecture on the vector backend, in every format with every form
// of input, and with a KV cache in FP8. Sanitizers bring their own malloc: skipped there.

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/model/model.h"
#include "octavo/model/model_for_test.h"
#include "octavo/model/spec/model_spec.h"

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define OCTAVO_COUNTS_ALLOCATIONS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define OCTAVO_COUNTS_ALLOCATIONS 0
#endif
#endif
#ifndef OCTAVO_COUNTS_ALLOCATIONS
#define OCTAVO_COUNTS_ALLOCATIONS 1
#endif

namespace {
std::atomic<int64_t> num_allocations{0};
}  // namespace

#if OCTAVO_COUNTS_ALLOCATIONS
extern "C" {
void* __libc_malloc(size_t size);                      // NOLINT(bugprone-reserved-identifier)
void* __libc_memalign(size_t alignment, size_t size);  // NOLINT(bugprone-reserved-identifier)

void* malloc(size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_malloc(size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  return __libc_memalign(alignment, size);
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  num_allocations.fetch_add(1, std::memory_order_relaxed);
  // NOLINTNEXTLINE(performance-no-int-to-ptr): what mmap is
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
}  // extern "C"
#endif

namespace octavo {
namespace {

constexpr int64_t kMaxTokens = 100;

// Allocations of the first pass over `tokens` tokens, with the logits of the last one.
int64_t CountPass(const ModelSpec& spec, TestFormat format, int64_t tokens) {
  Result<std::unique_ptr<Backend>> backend = MakeCpuBackend(BestIsa(), 2);
  EXPECT_TRUE(backend.has_value()) << backend.error().message();
  ModelWeights weights;
  weights.matrices.reserve(spec.weights.size());
  for (size_t i = 0; i < spec.weights.size(); ++i) {
    const WeightSpec& row = spec.weights[i];
    weights.matrices.push_back(PackWeight(row, RandomValues(row, i), format, **backend));
  }
  EXPECT_TRUE(DeriveWeights(spec, **backend, &weights).ok());
  const KvShape shape = KvShapeOf(spec, format.kv_dtype);
  const int64_t page_bytes = (*backend)->KvPageBytes(shape);
  const int64_t num_pages = (kMaxTokens + kPageTokens - 1) / kPageTokens;
  Buffer pages = Buffer::AllocateHost(spec.num_layers * num_pages * page_bytes).value();
  std::vector<KvLayer> kv;
  kv.reserve(static_cast<size_t>(spec.num_layers));
  for (int64_t layer = 0; layer < spec.num_layers; ++layer) {
    kv.push_back({.pages = pages.data() + layer * num_pages * page_bytes,
                  .page_bytes = page_bytes,
                  .num_pages = num_pages,
                  .shape = shape});
  }
  std::vector<int32_t> page_table(static_cast<size_t>(num_pages));
  std::iota(page_table.begin(), page_table.end(), 0);
  std::vector<int32_t> ids(static_cast<size_t>(tokens));
  std::iota(ids.begin(), ids.end(), 0);
  const Segment segments[] = {{.num_rows = tokens, .page_table = page_table}};
  const int32_t rows[] = {static_cast<int32_t>(tokens - 1)};
  std::vector<float> logits(static_cast<size_t>(spec.vocab_size));
  Result<std::unique_ptr<Model>> model =
      MakeModel(spec, backend->get(),
                {.max_tokens = kMaxTokens, .max_logit_rows = 4, .max_context = kMaxTokens});
  EXPECT_TRUE(model.has_value()) << model.error().message();

  const int64_t before = num_allocations;
  const Status ran =
      (*model)->Forward({.token_ids = ids, .positions = ids, .segments = segments}, weights, kv);
  const Status headed = (*model)->Logits(rows, weights, logits);
  const int64_t counted = num_allocations - before;
  EXPECT_TRUE(ran.ok()) << ran.message();
  EXPECT_TRUE(headed.ok()) << headed.message();
  return counted;
}

std::vector<NamedTestFormat> Formats() {
  std::vector<NamedTestFormat> formats(std::begin(kTestQuantizedFormats),
                                       std::end(kTestQuantizedFormats));
  formats.push_back({"Bf16", kTestBf16});
  formats.push_back({"Fp8", kTestFp8});
  formats.push_back({"Nvfp4Batch", {WeightFormat::kNvfp4, InputForm::kNvfp4Batch}});
  formats.push_back({"Fp8Cache", {.kv_dtype = DType::kF8E4m3}});
  formats.push_back({"Mxfp8Fp8Cache", {WeightFormat::kMxfp8, InputForm::kMxfp8, DType::kF8E4m3}});
  return formats;
}

TEST(ModelAllocations, AreAllMadeWhenAModelIsBuilt) {
#if !OCTAVO_COUNTS_ALLOCATIONS
  GTEST_SKIP() << "the sanitizer's malloc is not counted";
#endif
  const int64_t before = num_allocations;
  const Buffer buffer = Buffer::AllocateHost(64).value();
  ASSERT_GT(num_allocations - before, 0) << "the counter does not count";
  for (const char* architecture :
       {"Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "DeepseekV3ForCausalLM", "LlamaForCausalLM"}) {
    for (const auto& [name, format] : Formats()) {
      const ModelSpec spec = RandomSpec(architecture);
      EXPECT_EQ(CountPass(spec, format, kMaxTokens), 0) << architecture << " " << name;
      EXPECT_EQ(CountPass(spec, format, 1), 0) << architecture << " " << name;
    }
  }
}

}  // namespace
}  // namespace octavo
