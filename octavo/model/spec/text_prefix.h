#pragma once
// What stands before the names of a text model's tensors: "model." in a plain checkpoint, something
// longer where the text model is one part of a larger one.

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "octavo/checkpoint/hf_config.h"

namespace octavo {

// True for "model.", "language_model.model.", "model.language_model.", "model.text_model." and "".
bool IsTextPrefix(std::string_view prefix);

// "language_model.lm_head.weight" beside "language_model.model.", else "lm_head.weight".
std::string_view HeadNameOf(std::string_view prefix);

// The prefix of the text model's decoder layers: the one under which most of `tensor_names` are
// "PREFIXlayers.N.…" with N below the config's number of layers, MTP layers included. Layers of
// vision and audio towers have other names before them and never count. "model." when there are no
// such names, so that what is then missing is told with the usual names.
std::string DetectPrefix(std::span<const std::string_view> tensor_names, const HfConfig& config);

// `name` without the prefix of the text model, whichever it has: "layers.3.mlp.gate.weight",
// "embed_tokens.weight", "norm.weight", "lm_head.weight". A tower's name keeps its own words:
// "visual.blocks.3.…".
std::string_view StripPrefix(std::string_view name);

// The decoder layer of a tensor or module of the text model: 3 for
// "model.language_model.layers.3.mlp"; -1 outside the layers and for towers.
int64_t LayerOfName(std::string_view name);

}  // namespace octavo
