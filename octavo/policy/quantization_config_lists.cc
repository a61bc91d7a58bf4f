#include "octavo/policy/quantization_config_lists.h"

#include <fmt/core.h>

#include <algorithm>
#include <array>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/natural_order.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

constexpr std::string_view kExpertsPart = ".experts.";
constexpr std::string_view kEmbedTokens = "model.embed_tokens.weight";
constexpr std::string_view kWrappedHead = "language_model.lm_head";
constexpr std::string_view kHead = "lm_head";

// The last component of a module, and the fused module that engines make of it.
struct FusedName {
  std::string_view member;
  std::string_view fused;
};
constexpr auto kFusedNames = std::to_array<FusedName>({
    {"q_proj", "qkv_proj"},
    {"k_proj", "qkv_proj"},
    {"v_proj", "qkv_proj"},
    {"gate_proj", "gate_up_proj"},
    {"up_proj", "gate_up_proj"},
    {"q_a_proj", "fused_qkv_a_proj_with_mqa"},
    {"kv_a_proj_with_mqa", "fused_qkv_a_proj_with_mqa"},
});
// SGLang's ModelOpt reader takes an entry that ends in one of these for all layers.
constexpr auto kMlaTails =
    std::to_array<std::string_view>({"q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj"});

bool IsQuantized(const PrecisionRow& row) { return row.format != WeightFormat::kBf16; }

std::string_view LastComponent(std::string_view module) {
  return module.substr(module.rfind('.') + 1);
}

std::string FusedOf(std::string_view module) {
  const std::string_view last = LastComponent(module);
  const auto* const found = std::ranges::find(kFusedNames, last, &FusedName::member);
  return found == kFusedNames.end()
             ? std::string()
             : std::string(module.substr(0, module.size() - last.size())).append(found->fused);
}

// "model.layers.3.mlp.experts" of an expert's parameter.
std::string ContainerOf(std::string_view name) {
  return std::string(name.substr(0, name.find(kExpertsPart) + kExpertsPart.size() - 1));
}

// Everything an engine could take for quantized and must not.
struct Kept {
  std::set<std::string> modules;  // Linear modules, head.
  std::set<std::string> routers;
  std::set<std::string> containers;  // All experts in them are kept.
  std::set<std::string> fused;       // Fused modules whose members are kept.
};

Kept KeptOf(const PrecisionTable& table, std::span<const std::string> other_kept) {
  Kept kept;
  kept.modules.insert(other_kept.begin(), other_kept.end());
  for (const PrecisionRow& row : table.rows) {
    if (IsQuantized(row)) {
      continue;
    }
    const std::string_view module = ModuleOfWeight(row.name);
    if (row.role == Role::kRouter) {
      kept.routers.emplace(module);
    } else if (IsExpertRole(row.role)) {
      kept.containers.insert(ContainerOf(row.name));
    } else if (IsLinearRole(row.role) || row.role == Role::kLmHead ||
               row.role == Role::kMtpProjection) {
      kept.modules.emplace(module);
      // An MLA without a latent for q has a q_proj that engines fuse with nothing.
      if (std::string fused = FusedOf(module); !fused.empty()) {
        kept.fused.insert(std::move(fused));
      }
    }
  }
  return kept;
}

std::vector<std::string> Sorted(const std::set<std::string>& names) {
  std::vector<std::string> out(names.begin(), names.end());
  std::ranges::sort(out, NaturalLess);
  return out;
}

// The head that engines build: a tied one owns no tensor, but readers of these lists may quantize
// every linear module.
std::string HeadOf(const PrecisionTable& table) {
  for (const PrecisionRow& row : table.rows) {
    if (row.role == Role::kLmHead && row.layer < 0) {
      return std::string(ModuleOfWeight(row.name));
    }
  }
  for (const PrecisionRow& row : table.rows) {
    if (row.role == Role::kEmbedding && row.layer < 0) {
      const bool is_wrapped = row.name == std::string("language_model.").append(kEmbedTokens);
      return std::string(is_wrapped ? kWrappedHead : kHead);
    }
  }
  return std::string(kHead);
}

// `text` as an expression that matches exactly it.
std::string Escaped(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(".*+?()[]{}|^$\\").find(c) != std::string_view::npos) {
      out += '\\';
    }
    out += c;
  }
  return out;
}

// MLA's projections that are kept in one layer and quantized in another.
std::set<std::string_view> PartlyKeptTails(const PrecisionTable& table) {
  std::set<std::string_view> kept;
  std::set<std::string_view> quantized;
  for (const PrecisionRow& row : table.rows) {
    const std::string_view last = LastComponent(ModuleOfWeight(row.name));
    if (std::ranges::find(kMlaTails, last) != kMlaTails.end()) {
      (IsQuantized(row) ? quantized : kept).insert(last);
    }
  }
  std::erase_if(kept, [&](std::string_view tail) { return !quantized.contains(tail); });
  return kept;
}

}  // namespace

std::vector<std::string> Fp8KeptList(const PrecisionTable& table,
                                     std::span<const std::string> other_kept) {
  Kept kept = KeptOf(table, other_kept);
  // The fused names stay away: these readers compare the members, and take nothing else.
  kept.modules.merge(kept.containers);
  kept.modules.merge(kept.routers);
  return Sorted(kept.modules);
}

std::vector<std::string> ModelOptKeptList(const PrecisionTable& table,
                                          std::span<const std::string> other_kept) {
  Kept kept = KeptOf(table, other_kept);
  const std::set<std::string_view> partly = PartlyKeptTails(table);
  std::set<std::string> names;
  for (const std::string& module : kept.modules) {
    // With a star the entry no longer ends in the tail, and means this layer alone.
    const bool is_partly_kept = partly.contains(LastComponent(module));
    names.insert(is_partly_kept ? module + "*" : module);
    // vLLM compares members by equality, which the star defeats, and its fused name is a shorter
    // one.
    std::string fused = FusedOf(module);
    if (constexpr std::string_view kTail = "_with_mqa"; is_partly_kept && fused.ends_with(kTail)) {
      fused.resize(fused.size() - kTail.size());
      names.insert(std::move(fused));
    }
  }
  names.merge(kept.containers);
  names.merge(kept.routers);
  names.merge(kept.fused);
  names.insert(HeadOf(table));
  return Sorted(names);
}

std::vector<std::string> CompressedTensorsKeptList(const PrecisionTable& table,
                                                   std::span<const std::string> other_kept) {
  Kept kept = KeptOf(table, other_kept);
  std::set<std::string> names = std::move(kept.modules);
  names.merge(kept.fused);
  names.insert(HeadOf(table));
  for (const std::string& container : kept.containers) {
    names.insert(fmt::format("re:{}\\.", Escaped(container)));
    names.insert(container);
  }
  // SGLang takes a plain entry for a part of any name, and "mlp.gate" is one of "mlp.gate_proj".
  for (const std::string& router : kept.routers) {
    names.insert(fmt::format("re:{}$", Escaped(router)));
  }
  return Sorted(names);
}

std::vector<std::string> CompressedTensorsTargets(const PrecisionTable& table,
                                                  WeightFormat format) {
  std::set<std::string> names;
  for (const PrecisionRow& row : table.rows) {
    if (row.format != format) {
      continue;
    }
    const std::string_view module = ModuleOfWeight(row.name);
    if (IsExpertRole(row.role)) {
      const std::string container = ContainerOf(row.name);
      names.insert(container);
      names.insert(fmt::format("re:{}\\.", Escaped(container)));
      continue;
    }
    names.emplace(module);
    if (std::string fused = FusedOf(module); !fused.empty()) {
      names.insert(std::move(fused));
    }
  }
  return Sorted(names);
}

}  // namespace octavo
