#pragma once
// A path: one matmul kernel with the row kernels that feed it. And the scratch memory of an op.

#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/float_env.h"
#include "octavo/base/thread_pool.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/input_ranges.h"

namespace octavo::cpu {

// x[i] becomes Exp(x[i] - max) as A elements, zeros from n to `padded`.
struct ExpArgs {
  float max = 0.0F;
  int64_t n = 0;
  int64_t padded = 0;  // A multiple of 32.
  float* x = nullptr;
};

struct CpuPath {
  std::string_view name;  // "cpu/avx512".
  MatMulKernel matmul;
  // For many rows, where the processor has something faster; else the same.
  MatMulKernel wide;
  RowKernels rows;
  PanelKernels panels;
  InputKernels inputs;
  KvKernels kv;
  LayoutKernels layout;

  // The A elements of x for `kernel`, one of the two, and zeros up to `padded`, a multiple of 32.
  void LoadA(const MatMulKernel& kernel, std::span<const uint16_t> x, int64_t padded,
             std::byte* a) const {
    const auto n = static_cast<int64_t>(x.size());
    if (kernel.a_elem_bytes == 4) {
      rows.load_a32(x.data(), n, reinterpret_cast<float*>(a));
    } else {
      std::memcpy(a, x.data(), x.size_bytes());
    }
    std::memset(a + n * kernel.a_elem_bytes, 0,
                static_cast<size_t>((padded - n) * kernel.a_elem_bytes));
    OrderA(kernel, a, padded);
  }
  // One row of a linear layer's input.
  InputRow QuantizeA(const MatMulKernel& kernel, const InputRowArgs& args) const {
    const InputRow row =
        kernel.a_elem_bytes == 4 ? inputs.quantize_a32(args) : inputs.quantize_a16(args);
    OrderA(kernel, args.a, args.padded);
    return row;
  }
  float ExpSumToA(const MatMulKernel& kernel, const ExpArgs& args) const {
    const float sum = kernel.a_elem_bytes == 4
                          ? rows.exp_sum_a32(args.max, args.n, args.padded, args.x)
                          : rows.exp_sum_a16(args.max, args.n, args.padded, args.x);
    OrderA(kernel, reinterpret_cast<std::byte*>(args.x), args.padded);
    return sum;
  }

 private:
  static void OrderA(const MatMulKernel& kernel, std::byte* a, int64_t n) {
    if (kernel.order_a != nullptr) {
      kernel.order_a(reinterpret_cast<uint16_t*>(a), n);
    }
  }
};

// Lives on a thread's stack while it runs matmuls of one op.
class MatMulScope {
 public:
  explicit MatMulScope(const MatMulKernel& kernel) : end_(kernel.end) { kernel.begin(); }
  ~MatMulScope() { end_(); }
  MatMulScope(const MatMulScope&) = delete;
  MatMulScope& operator=(const MatMulScope&) = delete;

 private:
  void (*end_)();
};

// Memory that only grows; contents do not survive growth.
class Scratch {
 public:
  // At least `num_bytes`, 64-byte aligned. Errors: kExhausted.
  Status Ensure(int64_t num_bytes) {
    if (buffer_.num_bytes() >= num_bytes) {
      return OkStatus();
    }
    ASSIGN_OR_RETURN(buffer_, Buffer::AllocateHost(num_bytes));
    return OkStatus();
  }
  // Const: the scratch is a place, what lies there is not part of its owner's state.
  std::byte* data() const { return const_cast<std::byte*>(buffer_.data()); }
  float* floats() const { return reinterpret_cast<float*>(data()); }

 private:
  Buffer buffer_;
};

// A BF16 row of an activation matrix.
inline uint16_t* Bf16Row(const Activations& x, int64_t row) {
  DCHECK(x.dtype == DType::kBf16);
  return reinterpret_cast<uint16_t*>(x.data) + row * x.stride;
}

// --- pack.cc
// --------------------------------------------------------------------------------------

// Canonical to panels and back (layout.h). A BF16 matrix of one row (a norm weight) stays as it is.
Status PackPanels(const LayoutKernels& kernels, const CanonicalMatrix& canonical,
                  PackedMatrix* packed);
void UnpackPanels(const LayoutKernels& kernels, const PackedMatrix& packed, int64_t first_row,
                  int64_t num_rows, std::span<std::byte> codes);
void UnpackPanelScales(const LayoutKernels& kernels, const PackedMatrix& packed,
                       std::span<std::byte> scales);
// One row of a BF16 matrix: y [cols].
void UnpackRow(const PackedMatrix& packed, int64_t row, uint16_t* y);

// --- linear.cc
// ------------------------------------------------------------------------------------

// LinearArgs and GroupedLinearArgs of ops.h. One thread.
class LinearOp {
 public:
  LinearOp(const CpuPath& path, ThreadPool* pool);
  // Of inputs of up to max_tokens rows; max_grouped_rows: rows of a grouped layer's outputs.
  Status Reserve(int64_t max_tokens, int64_t max_width, int64_t max_grouped_rows);
  Status Run(const LinearArgs& args);
  Status RunGrouped(const GroupedLinearArgs& args);
  InputRanges input_ranges() const;

 private:
  struct Part;
  struct Problem;
  struct Chunk;
  using StreamKernel = void (*)(PanelCode code, const StreamArgs& args);
  struct WorkerScratch {
    Scratch sums;             // C or acc: [chunk rows, group columns].
    Scratch decoded;          // Pairs of a group's panels over a block of depth.
    Scratch products;         // P of some rows.
    Scratch inputs;           // A elements of a chunk's rows, where they must be gathered.
    Scratch scales;           // Their group scales.
    Scratch rows;             // Their InputRows.
    int64_t gathered_g = -1;  // What `inputs` holds.
    int64_t gathered_row = -1;
    InputRanges ranges;  // Of the rows that the worker quantized.
  };

  // How many groups of panels of a worker's range have been taken.
  struct alignas(64) Cursor {
    std::atomic<int64_t> num_taken{0};
  };
  struct Cut;

  int64_t ElemBytes() const { return std::max(path_.matmul.a_elem_bytes, path_.wide.a_elem_bytes); }
  int64_t RowStep() const { return std::max(path_.matmul.row_step, path_.wide.row_step); }
  Status EnsureInputs(int64_t tokens, int64_t width);
  bool IsWide(const Problem& problem) const;
  static bool HasOneInputScale(const Part& part);
  Status RunParts(Problem* problem);
  template <typename Body>
  void ForRows(const Activations& x, Body body);
  void LoadInput(Problem* problem, InputForm form, float scale);
  void MakeRow(const RmsNormArgs& norm, int64_t t) const;
  void MakeRow(const SiluMulArgs& silu_mul, int64_t t) const;
  Cut CutPanels(const Problem& problem) const;
  void RunPanels(const Problem& problem, const Cut& cut, int worker);
  void RunRanges(const Problem& problem, const Cut& cut, int first, int end,
                 WorkerScratch* scratch);
  void RunGroup(const Problem& problem, Chunk chunk, WorkerScratch* scratch) const;
  void PlaceInput(const Problem& problem, Chunk* chunk, WorkerScratch* scratch) const;
  void Gather(const Problem& problem, const Chunk& chunk, WorkerScratch* scratch) const;
  void Sum(const Chunk& chunk, WorkerScratch* scratch) const;
  void SumBf16(const Chunk& chunk, WorkerScratch* scratch) const;
  StreamKernel StreamOf(const Chunk& chunk) const;
  bool HasModerateScales(const Chunk& chunk) const;
  void StreamSum(const Chunk& chunk, StreamKernel stream, WorkerScratch* scratch) const;
  void SumDecoded(const Chunk& chunk, WorkerScratch* scratch) const;
  void SumScaledBlocks(const Chunk& chunk, WorkerScratch* scratch) const;
  static const uint8_t* NextCodes(const Chunk& chunk, int64_t panel, int64_t end_tile);
  template <typename Multiply>
  void ForDecoded(const Chunk& chunk, int64_t first_tile, MatMulArgs args, WorkerScratch* scratch,
                  Multiply multiply) const;
  void AddScaledBlocks(const MatMulArgs& args, WorkerScratch* scratch) const;
  void StoreSums(const Chunk& chunk, WorkerScratch* scratch) const;

  const CpuPath& path_;
  ThreadPool* pool_;
  const MatMulKernel* kernel_;  // Of the pass.
  int64_t a_stride_ = 0;        // Elements from row to row of the inputs below.
  Scratch input_;               // A elements of x, quantized.
  Scratch scales_;              // FP32 [tokens, blocks].
  Scratch rows_;                // InputRow [tokens].
  std::vector<WorkerScratch> workers_;
  std::vector<Cursor> cursors_;  // One a worker.
};

// --- cpu_backend.cc
// -------------------------------------------------------------------------------

// A backend over any path; MakeCpuBackend (backend.h) picks one of this processor's.
std::unique_ptr<Backend> MakeBackendOfPath(const CpuPath& path, int num_threads);

}  // namespace octavo::cpu
