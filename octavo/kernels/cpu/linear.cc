// Linear layers on panels: which thread computes what.
//
// Columns are cut into groups of panels; groups of all weights, in order, are cut into one
// contiguous range a thread by what they cost. A thread takes its own groups in order and then what
// is left of the others': on a machine that is not its own, threads that start together do not end
// together. Who computes a group changes no bit of it. A group's rows are computed in chunks
// (linear_sums.cc).

#include <algorithm>
#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/linear_internal.h"
#include "octavo/kernels/input_ranges.h"
#include "octavo/kernels/linear_input.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {
namespace {

// Keeps rows of power-of-two widths from sharing cache sets.
constexpr int64_t kStridePadElems = 32;

int64_t InputStride(int64_t width) { return RoundUp(width, kTileDepth) + kStridePadElems; }

// Up to this many rows the weights' way from memory is all that counts.
constexpr int64_t kFewRows = 6;

// What a panel costs for this many rows, in rows: reading it counts as some.
int64_t PanelCost(int64_t num_rows) { return num_rows + 8; }

// Calls body(g, part, num_rows) for every group and part of the pass that has rows.
template <typename Problem, typename Body>
void ForWeights(const Problem& problem, Body body) {
  for (size_t g = 0; g + 1 < problem.offsets.size(); ++g) {
    const int64_t num_rows = problem.offsets[g + 1] - problem.offsets[g];
    for (size_t i = 0; num_rows > 0 && i < problem.num_pass; ++i) {
      body(g, problem.parts[problem.pass[i]], num_rows);
    }
  }
}

}  // namespace

LinearOp::LinearOp(const CpuPath& path, ThreadPool* pool)
    : path_(path),
      pool_(pool),
      kernel_(&path.matmul),
      workers_(static_cast<size_t>(pool->num_threads())),
      cursors_(workers_.size()) {}

Status LinearOp::EnsureInputs(int64_t tokens, int64_t width) {
  // An expert may begin at any row, and matmul takes whole row steps from there.
  const int64_t rows = tokens + RowStep() - 1;
  RETURN_IF_ERROR(input_.Ensure(rows * InputStride(width) * ElemBytes()));
  RETURN_IF_ERROR(scales_.Ensure(rows * NumFp8Blocks(width) * kFloat));
  return rows_.Ensure(rows * int64_t{sizeof(InputRow)});
}

Status LinearOp::Reserve(int64_t max_tokens, int64_t max_width, int64_t max_grouped_rows) {
  const int64_t gathered = std::min(kChunkRows, RoundUp(max_grouped_rows, RowStep()));
  for (WorkerScratch& worker : workers_) {
    RETURN_IF_ERROR(worker.sums.Ensure(kChunkRows * kGroupCols * kFloat));
    RETURN_IF_ERROR(worker.decoded.Ensure(kMaxDepthBlock * kGroupCols * int64_t{sizeof(uint16_t)}));
    RETURN_IF_ERROR(worker.products.Ensure(kScaleRows * kGroupCols * kFloat));
    RETURN_IF_ERROR(worker.inputs.Ensure(gathered * InputStride(max_width) * ElemBytes()));
    RETURN_IF_ERROR(worker.scales.Ensure(gathered * NumFp8Blocks(max_width) * kFloat));
    RETURN_IF_ERROR(worker.rows.Ensure(gathered * int64_t{sizeof(InputRow)}));
  }
  return EnsureInputs(max_tokens, max_width);
}

// Calls body(t, worker) for every row of x, by the pool when there is enough to do.
template <typename Body>
void LinearOp::ForRows(const Activations& x, Body body) {
  constexpr int64_t kParallelElems = 16384;  // Below, waking the pool costs more than the rows.
  const auto range = [&](int64_t begin, int64_t end, int worker) {
    for (int64_t t = begin; t < end; ++t) {
      body(t, worker);
    }
  };
  if (x.rows * x.cols < kParallelElems) {
    range(0, x.rows, 0);
  } else {
    pool_->ParallelFor(x.rows, range);
  }
}

// Makes the rows of x, if that is left to this op, and quantizes them unless that is left to the
// experts.
void LinearOp::LoadInput(Problem* problem, InputForm form, float scale) {
  const Activations& x = problem->x;
  const int64_t num_blocks = NumFp8Blocks(x.cols);
  const auto make_row = [&](int64_t t) {
    if (problem->make_row.has_value()) {
      (*problem->make_row)(t);
    }
  };
  auto* rows = reinterpret_cast<InputRow*>(rows_.data());
  if (problem->is_quantized_by_group || form == InputForm::kNvfp4Batch) {
    ForRows(x, [&](int64_t t, int /*worker*/) { make_row(t); });
    problem->make_row.reset();
  }
  if (problem->is_quantized_by_group) {
    return;
  }
  if (form == InputForm::kNvfp4Batch) {
    ForRows(x, [&](int64_t t, int /*worker*/) {
      rows[t].factor = path_.inputs.finite_amax(Bf16Row(x, t), x.cols);
    });
    scale = 0.0F;
    for (int64_t t = 0; t < x.rows; ++t) {
      scale = rows[t].factor > scale ? rows[t].factor : scale;  // Not for NaN.
    }
  }
  ForRows(x, [&](int64_t t, int worker) {
    make_row(t);
    rows[t] = path_.QuantizeA(*kernel_, {.form = form,
                                         .scale = scale,
                                         .x = Bf16Row(x, t),
                                         .cols = x.cols,
                                         .a = input_.data() + t * a_stride_ * kernel_->a_elem_bytes,
                                         .padded = RoundUp(x.cols, kTileDepth),
                                         .group_scales = scales_.floats() + t * num_blocks,
                                         .ranges = &workers_[static_cast<size_t>(worker)].ranges});
    if (form != InputForm::kFp8Group) {
      std::fill_n(scales_.floats() + t * num_blocks, num_blocks, 1.0F);
    }
  });
  problem->make_row.reset();
}

// The chunk's rows in the worker's scratch: copied, or quantized where every expert has its scale.
void LinearOp::Gather(const Problem& problem, const Chunk& chunk, WorkerScratch* scratch) const {
  const int64_t row_bytes = a_stride_ * kernel_->a_elem_bytes;
  const int64_t num_blocks = NumFp8Blocks(problem.x.cols);
  auto* rows = reinterpret_cast<InputRow*>(scratch->rows.data());
  const auto* all_rows = reinterpret_cast<const InputRow*>(rows_.data());
  float* scales = scratch->scales.floats();
  // Every group of panels quantizes the rows anew; they count with the first.
  InputRanges* ranges = chunk.first_panel == 0 ? &scratch->ranges : nullptr;
  for (int64_t r = 0; r < chunk.num_rows; ++r) {
    const int64_t t = problem.source_rows[static_cast<size_t>(chunk.first_row + r)];
    std::byte* a = scratch->inputs.data() + r * row_bytes;
    if (problem.is_quantized_by_group) {
      rows[r] = path_.QuantizeA(*kernel_, {.form = problem.form,
                                           .scale = chunk.weight->input_scale,
                                           .x = Bf16Row(problem.x, t),
                                           .cols = problem.x.cols,
                                           .a = a,
                                           .padded = RoundUp(problem.x.cols, kTileDepth),
                                           .ranges = ranges});
      continue;
    }
    std::memcpy(a, input_.data() + t * row_bytes, static_cast<size_t>(row_bytes));
    std::copy_n(scales_.floats() + t * num_blocks, num_blocks, scales + r * num_blocks);
    rows[r] = all_rows[t];
  }
}

void LinearOp::PlaceInput(const Problem& problem, Chunk* chunk, WorkerScratch* scratch) const {
  const auto* all_rows = reinterpret_cast<const InputRow*>(rows_.data());
  const bool is_one = chunk->num_rows == 1 && !problem.is_quantized_by_group;
  if (problem.source_rows.empty() || is_one) {
    const int64_t row = problem.source_rows.empty()
                            ? chunk->first_row
                            : problem.source_rows[static_cast<size_t>(chunk->first_row)];
    chunk->a = input_.data() + row * a_stride_ * kernel_->a_elem_bytes;
    chunk->group_scales = scales_.floats() + row * NumFp8Blocks(problem.x.cols);
    chunk->rows = all_rows + row;
    return;
  }
  // Parts share what was gathered, unless each has its own scale.
  const bool is_there = !problem.is_quantized_by_group && scratch->gathered_g == chunk->g &&
                        scratch->gathered_row == chunk->first_row;
  if (!is_there) {
    Gather(problem, *chunk, scratch);
    scratch->gathered_g = chunk->g;
    scratch->gathered_row = chunk->first_row;
  }
  chunk->a = scratch->inputs.data();
  chunk->group_scales = scratch->scales.floats();
  chunk->rows = reinterpret_cast<const InputRow*>(scratch->rows.data());
}

// All rows of a group of panels, in chunks of nearly equal size.
void LinearOp::RunGroup(const Problem& problem, Chunk chunk, WorkerScratch* scratch) const {
  const int64_t begin = problem.offsets[static_cast<size_t>(chunk.g)];
  const int64_t end = problem.offsets[static_cast<size_t>(chunk.g) + 1];
  const int64_t num_chunks = (end - begin + kChunkRows - 1) / kChunkRows;
  const int64_t chunk_rows =
      std::min(kChunkRows, RoundUp((end - begin + num_chunks - 1) / num_chunks, kScaleRows));
  for (int64_t row = begin; row < end; row += chunk_rows) {
    chunk.first_row = row;
    chunk.num_rows = std::min(chunk_rows, end - row);
    PlaceInput(problem, &chunk, scratch);
    Sum(chunk, scratch);
    StoreSums(chunk, scratch);
  }
}

// How the columns of a pass are cut.
struct LinearOp::Cut {
  int64_t group_panels = 0;
  int64_t total_cost = 0;
};

LinearOp::Cut LinearOp::CutPanels(const Problem& problem) const {
  Cut cut{.group_panels = kMaxGroupPanels};
  int64_t num_panels = 0;
  int64_t most_rows = 0;
  ForWeights(problem, [&](size_t, const Part& part, int64_t num_rows) {
    num_panels += NumPanels(part.First().rows);
    cut.total_cost += NumPanels(part.First().rows) * PanelCost(num_rows);
    most_rows = std::max(most_rows, num_rows);
  });
  // Large groups reuse inputs, small ones balance many threads.
  const int64_t groups_a_thread = most_rows <= kFewRows ? 16 : 4;
  while (cut.group_panels > 1 &&
         num_panels / cut.group_panels < groups_a_thread * pool_->num_threads()) {
    cut.group_panels /= 2;
  }
  return cut;
}

// The worker's own range, then what is left of those behind and before it.
void LinearOp::RunPanels(const Problem& problem, const Cut& cut, int worker) {
  WorkerScratch* scratch = &workers_[static_cast<size_t>(worker)];
  scratch->gathered_g = -1;
  const MatMulScope scope(*kernel_);
  RunRanges(problem, cut, worker, worker + 1, scratch);
  RunRanges(problem, cut, worker + 1, pool_->num_threads(), scratch);
  RunRanges(problem, cut, 0, worker, scratch);
}

// The groups of the ranges [first, end) that nobody has taken. A group belongs to the range that
// its cost, summed over all before it, falls into; those of a range are taken in order.
void LinearOp::RunRanges(const Problem& problem, const Cut& cut, int first, int end,
                         WorkerScratch* scratch) {
  const int64_t num_threads = pool_->num_threads();
  int64_t cost = 0;
  int64_t range = 0;
  int64_t in_range = 0;  // Number of the group in its range.
  int64_t taken = -1;    // The group of the range that is ours to run, once it comes.
  ForWeights(problem, [&](size_t g, const Part& part, int64_t num_rows) {
    const int64_t panels = NumPanels(part.First().rows);
    for (int64_t p = 0; p < panels && range < end; p += cut.group_panels) {
      const int64_t size = std::min(cut.group_panels, panels - p);
      while (cost >= cut.total_cost * (range + 1) / num_threads) {
        ++range;
        in_range = 0;
        taken = -1;
      }
      cost += size * PanelCost(num_rows);
      if (range < first || range >= end) {
        continue;
      }
      std::atomic<int64_t>& num_taken = cursors_[static_cast<size_t>(range)].num_taken;
      if (taken < in_range && num_taken.load(std::memory_order_relaxed) <= in_range) {
        taken = num_taken.fetch_add(1, std::memory_order_relaxed);
      }
      if (taken == in_range) {
        RunGroup(problem,
                 {.weight = part.weights[g],
                  .part = &part,
                  .g = static_cast<int64_t>(g),
                  .first_panel = p,
                  .num_panels = size},
                 scratch);
      }
      ++in_range;
    }
  });
}

// Whether the wide kernel takes a pass: it must have rows enough, unless it also reads the weights
// of few rows from their codes.
bool LinearOp::IsWide(const Problem& problem) const {
  const auto pass = std::span(problem.pass).first(problem.num_pass);
  const bool takes_few = std::ranges::all_of(pass, [&](size_t i) {
    const PanelCode code = PanelCodeOf(problem.parts[i].First().format);
    return code == PanelCode::kBf16 || (path_.wide.stream != nullptr && code != PanelCode::kNvfp4);
  });
  int64_t num_groups = 0;
  for (size_t g = 0; g + 1 < problem.offsets.size(); ++g) {
    num_groups += problem.offsets[g] < problem.offsets[g + 1] ? 1 : 0;
  }
  return takes_few || problem.offsets.back() > num_groups * path_.panels.stream_rows;
}

// Whether all groups of a part quantize their input with one scale.
bool LinearOp::HasOneInputScale(const Part& part) {
  return std::ranges::all_of(part.weights, [&](const PackedMatrix* weight) {
    return weight->input_scale == part.First().input_scale;
  });
}

// Passes over the parts: one for each form of the input (and scale, where that is the tensor's).
Status LinearOp::RunParts(Problem* problem) {
  const auto parts = std::span(problem->parts).first(problem->num_parts);
  for (const Part& part : parts) {
    if (part.First().format == WeightFormat::kBf16 && part.First().rows == 1) {
      return Unsupported("linear layer with one output: its weight [1, {}] is kept as a vector",
                         part.First().cols);
    }
  }
  a_stride_ = InputStride(problem->x.cols);
  for (const Part& part : parts) {
    if (part.is_done) {
      continue;
    }
    const PackedMatrix& first = part.First();
    const bool is_static = IsStaticInput(first.input);
    problem->form = first.input;
    problem->is_quantized_by_group = is_static && !HasOneInputScale(part);
    problem->num_pass = 0;
    for (size_t i = 0; i < parts.size(); ++i) {
      const PackedMatrix& other = parts[i].First();
      const bool has_one_scale = HasOneInputScale(parts[i]);
      const bool has_same_scale = problem->is_quantized_by_group
                                      ? !has_one_scale
                                      : has_one_scale && other.input_scale == first.input_scale;
      if (!parts[i].is_done && other.input == first.input && (!is_static || has_same_scale)) {
        problem->pass[problem->num_pass++] = i;
      }
    }
    for (size_t i = 0; i < problem->num_pass; ++i) {
      parts[problem->pass[i]].is_done = true;
    }
    kernel_ = IsWide(*problem) ? &path_.wide : &path_.matmul;
    LoadInput(problem, first.input, first.input_scale);
    const Cut cut = CutPanels(*problem);
    for (Cursor& cursor : cursors_) {
      cursor.num_taken.store(0, std::memory_order_relaxed);
    }
    pool_->Run([&](int worker) { RunPanels(*problem, cut, worker); });
  }
  return OkStatus();
}

InputRanges LinearOp::input_ranges() const {
  InputRanges ranges;
  for (const WorkerScratch& worker : workers_) {
    ranges += worker.ranges;
  }
  return ranges;
}

void LinearOp::MakeRow(const RmsNormArgs& norm, int64_t t) const {
  path_.rows.rms_norm(Bf16Row(norm.x, t),
                      reinterpret_cast<const uint16_t*>(norm.weight->codes.data()), norm.x.cols,
                      norm.eps, Bf16Row(norm.y, t));
}

void LinearOp::MakeRow(const SiluMulArgs& silu_mul, int64_t t) const {
  path_.rows.silu_mul(Bf16Row(silu_mul.gate, t), Bf16Row(silu_mul.up, t), silu_mul.y.cols,
                      Bf16Row(silu_mul.y, t));
}

Status LinearOp::Run(const LinearArgs& args) {
  RETURN_IF_ERROR(Reserve(args.x.rows, args.x.cols, 0));
  const std::array<int32_t, 2> offsets = {0, static_cast<int32_t>(args.x.rows)};
  Problem problem;
  problem.x = args.x;
  problem.offsets = offsets;
  problem.num_parts = args.parts.size();
  for (size_t i = 0; i < args.parts.size(); ++i) {
    const LinearPart& part = args.parts[i];
    problem.parts[i] = {.weights = {&part.weight, 1}, .y = part.y, .bias = part.bias};
  }
  const auto norm = [&](int64_t t) { MakeRow(*args.norm, t); };
  const auto silu_mul = [&](int64_t t) { MakeRow(*args.silu_mul, t); };
  if (args.norm.has_value()) {
    problem.make_row.emplace(norm);
  } else if (args.silu_mul.has_value()) {
    problem.make_row.emplace(silu_mul);
  }
  return RunParts(&problem);
}

Status LinearOp::RunGrouped(const GroupedLinearArgs& args) {
  RETURN_IF_ERROR(Reserve(args.x.rows, args.x.cols, args.offsets.back()));
  Problem problem;
  problem.x = args.x;
  problem.source_rows = args.source_rows;
  problem.offsets = args.offsets;
  problem.num_parts = args.parts.size();
  for (size_t i = 0; i < args.parts.size(); ++i) {
    problem.parts[i] = {.weights = args.parts[i].weights, .y = args.parts[i].y, .bias = nullptr};
  }
  const auto silu_mul = [&](int64_t t) { MakeRow(*args.silu_mul, t); };
  if (args.silu_mul.has_value()) {
    problem.make_row.emplace(silu_mul);
  }
  return RunParts(&problem);
}

}  // namespace octavo::cpu
