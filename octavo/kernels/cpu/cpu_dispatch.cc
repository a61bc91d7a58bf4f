#include "octavo/kernels/cpu/cpu_dispatch.h"

#include <hwy/targets.h>

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string_view>
#include <utility>

#include "octavo/base/status.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/cpu/amx/amx.h"
#include "octavo/kernels/cpu/cpu_path.h"
#include "octavo/kernels/cpu/dot.h"
#include "octavo/kernels/cpu/kernel_table.h"

namespace octavo {
namespace cpu {
namespace {

struct TargetInfo {
  VectorTarget target;
  std::string_view path_name;
  std::string_view needs;
  int64_t highway_target;
};

constexpr std::array kTargets = {
    TargetInfo{VectorTarget::kAvx2, "cpu/avx2", "AVX2, FMA and F16C", HWY_AVX2},
    TargetInfo{VectorTarget::kAvx512, "cpu/avx512", "AVX-512 F, BW, DQ and VL", HWY_AVX3},
    TargetInfo{VectorTarget::kAvx512Vbmi, "cpu/avx512", "AVX-512 with VBMI (Ice Lake)",
               HWY_AVX3_DL},
};

}  // namespace

Result<CpuPath> FindVectorPath(VectorTarget target) {
  const TargetInfo& info = kTargets[static_cast<size_t>(target)];
  const MatMulKernel* matmul = FindMatMulKernel(target);
  const RowKernels* rows = FindRowKernels(target);
  const PanelKernels* panels = FindPanelKernels(target);
  const InputKernels* inputs = FindInputKernels(target);
  const KvKernels* kv = FindKvKernels(target);
  const LayoutKernels* layout = FindLayoutKernels(target);
  if (matmul == nullptr || rows == nullptr || panels == nullptr || inputs == nullptr ||
      kv == nullptr || layout == nullptr) {
    return Unsupported("{}: not in this build", info.path_name);
  }
  if ((hwy::SupportedTargets() & info.highway_target) == 0) {
    return Unsupported("{}: this processor lacks {}", info.path_name, info.needs);
  }
  return CpuPath{.name = info.path_name,
                 .matmul = *matmul,
                 .wide = *matmul,
                 .rows = *rows,
                 .panels = *panels,
                 .inputs = *inputs,
                 .kv = *kv,
                 .layout = *layout};
}

Result<CpuPath> FindDotPath() {
  ASSIGN_OR_RETURN(CpuPath path, FindVectorPath(VectorTarget::kAvx512Vbmi));
  RETURN_IF_ERROR(CheckDot());
  path.wide = DotMatMulKernel();
  // NVFP4, which has no stream by dot products: decoding once and multiplying by them is faster
  // from 6 rows on.
  path.panels.stream_rows = 5;
  return path;
}

Result<CpuPath> FindPath(Isa isa) {
  switch (isa) {
    case Isa::kAvx2:
      return FindVectorPath(VectorTarget::kAvx2);
    case Isa::kAvx512: {
      Result<CpuPath> with_dot = FindDotPath();
      if (with_dot.has_value()) {
        return with_dot;
      }
      Result<CpuPath> with_vbmi = FindVectorPath(VectorTarget::kAvx512Vbmi);
      return with_vbmi.has_value() ? std::move(with_vbmi) : FindVectorPath(VectorTarget::kAvx512);
    }
    case Isa::kAmx: {
      RETURN_IF_ERROR(PrepareAmx());
      ASSIGN_OR_RETURN(CpuPath path, FindPath(Isa::kAvx512));
      path.name = "cpu/amx";
      path.matmul = AmxMatMulKernel();
      path.wide = path.matmul;
      return path;
    }
    case Isa::kScalar:
      break;
  }
  return Unsupported("isa {}: has no vector path", IsaName(isa));
}

}  // namespace cpu

Isa BestIsa() {
  for (const Isa isa : {Isa::kAmx, Isa::kAvx512, Isa::kAvx2}) {
    if (cpu::FindPath(isa).has_value()) {
      return isa;
    }
  }
  return Isa::kScalar;
}

Result<std::unique_ptr<Backend>> MakeCpuBackend(Isa isa, int num_threads) {
  if (isa == Isa::kScalar) {
    return MakeReferenceBackend(Recipe::kServing, num_threads);
  }
  Result<cpu::CpuPath> path = cpu::FindPath(isa);
  if (!path.has_value()) {
    return path.error().WithContext(fmt::format("isa {}", IsaName(isa)));
  }
  return cpu::MakeBackendOfPath(*path, num_threads);
}

}  // namespace octavo
