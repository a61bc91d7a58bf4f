#include "octavo/measure/problems.h"

#include <utf8proc.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "octavo/base/file.h"

namespace octavo {
namespace {

Result<Problem> ParseProblem(std::string_view line) {
  const auto json = nlohmann::json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt("expected a JSON object, got '{}'", line.substr(0, 80));
  }
  Problem problem;
  for (const auto& [key, value] :
       {std::pair{"question", &problem.question}, std::pair{"answer", &problem.answer}}) {
    const auto found = json.find(key);
    if (found == json.end() || !found->is_string()) {
      return Corrupt("expected a string under '{}'", key);
    }
    *value = found->get<std::string>();
  }
  return problem;
}

// A digit run as the integer literal that Python reads, in canonical form.
std::optional<std::string> LiteralOf(std::string_view run) {
  const bool is_ascii =
      std::all_of(run.begin(), run.end(), [](char c) { return c >= '0' && c <= '9'; });
  if (!is_ascii) {
    return std::nullopt;
  }
  if (run.find_first_not_of('0') == std::string_view::npos) {
    return "0";
  }
  return run[0] == '0' ? std::nullopt : std::optional(std::string(run));
}

}  // namespace

Result<std::vector<Problem>> ReadProblems(const std::string& path) {
  ASSIGN_OR_RETURN(const std::string text, ReadTextFile(path));
  Result<std::vector<Problem>> problems = ParseProblems(text);
  return problems.has_value() ? std::move(problems)
                              : Result<std::vector<Problem>>(problems.error().WithContext(path));
}

Result<std::vector<Problem>> ParseProblems(std::string_view json_lines) {
  std::vector<Problem> problems;
  int64_t line_number = 0;
  while (!json_lines.empty()) {
    const size_t end = std::min(json_lines.find('\n'), json_lines.size());
    const std::string_view line = json_lines.substr(0, end);
    json_lines.remove_prefix(std::min(end + 1, json_lines.size()));
    ++line_number;
    if (line.starts_with('#') || line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    Result<Problem> problem = ParseProblem(line);
    if (!problem.has_value()) {
      return problem.error().WithContext(fmt::format("line {}", line_number));
    }
    problems.push_back(std::move(*problem));
  }
  return problems;
}

std::string BuildPrompt(std::span<const Problem> problems, int64_t num_shots, int64_t problem_idx) {
  std::string prompt;
  for (const Problem& shot : problems.first(static_cast<size_t>(num_shots))) {
    prompt += "Question: " + shot.question + "\nAnswer: " + shot.answer + "\n\n";
  }
  return prompt + "Question: " + problems[static_cast<size_t>(problem_idx)].question + "\nAnswer:";
}

std::optional<std::string> ReplyValue(std::string_view text) {
  std::string last;  // The last run that has ended, or the one that is growing.
  bool in_run = false;
  while (!text.empty()) {
    utf8proc_int32_t code_point = 0;
    const utf8proc_ssize_t step =
        utf8proc_iterate(reinterpret_cast<const utf8proc_uint8_t*>(text.data()),
                         static_cast<utf8proc_ssize_t>(text.size()), &code_point);
    const size_t num_bytes = step > 0 ? static_cast<size_t>(step) : 1;
    const bool is_digit = step > 0 && utf8proc_category(code_point) == UTF8PROC_CATEGORY_ND;
    const bool is_comma = code_point == ',' && step > 0;
    if (is_digit) {
      if (!in_run) {
        last.clear();
      }
      last += text.substr(0, num_bytes);
    }
    in_run = is_digit || (is_comma && in_run);  // A deleted comma joins what it stood between.
    text.remove_prefix(num_bytes);
  }
  return last.empty() ? std::nullopt : LiteralOf(last);
}

}  // namespace octavo
