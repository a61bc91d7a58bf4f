#pragma once
// What an engine builds a module as; it decides whether a list is asked at all.

#include <optional>
#include <string_view>

namespace octavo {

enum class ModuleKind {
  kLinear,  // A linear layer that was given the quantization config.
  kMoe,     // The container of routed experts.
  kLmHead,
  kEmbedding,
  kRouter,  // A router class that is no linear layer, or one built without the config.
  kNorm,    // Norms, biases and every other class that is never quantized.
};

// "linear", "moe", ...; the spelling of the published vectors.
std::string_view ModuleKindName(ModuleKind kind);
std::optional<ModuleKind> ParseModuleKind(std::string_view name);

}  // namespace octavo
