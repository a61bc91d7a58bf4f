#pragma once
// Word problems in GSM8K's format: reading, prompts, and how a reply is scored.
//
// Source: the GSM8K benchmark of SGLang (benchmark/gsm8k/bench_sglang.py), rule for rule.

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

struct Problem {
  std::string question;
  std::string answer;  // The worked solution; ends "#### NUMBER".
};

// JSON lines with the keys question and answer; empty lines and lines that start with '#' are
// skipped. Errors: kNotFound, kCorrupt naming the line.
Result<std::vector<Problem>> ReadProblems(const std::string& path);
Result<std::vector<Problem>> ParseProblems(std::string_view json_lines);

// "Question: q\nAnswer: a\n\n" for each of the first `num_shots` problems, then
// "Question: q\nAnswer:" for problem `problem_idx` (which may be one of them: it counts).
// Requires both below problems.size() (num_shots may equal it).
std::string BuildPrompt(std::span<const Problem> problems, int64_t num_shots, int64_t problem_idx);

// The value of a reply: every ',' is deleted, and the last of the maximal digit runs is read as an
// integer literal of Python, without a bound. "0" stands for any run of zeros. Absent (INVALID):
// no digit run, or a last run that is no literal: a leading zero before another digit, or a
// decimal digit outside ASCII. There is no sign and no fraction: "-5" is 5, "3.50" is 50.
std::optional<std::string> ReplyValue(std::string_view text);

}  // namespace octavo
