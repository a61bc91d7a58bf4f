#pragma once
// The rotary embedding of a config.json.

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/checkpoint/hf_config_section.h"

namespace octavo {

// Fills rope_theta and rope_scaling from `config`, the object that holds the text model's members:
// rope_theta and rope_scaling at the top (transformers 4), or both in rope_parameters (5).
// Requires out.max_position_embeddings. Errors: as ParseHfConfig.
Status ParseHfRope(const HfSection& config, HfConfig& out);

}  // namespace octavo
