#pragma once
// Where a replayed reply first differs from the recorded one: ids as numbers, logprobs as the bits
// of their float32.

#include <cstdint>
#include <optional>
#include <string>

#include "octavo/measure/replay_file.h"

namespace octavo {

struct ReplayDifference {
  std::string what;       // "output_ids", "output_token_logprobs", ..., "finish_reason".
  int64_t position = -1;  // In that list; -1: of the whole, such as its length.
  std::string recorded;   // Values as text: "12", "-0.5 (0xbf000000)", "24 entries".
  std::string replayed;
};

// In the order in which a sequence is made: prompt positions, then outputs by position (of one
// position its id before its logprobs), then lengths, then the finish reason. Of the recorded lists
// each must be there again; lists that were not recorded are not looked at.
std::optional<ReplayDifference> FirstDifference(const ReplyContent& recorded,
                                                const ReplyContent& replayed);

// "output_token_logprobs[12]: recorded -0.5 (0xbf000000), replayed -0.25 (0xbe800000)".
std::string DifferenceText(const ReplayDifference& difference);

}  // namespace octavo
