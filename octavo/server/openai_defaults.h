#pragma once
// What a chat request samples with where it does not say: the model's generation_config.json.

#include <cstdint>
#include <string>
#include <string_view>

#include "octavo/base/status.h"
#include "octavo/server/parse_sampling.h"

namespace octavo {

// temperature, top_p, top_k, min_p and repetition_penalty of the file; its other members mean
// nothing here. HF's top_k 0 is -1, all. Errors: kCorrupt, kInvalidArgument, naming the member.
Result<SamplingFields> ParseChatDefaults(std::string_view generation_config_json,
                                         int64_t vocab_size);

// Of a model folder; SamplingParams' own defaults without the file. Errors: as above, and those of
// reading it; all name the file.
Result<SamplingFields> ReadChatDefaults(const std::string& model_dir, int64_t vocab_size);

}  // namespace octavo
