#define PCRE2_CODE_UNIT_WIDTH 8
#include "octavo/policy/name_pattern.h"

#include <fmt/core.h>
#include <pcre2.h>

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/policy/pattern_syntax.h"

namespace octavo {
namespace {

struct FreeCode {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};

// Bounds the states of a search, and with them its time.
constexpr size_t kCodeBytesMax = 8192;
// A state is a place in the code and the repeats so far; a text that needs more than this many
// integers of them is no name, and does not match.
constexpr size_t kWorkspaceIntsMax = size_t{1} << 24;

// True for a match. The search keeps every state at once (pcre2_dfa_match), so its time is linear
// in the text for the constructs that TranslatePattern lets through.
bool Search(const pcre2_code* code, std::string_view text, uint32_t options) {
  const std::unique_ptr<pcre2_match_data, FreeMatchData> data(
      pcre2_match_data_create(/*ovecsize=*/1, nullptr));
  CHECK(data != nullptr);
  std::vector<int> workspace(1024);
  while (true) {
    const int count = pcre2_dfa_match(code, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                                      /*startoffset=*/0, options | PCRE2_ANCHORED, data.get(),
                                      nullptr, workspace.data(), workspace.size());
    if (count != PCRE2_ERROR_DFA_WSSIZE || workspace.size() >= kWorkspaceIntsMax) {
      return count >= 0;  // 0: a match, with more ends than the one slot holds.
    }
    workspace.assign(workspace.size() * 4, 0);
  }
}

}  // namespace

struct NamePattern::Impl {
  PatternSyntax syntax;
  std::unique_ptr<pcre2_code, FreeCode> code;  // Null for a simple one.

  // The characters of a simple expression, against the start of `text`.
  bool SimplyStarts(std::string_view text) const {
    const std::string& literal = syntax.literal;
    return text.size() >= literal.size() &&
           std::equal(literal.begin(), literal.end(), text.begin(),
                      [](char want, char got) { return want == '\0' ? got != '\n' : want == got; });
  }

  // A dot is one character: only in ASCII is that one byte.
  bool IsSimpleFor(std::string_view text) const {
    return syntax.is_simple &&
           std::ranges::all_of(text, [](char c) { return static_cast<unsigned char>(c) < 0x80; });
  }
};

NamePattern::NamePattern(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
NamePattern::NamePattern(NamePattern&&) noexcept = default;
NamePattern& NamePattern::operator=(NamePattern&&) noexcept = default;
NamePattern::~NamePattern() = default;

Result<NamePattern> NamePattern::Compile(std::string_view expression) {
  auto impl = std::make_unique<Impl>();
  ASSIGN_OR_RETURN(impl->syntax, TranslatePattern(expression));
  int error = 0;
  size_t offset = 0;
  const std::string& pcre = impl->syntax.pcre;
  impl->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pcre.data()), pcre.size(),
                                 PCRE2_UTF | PCRE2_UCP | PCRE2_NO_AUTO_POSSESS, &error, &offset,
                                 nullptr));
  if (impl->code == nullptr) {
    std::array<PCRE2_UCHAR, 128> message{};
    pcre2_get_error_message(error, message.data(), message.size());
    const std::string text = fmt::format("expression \"{}\": {}", expression,
                                         reinterpret_cast<const char*>(message.data()));
    return Status(error == PCRE2_ERROR_CLASS_RANGE_ORDER ? StatusCode::kInvalidArgument
                                                         : StatusCode::kUnsupported,
                  text);
  }
  size_t code_bytes = 0;
  pcre2_pattern_info(impl->code.get(), PCRE2_INFO_SIZE, &code_bytes);
  if (code_bytes > kCodeBytesMax) {
    return Unsupported("expression \"{}\": expected at most {} compiled bytes, got {}", expression,
                       kCodeBytesMax, code_bytes);
  }
  return NamePattern(std::move(impl));
}

bool NamePattern::MatchesStart(std::string_view text) const {
  return impl_->IsSimpleFor(text) ? impl_->SimplyStarts(text)
                                  : Search(impl_->code.get(), text, PCRE2_DFA_SHORTEST);
}

bool NamePattern::MatchesFully(std::string_view text) const {
  return impl_->IsSimpleFor(text)
             ? text.size() == impl_->syntax.literal.size() && impl_->SimplyStarts(text)
             : Search(impl_->code.get(), text, PCRE2_ENDANCHORED);
}

}  // namespace octavo
