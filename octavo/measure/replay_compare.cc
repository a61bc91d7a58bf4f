#include "octavo/measure/replay_compare.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/measure/replay_file.h"

namespace octavo {
namespace {

std::string ScoreText(const ReplayScore& score, bool with_id) {
  const std::string id = with_id ? fmt::format("token {}: ", score.id) : std::string();
  return score.logprob.has_value() ? fmt::format("{}{} (0x{:08x})", id, *score.logprob,
                                                 std::bit_cast<uint32_t>(*score.logprob))
                                   : id + "null";
}

bool IsSame(const ReplayScore& a, const ReplayScore& b) {
  return a.id == b.id && a.logprob.has_value() == b.logprob.has_value() &&
         (!a.logprob.has_value() ||
          std::bit_cast<uint32_t>(*a.logprob) == std::bit_cast<uint32_t>(*b.logprob));
}

std::optional<ReplayDifference> CompareLength(std::string_view what, size_t recorded,
                                              size_t replayed, std::string_view unit) {
  if (recorded == replayed) {
    return std::nullopt;
  }
  return ReplayDifference{.what = std::string(what),
                          .recorded = fmt::format("{} {}", recorded, unit),
                          .replayed = fmt::format("{} {}", replayed, unit)};
}

std::optional<ReplayDifference> ComparePosition(const ReplayScores& recorded,
                                                const ReplayScores& replayed, size_t position) {
  if (position >= recorded.positions.size() || position >= replayed.positions.size()) {
    return std::nullopt;
  }
  const std::vector<ReplayScore>& a = recorded.positions[position];
  const std::vector<ReplayScore>& b = replayed.positions[position];
  std::optional<ReplayDifference> difference;
  for (size_t i = 0; i < std::min(a.size(), b.size()) && !difference; ++i) {
    if (!IsSame(a[i], b[i])) {
      const bool with_id = a[i].id != b[i].id;
      difference = {.what = recorded.key,
                    .recorded = ScoreText(a[i], with_id),
                    .replayed = ScoreText(b[i], with_id)};
    }
  }
  if (!difference) {
    difference = CompareLength(recorded.key, a.size(), b.size(), "entries");
  }
  if (difference) {
    difference->position = static_cast<int64_t>(position);
  }
  return difference;
}

std::optional<ReplayDifference> CompareId(const ReplyContent& recorded,
                                          const ReplyContent& replayed, size_t position) {
  if (position >= recorded.output_ids.size() || position >= replayed.output_ids.size() ||
      recorded.output_ids[position] == replayed.output_ids[position]) {
    return std::nullopt;
  }
  return ReplayDifference{.what = "output_ids",
                          .position = static_cast<int64_t>(position),
                          .recorded = fmt::format("{}", recorded.output_ids[position]),
                          .replayed = fmt::format("{}", replayed.output_ids[position])};
}

struct ListPair {
  const ReplayScores* recorded = nullptr;
  const ReplayScores* replayed = nullptr;
};

// Position by position through all lists at once.
std::optional<ReplayDifference> CompareLists(const std::vector<ListPair>& lists,
                                             const ReplyContent* recorded,
                                             const ReplyContent* replayed) {
  size_t num_positions = recorded != nullptr ? recorded->output_ids.size() : 0;
  for (const ListPair& pair : lists) {
    num_positions = std::max(num_positions, pair.recorded->positions.size());
  }
  std::optional<ReplayDifference> difference;
  for (size_t position = 0; position < num_positions && !difference; ++position) {
    if (recorded != nullptr) {
      difference = CompareId(*recorded, *replayed, position);
    }
    for (size_t i = 0; i < lists.size() && !difference; ++i) {
      difference = ComparePosition(*lists[i].recorded, *lists[i].replayed, position);
    }
  }
  for (size_t i = 0; i < lists.size() && !difference; ++i) {
    difference = CompareLength(lists[i].recorded->key, lists[i].recorded->positions.size(),
                               lists[i].replayed->positions.size(), "positions");
  }
  return difference;
}

}  // namespace

std::optional<ReplayDifference> FirstDifference(const ReplyContent& recorded,
                                                const ReplyContent& replayed) {
  std::vector<ListPair> inputs;
  std::vector<ListPair> outputs;
  for (const ReplayScores& scores : recorded.scores) {
    const auto found = std::ranges::find(replayed.scores, scores.key, &ReplayScores::key);
    if (found == replayed.scores.end()) {
      return ReplayDifference{.what = scores.key,
                              .recorded = fmt::format("{} positions", scores.positions.size()),
                              .replayed = "no such list"};
    }
    (scores.key.starts_with("output") ? outputs : inputs).push_back({&scores, &*found});
  }
  std::optional<ReplayDifference> difference = CompareLists(inputs, nullptr, nullptr);
  if (!difference) {
    difference = CompareLists(outputs, &recorded, &replayed);
  }
  if (!difference) {
    difference =
        CompareLength("output_ids", recorded.output_ids.size(), replayed.output_ids.size(), "ids");
  }
  if (!difference && !recorded.finish_reason.empty() &&
      recorded.finish_reason != replayed.finish_reason) {
    difference = {.what = "finish_reason",
                  .recorded = recorded.finish_reason,
                  .replayed = replayed.finish_reason};
  }
  return difference;
}

std::string DifferenceText(const ReplayDifference& difference) {
  const std::string where = difference.position >= 0
                                ? fmt::format("{}[{}]", difference.what, difference.position)
                                : difference.what;
  return fmt::format("{}: recorded {}, replayed {}", where, difference.recorded,
                     difference.replayed);
}

}  // namespace octavo
