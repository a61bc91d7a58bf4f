#pragma once
// For tests: every path that this processor has, and the AMX loops over the software model of the
// tiles, as the parameter of a test.

#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/amx/amx.h"
#include "octavo/kernels/cpu/cpu_dispatch.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo {

struct PathCase {
  std::string name;
  cpu::CpuPath path;
};

inline std::vector<PathCase> AllPaths() {
  std::vector<PathCase> paths;
  using cpu::VectorTarget;
  for (const auto& [name, target] :
       {std::pair<const char*, VectorTarget>{"Avx2", VectorTarget::kAvx2},
        {"Avx512", VectorTarget::kAvx512},
        {"Avx512Vbmi", VectorTarget::kAvx512Vbmi}}) {
    Result<cpu::CpuPath> path = cpu::FindVectorPath(target);
    if (path.has_value()) {
      paths.push_back({name, *path});
    }
  }
  if (!paths.empty()) {
    PathCase model = {"AmxModel", paths.back().path};
    model.path.matmul = cpu::AmxModelMatMulKernel();
    model.path.wide = model.path.matmul;
    paths.push_back(model);
  }
  Result<cpu::CpuPath> dot = cpu::FindDotPath();
  if (dot.has_value()) {
    paths.push_back({"Avx512Dot", *dot});
  }
  Result<cpu::CpuPath> amx = cpu::FindPath(Isa::kAmx);
  if (amx.has_value()) {
    paths.push_back({"Amx", *amx});
  }
  return paths;
}

class PathTest : public ::testing::TestWithParam<PathCase> {
 protected:
  std::unique_ptr<Backend> Make(int num_threads) const {
    return cpu::MakeBackendOfPath(GetParam().path, num_threads);
  }
  // The software model is slow: it skips what only repeats the shapes of other paths.
  bool is_model() const { return GetParam().name == "AmxModel"; }

  std::unique_ptr<Backend> reference_ = MakeReferenceBackend(Recipe::kServing, 2);
};

}  // namespace octavo
