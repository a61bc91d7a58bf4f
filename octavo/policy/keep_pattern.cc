#include "octavo/policy/keep_pattern.h"

#include <fmt/core.h>

#include <algorithm>
#include <cctype>
#include <cstddef>
#include <numeric>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/sglang_match.h"

namespace octavo {
namespace {

constexpr std::string_view kModelPrefix = "model.";
// A pattern longer than any name is no misspelling, and its distances would cost time.
constexpr size_t kPatternBytesMax = 256;

// True when the components of `entry` are the first ones of `path`.
bool IsDottedStart(std::string_view entry, std::string_view path) {
  return !entry.empty() && path.starts_with(entry) &&
         (path.size() == entry.size() || path[entry.size()] == '.');
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), size_t{0});
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = std::exchange(row[0], i);
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

std::string Lower(std::string_view text) {
  std::string out(text);
  std::ranges::transform(out, out.begin(),
                         [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return out;
}

bool MatchesAny(const ModelSpec& spec, std::string_view pattern) {
  return std::ranges::any_of(
      spec.weights, [&](const WeightSpec& weight) { return KeepMatches(pattern, weight.name); });
}

void AddUnique(std::string_view text, std::vector<std::string>* out) {
  if (std::ranges::find(*out, text) == out->end()) {
    out->emplace_back(text);
  }
}

// Every run of whole components of a module's path: what people write as a pattern.
std::vector<std::string> PathCandidates(const ModelSpec& spec) {
  std::vector<std::string> out;
  for (const WeightSpec& weight : spec.weights) {
    if (weight.expert > 0) {
      continue;  // Spelled as the first expert's: thousands of names that say nothing new.
    }
    const std::string_view module = ModuleOfWeight(weight.name);
    for (size_t begin = 0; begin < module.size();) {
      size_t end = begin;
      while (end < module.size()) {
        end = std::min(module.find('.', end + 1), module.size());
        out.emplace_back(module.substr(begin, end - begin));
      }
      const size_t dot = module.find('.', begin);
      begin = dot == std::string_view::npos ? module.size() : dot + 1;
    }
  }
  std::ranges::sort(out);
  const auto duplicates = std::ranges::unique(out);
  out.erase(duplicates.begin(), duplicates.end());
  return out;
}

// The members of a fused module, when `pattern` ends in an engine's fused name.
void AddFusedMembers(const ModelSpec& spec, std::string_view pattern,
                     std::vector<std::string>* out) {
  for (const FusedSet& set : FusedSetsOf(spec)) {
    if (!IsDottedRun(pattern, set.module)) {
      continue;
    }
    const std::string_view fused = std::string_view(set.module).substr(set.module.rfind('.') + 1);
    if (!pattern.ends_with(fused)) {
      return;
    }
    const std::string_view stem = pattern.substr(0, pattern.size() - fused.size());
    for (const int member : set.members) {
      const std::string_view module =
          ModuleOfWeight(spec.weights[static_cast<size_t>(member)].name);
      AddUnique(std::string(stem).append(module.substr(module.rfind('.') + 1)), out);
    }
    return;
  }
}

}  // namespace

bool GlobMatches(std::string_view glob, std::string_view text) {
  size_t g = 0;
  size_t t = 0;
  size_t star = std::string_view::npos;  // The last '*' passed, and how far its run reached.
  size_t run_end = 0;
  while (t < text.size()) {
    if (g < glob.size() && glob[g] == '*') {
      star = g++;
      run_end = t;
    } else if (g < glob.size() && glob[g] == text[t]) {
      ++g;
      ++t;
    } else if (star != std::string_view::npos) {
      g = star + 1;
      t = ++run_end;
    } else {
      return false;
    }
  }
  return glob.find_first_not_of('*', g) == std::string_view::npos;
}

bool KeepMatches(std::string_view pattern, std::string_view name) {
  if (pattern.find('*') != std::string_view::npos) {
    return GlobMatches(pattern, name) || GlobMatches(pattern, ModuleOfWeight(name));
  }
  const std::string_view path = StripTrailingDots(pattern);
  if (path.empty()) {
    return false;
  }
  // A run of the module's components is one of the parameter's too.
  if (IsDottedRun(path, name)) {
    return true;
  }
  return path.starts_with(kModelPrefix) && !name.starts_with(kModelPrefix) &&
         IsDottedStart(path.substr(kModelPrefix.size()), name);
}

std::vector<std::string> NearestNames(std::string_view text,
                                      const std::vector<std::string>& candidates, size_t max) {
  std::vector<std::pair<size_t, size_t>> ranked;  // (distance, position)
  for (size_t i = 0; i < candidates.size(); ++i) {
    const size_t longer = std::max(text.size(), candidates[i].size());
    const size_t shorter = std::min(text.size(), candidates[i].size());
    if (3 * (longer - shorter) > longer) {
      continue;
    }
    const size_t distance = EditDistance(text, candidates[i]);
    if (3 * distance <= longer) {
      ranked.emplace_back(distance, i);
    }
  }
  std::ranges::sort(ranked);
  std::vector<std::string> out;
  for (const auto& [distance, candidate_idx] : ranked) {
    // Much farther than the nearest is another word, not another reading of this one.
    if (out.size() == max || distance > ranked.front().first + 1) {
      break;
    }
    out.push_back(candidates[candidate_idx]);
  }
  return out;
}

std::vector<std::string> SuggestKeeps(const ModelSpec& spec, std::string_view pattern, size_t max) {
  if (pattern.size() > kPatternBytesMax) {
    return {};
  }
  std::vector<std::string> out;
  const size_t first = pattern.find_first_not_of(". \t");
  if (first == std::string_view::npos) {
    return out;
  }
  const std::string_view bare = pattern.substr(first, pattern.find_last_not_of(". \t") - first + 1);
  const bool is_glob = bare.find('*') != std::string_view::npos;
  AddFusedMembers(spec, ModuleOfWeight(bare), &out);
  std::vector<std::string> variants = {std::string(bare), Lower(bare)};
  if (is_glob) {
    variants.push_back(fmt::format("*{}", bare));
    variants.push_back(fmt::format("{}*", bare));
  }
  variants.push_back(fmt::format("*{}*", bare));
  // The first that fits is the nearest; wider ones would only add weights nobody meant.
  const auto fits = std::ranges::find_if(
      variants, [&](const std::string& variant) { return MatchesAny(spec, variant); });
  if (fits != variants.end()) {
    AddUnique(*fits, &out);
  }
  if (out.empty() && !is_glob) {
    out = NearestNames(bare, PathCandidates(spec), max);
  }
  out.resize(std::min(out.size(), max));
  return out;
}

}  // namespace octavo
