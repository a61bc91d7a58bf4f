#pragma once
// The objects of /v1/completions and /v1/chat/completions: whole answers and chunks.

#include <memory>

#include "octavo/server/answer_shape.h"
#include "octavo/server/parse_openai.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

// Choice i is sequence i of the call, so sample i % num_samples of prompt i / num_samples. Chunks
// are deltas, whatever --incremental-streaming-output says of /generate. `tokenizer` may be null
// (texts are then "") and must outlive the shape.
std::unique_ptr<AnswerShape> MakeOpenAiShape(OpenAiAnswer answer, const Tokenizer* tokenizer);

}  // namespace octavo
