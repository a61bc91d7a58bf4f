// Method: every number of rows from 1 to 257 (of a linear layer, and of an expert beside another)
// through every path, format and form of input, against one pass of the reference's serving recipe
// over 257 rows, bit for bit. Rows are independent: a run over the first of them must give the
// first of its outputs. So are columns: a weight's first rows are a weight whose outputs are known.
// Few rows, which kernels of their own take, run over groups of every number of panels. MXFP8 also
// with rows and weights whose scales may not wait for a tile's sum. The depth is off FP8's blocks.

#include <gtest/gtest.h>

#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <numeric>
#include <span>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/cpu/linear_for_test.h"
#include "octavo/kernels/cpu/test_paths.h"
#include "octavo/kernels/matrix.h"
#include "octavo/kernels/ops.h"
#include "octavo/kernels/test_tensors.h"

namespace octavo {
namespace {

using cpu::kPanelCols;

constexpr int64_t kMaxRows = 257;
constexpr int64_t kIn = 160;  // 128 and a short block of FP8; five groups of MXFP8.

struct PathBackend {
  std::string name;
  std::unique_ptr<Backend> backend;
  bool is_model = false;  // The software model of the tiles, which is slow.
};

// Of one thread: how columns are shared out is tested in linear_test.cc.
std::vector<PathBackend> AllBackends() {
  std::vector<PathBackend> backends;
  for (const PathCase& path : AllPaths()) {
    backends.push_back({path.name, cpu::MakeBackendOfPath(path.path, 1), path.name == "AmxModel"});
  }
  return backends;
}

// Row 0 has the largest magnitude of all, so that the scale of kNvfp4Batch is the same for every
// number of rows.
TestActivations Inputs(int64_t num_rows) {
  TestActivations x(DType::kBf16, num_rows, kIn);
  x.Fill(5);
  x.Set(0, 3, 11.0F);
  return x;
}

// The linear layer of the first `num_rows` rows of x.
TestActivations RunFirst(Backend* backend, const PackedMatrix& weight, const TestActivations& x,
                         int64_t num_rows) {
  TestActivations y(DType::kF32, num_rows, weight.rows);
  Activations first = x.view();
  first.rows = num_rows;
  const LinearPart part{&weight, y.view()};
  EXPECT_TRUE(backend->Linear({first, {&part, 1}}).ok());
  return y;
}

// The first `out` outputs of a weight.
PackedMatrix PackFirst(const Backend& backend, const CanonicalMatrix& whole, int64_t out) {
  CanonicalMatrix first = whole;
  first.rows = out;
  first.codes = whole.codes.first(whole.codes.size() / static_cast<size_t>(whole.rows) *
                                  static_cast<size_t>(out));
  if (whole.format != WeightFormat::kBf16) {
    first.scales =
        whole.scales.first(static_cast<size_t>(ScaleBytes(whole.format, out, whole.cols)));
  }
  PackedMatrix packed;
  const Status status = backend.Pack(first, &packed);
  EXPECT_TRUE(status.ok()) << status.message();
  return packed;
}

TEST(LinearRows, EqualTheReferenceForEveryNumberOfThem) {
  constexpr int64_t kOut = 45;
  const auto reference = MakeReferenceBackend(Recipe::kServing, 2);
  const std::vector<PathBackend> backends = AllBackends();
  const TestActivations x = Inputs(kMaxRows);
  for (const FormCase& form : kForms) {
    const TestMatrix weight(form.format, form.input, kOut, kIn, 11);
    const TestActivations expected =
        RunLinear(reference.get(), weight.PackFor(*reference), x, DType::kF32);
    for (const PathBackend& path : backends) {
      SCOPED_TRACE(fmt::format("{} on {}", Describe(form), path.name));
      const PackedMatrix packed = weight.PackFor(*path.backend);
      for (int64_t rows = 1; rows <= (path.is_model ? 40 : kMaxRows); ++rows) {
        ASSERT_TRUE(Begins(expected, RunFirst(path.backend.get(), packed, x, rows)))
            << rows << " rows";
      }
    }
  }
}

// --- Few rows ------------------------------------------------------------------------------------

// More rows than any kernel reads codes for.
constexpr int64_t kFewRows = 26;

// Weights of some panels times every number of rows from `first_rows` to `last_rows`.
struct Width {
  int64_t panels;
  int64_t first_rows = 1;
  int64_t last_rows = kFewRows;
};

struct FewRowsCase {
  FormCase form;
  // MXFP8: rows 4, 9, 14, ... are far too large or too small for the scales of weights to wait.
  bool has_immoderate_rows = false;
  // Every fourth panel has some scales that may not wait.
  bool has_immoderate_weights = false;
};

std::vector<FewRowsCase> FewRowsCases() {
  std::vector<FewRowsCase> cases;
  for (const FormCase& form : kForms) {
    cases.push_back({form});
    if (form.input == InputForm::kMxfp8) {
      cases.push_back({.form = form, .has_immoderate_rows = true});
      cases.push_back({.form = form, .has_immoderate_weights = true});
    }
  }
  return cases;
}

TestActivations InputsOf(const FewRowsCase& c) {
  TestActivations x = Inputs(kFewRows);
  for (int64_t r = 4; c.has_immoderate_rows && r < kFewRows; r += 5) {
    for (int64_t k = 0; k < kIn; ++k) {
      x.Set(r, k, std::ldexp(x.At(r, k), r % 2 == 0 ? 70 : -70));
    }
  }
  return x;
}

void SpoilWeights(TestMatrix* weight) {
  const int64_t groups = kIn / 32;
  for (int64_t n = 0; n < weight->canonical().rows; n += 3) {
    if (n / kPanelCols % 4 == 1) {
      weight->scales()[static_cast<size_t>(n * groups + n % groups)] =
          static_cast<std::byte>(n % 2 == 0 ? 127 + 55 : 127 - 55);
    }
  }
}

void ExpectFewRows(std::span<const Width> widths, bool with_model) {
  const auto reference = MakeReferenceBackend(Recipe::kServing, 2);
  const std::vector<PathBackend> backends = AllBackends();
  for (const FewRowsCase& c : FewRowsCases()) {
    // The last panel is not full; nor are others cut from the weight.
    TestMatrix weight(c.form.format, c.form.input, widths.back().panels * kPanelCols - 3, kIn, 13);
    if (c.has_immoderate_weights) {
      SpoilWeights(&weight);
    }
    const TestActivations x = InputsOf(c);
    const TestActivations expected =
        RunLinear(reference.get(), weight.PackFor(*reference), x, DType::kF32);
    for (const PathBackend& path : backends) {
      if (path.is_model && !with_model) {
        continue;
      }
      for (const Width& width : widths) {
        const PackedMatrix packed =
            PackFirst(*path.backend, weight.canonical(), width.panels * kPanelCols - 3);
        for (int64_t rows = width.first_rows; rows <= width.last_rows; ++rows) {
          ASSERT_TRUE(Begins(expected, RunFirst(path.backend.get(), packed, x, rows)))
              << fmt::format("{} on {}: {} rows, {} panels, immoderate rows {}, weights {}",
                             Describe(c.form), path.name, rows, width.panels, c.has_immoderate_rows,
                             c.has_immoderate_weights);
        }
      }
    }
  }
}

TEST(LinearRows, FewOfThemEqualTheReferenceOverOneToNinePanels) {
  std::vector<Width> widths;
  for (int64_t panels = 1; panels <= 9; ++panels) {
    widths.push_back({panels});
  }
  ExpectFewRows(widths, /*with_model=*/true);
}

TEST(LinearRows, FewOfThemEqualTheReferenceOverGroupsOfPanels) {
  // One thread takes groups of 8 panels from 32 panels on, up to 6 rows from 128 on (CutPanels of
  // linear.cc); the last group has 1 to 8.
  std::vector<Width> widths;
  for (int64_t panels = 1; panels <= 8; ++panels) {
    widths.push_back({.panels = 32 + panels, .first_rows = 7});
  }
  for (int64_t panels = 1; panels <= 8; ++panels) {
    widths.push_back({.panels = 128 + panels, .last_rows = 6});
  }
  ExpectFewRows(widths, /*with_model=*/false);
}

// --- Experts -------------------------------------------------------------------------------------

// Through two experts: the first `num_first` rows of x, then the first `num_second`.
TestActivations RunExperts(Backend* backend, const std::array<PackedMatrix, 2>& experts,
                           const TestActivations& x, std::array<int32_t, 2> num_rows) {
  const int32_t num_all = num_rows[0] + num_rows[1];
  std::vector<int32_t> rows(static_cast<size_t>(num_all));
  std::iota(rows.begin(), rows.begin() + num_rows[0], 0);
  std::iota(rows.begin() + num_rows[0], rows.end(), 0);
  const std::array<int32_t, 3> offsets = {0, num_rows[0], num_all};
  TestActivations y(DType::kBf16, num_all, experts[0].rows);
  const std::array<const PackedMatrix*, 2> weights = {&experts[0], &experts[1]};
  const GroupedPart part{weights, y.view()};
  EXPECT_TRUE(backend->GroupedLinear({x.view(), rows, offsets, {&part, 1}}).ok());
  return y;
}

// Row r of the result is row r of `all` for the first expert, row kMaxRows + r for the second.
TestActivations Picked(const TestActivations& all, std::array<int32_t, 2> num_rows) {
  TestActivations picked(DType::kBf16, num_rows[0] + num_rows[1], all.view().cols);
  for (int64_t r = 0; r < picked.view().rows; ++r) {
    const int64_t from = r < num_rows[0] ? r : kMaxRows + r - num_rows[0];
    for (int64_t n = 0; n < all.view().cols; ++n) {
      picked.Set(r, n, all.At(from, n));
    }
  }
  return picked;
}

TEST(LinearRows, OfExpertsEqualTheReferenceForEveryNumberOfThem) {
  constexpr int64_t kOut = 29;
  const auto reference = MakeReferenceBackend(Recipe::kServing, 2);
  const std::vector<PathBackend> backends = AllBackends();
  const TestActivations x = Inputs(kMaxRows);
  for (const FormCase& form : kForms) {
    const auto pack = [&](const Backend& backend) {
      return std::array{TestMatrix(form.format, form.input, kOut, kIn, 21).PackFor(backend),
                        TestMatrix(form.format, form.input, kOut, kIn, 22).PackFor(backend)};
    };
    const TestActivations expected =
        RunExperts(reference.get(), pack(*reference), x, {kMaxRows, kMaxRows});
    for (const PathBackend& path : backends) {
      const std::array<PackedMatrix, 2> packed = pack(*path.backend);
      for (int32_t rows = 1; rows <= (path.is_model ? 40 : kMaxRows); ++rows) {
        const std::array<int32_t, 2> num_rows = {rows, rows % 4};
        ASSERT_TRUE(SameBits(Picked(expected, num_rows),
                             RunExperts(path.backend.get(), packed, x, num_rows)))
            << fmt::format("{} on {}: {} rows", Describe(form), path.name, rows);
      }
    }
  }
}

}  // namespace
}  // namespace octavo
