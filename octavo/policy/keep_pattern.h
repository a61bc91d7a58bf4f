#pragma once
// --keep patterns (docs/policy.md). Without '*', a pattern is a dotted path that matches a run of
// whole segments, as SGLang's matcher does. With '*', it is a glob over a whole name: '*' stands
// for any run of characters, dots included; every other character stands for itself.
//
// Both are held against the parameter's name, and so against its module: "mlp.down_proj",
// "mlp.down_proj.weight" and "*.down_proj" all mean the same weights.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/model/spec/model_spec.h"

namespace octavo {

// True when all of `text` fits `glob`. Time is the product of the lengths at worst.
bool GlobMatches(std::string_view glob, std::string_view text);

// True when `pattern` names the weight `name` ("model.layers.0.mlp.up_proj.weight") or its module.
// A dotted path may carry a leading "model." that the name lacks.
bool KeepMatches(std::string_view pattern, std::string_view name);

// Up to `max` patterns close to `pattern` that do match weights of `spec`, best first: without
// stray dots or with another case, as a glob, and then by spelling.
std::vector<std::string> SuggestKeeps(const ModelSpec& spec, std::string_view pattern, size_t max);

// Up to `max` of `candidates` nearest to `text` by edit distance, best first; only those for which
// at most a third of the longer text differs, and that are at most one edit farther than the best.
std::vector<std::string> NearestNames(std::string_view text,
                                      const std::vector<std::string>& candidates, size_t max);

}  // namespace octavo
