#include "octavo/convert/audit_modules.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/source.h"
#include "octavo/convert/stored_values.h"
#include "octavo/formats/format.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr int64_t kBlock = 128;
constexpr std::string_view kWeight = ".weight";
constexpr std::string_view kPacked = ".weight_packed";

enum class Part { kScales, kGlobal, kInput };
struct Suffix {
  std::string_view text;
  Part part;
};
// Behind a module, or directly behind the name of a stacked tensor. Longest first.
constexpr auto kSuffixes = std::to_array<Suffix>({
    {".weight_global_scale", Part::kGlobal},
    {".input_global_scale", Part::kInput},
    {".weight_scale_inv", Part::kScales},
    {".weight_scale_2", Part::kGlobal},
    {".weight_scale", Part::kScales},
    {".input_scale", Part::kInput},
    {"_weight_scale_inv", Part::kScales},
    {"_weight_scale_2", Part::kGlobal},
    {"_weight_scale", Part::kScales},
    {"_input_scale", Part::kInput},
    {"_scale_inv", Part::kScales},
});

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool IsFloat(DType dtype) {
  return dtype == DType::kBf16 || dtype == DType::kF16 || dtype == DType::kF32;
}

bool IsScaleByte(DType dtype) { return dtype == DType::kU8 || dtype == DType::kF8E8m0; }

// The suffix by which `name` is a scale; nullopt for other names.
std::optional<Suffix> ScaleSuffix(std::string_view name) {
  const auto* const found = std::ranges::find_if(
      kSuffixes, [&](const Suffix& suffix) { return name.ends_with(suffix.text); });
  return found == kSuffixes.end() ? std::nullopt : std::optional(*found);
}

bool IsKvScale(std::string_view name) {
  return name.ends_with(".k_scale") || name.ends_with(".v_scale");
}

// Whether a tensor holds the codes of a weight.
bool IsCodes(const StoredTensor& tensor) {
  const std::string_view name = tensor.name;
  const DType dtype = tensor.view.dtype;
  if (ScaleSuffix(name) || IsKvScale(name) || IsFloat(dtype) || dtype == DType::kF64) {
    return false;
  }
  if (name.ends_with(kWeight) || name.ends_with(kPacked)) {
    return true;
  }
  return (dtype == DType::kF8E4m3 || dtype == DType::kF8E5m2) && tensor.view.shape.size() == 3;
}

std::string ModuleName(std::string_view name) {
  for (const std::string_view suffix : {kPacked, kWeight}) {
    if (name.ends_with(suffix)) {
      return std::string(name.substr(0, name.size() - suffix.size()));
    }
  }
  return std::string(name);
}

// The extents of all matrices of a stack, in front of `shape`.
Shape Stacked(const StoredModule& module, Shape shape) {
  if (module.codes->view.shape.size() == 3) {
    shape.insert(shape.begin(), module.stack);
  }
  return shape;
}

bool HasShape(const StoredModule& module, const StoredTensor& scales) {
  const std::vector<Shape> shapes = ScaleShapes(module);
  if (shapes.empty()) {
    return NumElements(scales.view.shape) == module.stack;
  }
  return std::ranges::find(shapes, scales.view.shape) != shapes.end();
}

// The E4M3 format whose scales have this dtype and shape; nullopt when there is none.
std::optional<WeightFormat> Fp8FormatOf(StoredModule module, bool prefers_ue8m0) {
  const DType dtype = module.scales->view.dtype;
  const WeightFormat blocks = prefers_ue8m0 ? WeightFormat::kFp8Ue8m0 : WeightFormat::kFp8;
  const std::array<WeightFormat, 3> float_formats = {blocks, WeightFormat::kFp8Channel,
                                                     WeightFormat::kFp8Tensor};
  const std::array<WeightFormat, 2> byte_formats = {WeightFormat::kMxfp8, WeightFormat::kFp8Ue8m0};
  const auto try_format = [&](WeightFormat format) {
    module.format = format;
    return HasShape(module, *module.scales);
  };
  if (IsScaleByte(dtype)) {
    const auto* const found = std::ranges::find_if(byte_formats, try_format);
    return found == byte_formats.end() ? WeightFormat::kMxfp8 : *found;
  }
  const bool is_inv = module.scales->name.ends_with("_inv");
  if (!is_inv) {
    // A single row has the same shape as blocks, channel and tensor alike: go by the name.
    for (const WeightFormat format :
         {WeightFormat::kFp8Tensor, WeightFormat::kFp8Channel, blocks}) {
      if (try_format(format)) {
        return format;
      }
    }
    return WeightFormat::kFp8Channel;
  }
  const auto* const found = std::ranges::find_if(float_formats, try_format);
  return found == float_formats.end() ? blocks : *found;
}

// Finds out what the parts of `module` are together.
void Classify(StoredModule& module, bool prefers_ue8m0) {
  const Shape& shape = module.codes->view.shape;
  const DType dtype = module.codes->view.dtype;
  if (shape.size() != 2 && shape.size() != 3) {
    return;
  }
  module.stack = shape.size() == 3 ? shape[0] : 1;
  module.rows = shape[shape.size() - 2];
  module.cols = shape.back();
  if (dtype == DType::kF8E4m3) {
    if (module.scales != nullptr) {
      module.format = Fp8FormatOf(module, prefers_ue8m0);
      module.ct_names =
          !module.scales->name.ends_with("_inv") &&
          (module.format == WeightFormat::kMxfp8 || module.format == WeightFormat::kFp8 ||
           module.format == WeightFormat::kFp8Ue8m0);
    }
  } else if (dtype == DType::kU8) {
    const bool is_packed = module.codes->name.ends_with(kPacked);
    const bool has_e4m3 = module.scales != nullptr && module.scales->view.dtype == DType::kF8E4m3;
    if (has_e4m3 || is_packed || module.global != nullptr) {
      module.format = WeightFormat::kNvfp4;
      module.layout = is_packed ? StoredLayout::kCompressedTensors : StoredLayout::kDefault;
      module.cols *= 2;
    }
  }
}

bool IsSoundModule(const StoredModule& module) {
  if (!module.format || module.scales == nullptr || !HasShape(module, *module.scales)) {
    return false;
  }
  const DType dtype = module.scales->view.dtype;
  switch (*module.format) {
    case WeightFormat::kNvfp4:
      return dtype == DType::kF8E4m3 && module.global != nullptr &&
             IsFloat(module.global->view.dtype) &&
             NumElements(module.global->view.shape) == module.stack && module.cols % 16 == 0;
    case WeightFormat::kMxfp8:
      return IsScaleByte(dtype) && module.cols % 32 == 0;
    case WeightFormat::kFp8Ue8m0:
      return IsFloat(dtype) || IsScaleByte(dtype);
    default:
      return IsFloat(dtype);
  }
}

}  // namespace

std::vector<Shape> ScaleShapes(const StoredModule& module) {
  switch (*module.format) {
    case WeightFormat::kFp8:
    case WeightFormat::kFp8Ue8m0:
      return {Stacked(module, {CeilDiv(module.rows, kBlock), CeilDiv(module.cols, kBlock)})};
    case WeightFormat::kFp8Channel:
      return {Stacked(module, {module.rows, 1}), Stacked(module, {module.rows})};
    case WeightFormat::kMxfp8:
      return {Stacked(module, {module.rows, CeilDiv(module.cols, 32)})};
    case WeightFormat::kNvfp4:
      return {Stacked(module, {module.rows, CeilDiv(module.cols, 16)})};
    case WeightFormat::kFp8Tensor:
    case WeightFormat::kBf16:
      break;
  }
  return {};
}

StoredModules FindStoredModules(const Checkpoint& checkpoint, bool prefers_ue8m0) {
  StoredModules modules;
  std::map<std::string, StoredModule*, std::less<>> by_name;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (IsCodes(tensor)) {
      StoredModule module = {.name = ModuleName(tensor.name), .codes = &tensor};
      const bool is_stacked = module.name == tensor.name;
      module.weight = is_stacked ? tensor.name : module.name + std::string(kWeight);
      const std::string weight = module.weight;
      StoredModule& stored = modules.by_weight[weight] = std::move(module);
      by_name[stored.name] = &stored;
    }
  }
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    if (IsKvScale(tensor.name)) {
      modules.kv_scales.push_back(&tensor);
      continue;
    }
    const std::optional<Suffix> suffix = ScaleSuffix(tensor.name);
    if (!suffix) {
      continue;
    }
    const auto found = by_name.find(
        std::string_view(tensor.name).substr(0, tensor.name.size() - suffix->text.size()));
    if (found == by_name.end()) {
      modules.orphans.push_back(&tensor);
      continue;
    }
    StoredModule& module = *found->second;
    (suffix->part == Part::kScales   ? module.scales
     : suffix->part == Part::kGlobal ? module.global
                                     : module.input) = &tensor;
  }
  for (auto& [weight, module] : modules.by_weight) {
    Classify(module, prefers_ue8m0);
    module.is_sound = IsSoundModule(module);
  }
  return modules;
}

std::set<const StoredTensor*> PartsOfModules(const StoredModules& modules) {
  std::set<const StoredTensor*> parts;
  for (const auto& [weight, module] : modules.by_weight) {
    for (const StoredTensor* part : {module.codes, module.scales, module.global, module.input}) {
      if (part != nullptr) {
        parts.insert(part);
      }
    }
  }
  return parts;
}

WeightSource SourceOf(const StoredModule& module) {
  WeightSource source = {.format = *module.format,
                         .rows = module.rows,
                         .cols = module.cols,
                         .codes = module.codes->view,
                         .scales = {}};
  if (*module.format == WeightFormat::kFp8Tensor) {
    source.tensor_scale = ScaleAt(module.scales->view, 0);
    return source;
  }
  source.scales = module.scales->view;
  if (*module.format == WeightFormat::kNvfp4) {
    source.tensor_scale = ScaleAt(module.global->view, 0);
    source.tensor_scale_divides = module.layout == StoredLayout::kCompressedTensors;
  }
  return source;
}

std::string FusedSetName(std::string_view module) {
  struct Member {
    std::string_view name;
    std::string_view set;
  };
  constexpr auto kMembers =
      std::to_array<Member>({{"q_proj", "qkv_proj"},
                             {"k_proj", "qkv_proj"},
                             {"v_proj", "qkv_proj"},
                             {"gate_proj", "gate_up_proj"},
                             {"up_proj", "gate_up_proj"},
                             {"w1", "w13"},
                             {"w3", "w13"},
                             {"q_a_proj", "fused_qkv_a_proj_with_mqa"},
                             {"kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa"}});
  const size_t dot = module.rfind('.');
  const std::string_view last = dot == std::string_view::npos ? module : module.substr(dot + 1);
  const auto* const found = std::ranges::find(kMembers, last, &Member::name);
  return found == kMembers.end()
             ? std::string()
             : std::string(module.substr(0, module.size() - last.size())) + std::string(found->set);
}

}  // namespace octavo
