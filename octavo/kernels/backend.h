#pragma once
// Backend: the one interface between models and hardware, a virtual call per op.

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/ops.h"

namespace octavo {

// One thread at a time calls ops (the engine's); Pack, UnpackCodes and UnpackScales are const and
// thread-safe. Ops return kUnsupported, naming what, when a backend does not have a case; all
// other argument errors are our bugs and CHECKed (check_args.h). No op allocates once Reserve has
// been called with sizes that cover it.
class Backend {
 public:
  virtual ~Backend() = default;

  // Such as "reference/serving", "cpu/avx512": for logs, reports and /server_info.
  virtual std::string_view name() const = 0;
  // The recipe id of the arithmetic, such as "serving-1": equal ids mean equal bits.
  virtual std::string_view recipe() const = 0;
  // kBf16, or kF32 in the reference's fp32 recipe.
  virtual DType activation_dtype() const = 0;
  virtual ThreadPool& pool() = 0;
  // Of all ops so far. Called between ops, by the thread that calls them.
  virtual InputRanges input_ranges() const { return {}; }

  // Largest sizes that ops will be called with: tokens of a batch, context length, width of any
  // linear input. Allocates scratch.
  struct Limits {
    int64_t max_tokens = 0;
    int64_t max_context = 0;
    int64_t max_width = 0;
    int64_t max_heads = 0;
    int64_t max_head_dim = 0;      // Of K and V.
    int64_t max_grouped_rows = 0;  // Of GroupedLinear: tokens * top_k.
  };
  virtual Status Reserve(const Limits& limits) = 0;

  // packed = Pack(canonical), a pure function; `packed` is replaced. Unpack gives back the same
  // canonical bytes: `codes` and `scales` have the canonical sizes. Rows can be unpacked in bands:
  // [first_row, first_row + num_rows) of codes.
  // Errors: kInvalidArgument for spans of another size, and for scales that matrix.h excludes;
  // kUnsupported for an input form that does not go with the format, and for scales of mxfp8 that
  // are not exact in BF16.
  virtual Status Pack(const CanonicalMatrix& canonical, PackedMatrix* packed) const = 0;
  virtual Status UnpackCodes(const PackedMatrix& packed, int64_t first_row, int64_t num_rows,
                             std::span<std::byte> codes) const = 0;
  virtual Status UnpackScales(const PackedMatrix& packed, std::span<std::byte> scales) const = 0;

  // Bytes of one page of one layer.
  virtual int64_t KvPageBytes(const KvShape& shape) const = 0;

  virtual Status Embed(const EmbedArgs& args) = 0;
  virtual Status RmsNorm(const RmsNormArgs& args) = 0;
  virtual Status Add(const AddArgs& args) = 0;
  virtual Status Linear(const LinearArgs& args) = 0;
  virtual Status Rope(const RopeArgs& args) = 0;
  virtual Status SiluMul(const SiluMulArgs& args) = 0;
  virtual Status GatherRows(const GatherRowsArgs& args) = 0;
  virtual Status Copy(const CopyArgs& args) = 0;
  virtual Status GroupedLinear(const GroupedLinearArgs& args) = 0;
  virtual Status Route(const RouteArgs& args) = 0;
  virtual Status SortByExpert(const SortByExpertArgs& args) = 0;
  virtual Status Combine(const CombineArgs& args) = 0;
  virtual Status KvStore(const KvStoreArgs& args) = 0;
  virtual Status Attention(const AttentionArgs& args) = 0;
  virtual Status SoftmaxStats(const SoftmaxStatsArgs& args) = 0;
};

// kernels/reference: scalar loops, every op, both recipes.
enum class Recipe {
  kFp32,     // Activations are never rounded: for golden logits.
  kServing,  // Every rounding and the summation order of ops.h: the oracle of every backend.
};
std::unique_ptr<Backend> MakeReferenceBackend(Recipe recipe, int num_threads);

// kernels/cpu: vector paths, chosen at run time. All give the bits of Recipe::kServing.
enum class Isa { kAmx, kAvx512, kAvx2, kScalar };
std::string_view IsaName(Isa isa);  // "amx", "avx512", "avx2", "scalar"
std::optional<Isa> ParseIsa(std::string_view name);
// The best path of this processor that the build has.
Isa BestIsa();
// kScalar is the reference backend with Recipe::kServing.
// Errors: kUnsupported when this processor (or kernel, for AMX) or build lacks `isa`.
Result<std::unique_ptr<Backend>> MakeCpuBackend(Isa isa, int num_threads);

}  // namespace octavo
