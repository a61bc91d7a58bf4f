#include "octavo/text/split_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <cstddef>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/text/stand_in.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

struct FreeMatchData {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct FreeMatchContext {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

struct Match {
  size_t begin;
  size_t end;
};

// Finds matches one after the other; the scratch of one Split call.
class Matcher {
 public:
  explicit Matcher(const pcre2_code* code)
      : code_(code),
        data_(pcre2_match_data_create(/*ovecsize=*/1, nullptr)),
        context_(pcre2_match_context_create(nullptr)) {
    CHECK(data_ != nullptr);
    CHECK(context_ != nullptr);
    // The defaults give up after 10 million steps, which a long run of spaces can reach; steps are
    // bounded already, by the expressions that compile at all.
    constexpr uint32_t kNoLimit = std::numeric_limits<uint32_t>::max();
    pcre2_set_match_limit(context_.get(), kNoLimit);
    pcre2_set_depth_limit(context_.get(), kNoLimit);
    pcre2_set_heap_limit(context_.get(), kNoLimit);
  }

  // The first match at or after `from`; false when there is none. `text` is valid UTF-8.
  bool Find(std::string_view text, size_t from, Match* match) {
    int code = Run(text, from, 0);
    // The machine stack that JIT code uses by default is 32 KiB, enough for any sane expression; an
    // expression nested deeper goes to the interpreter, which uses the heap.
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) code = Run(text, from, PCRE2_NO_JIT);
    if (code == PCRE2_ERROR_NOMATCH) return false;
    // Limits are off, the text is valid and groups are not captured: what is left is memory.
    CHECK(code >= 0);
    const PCRE2_SIZE* offsets = pcre2_get_ovector_pointer(data_.get());
    *match = {offsets[0], offsets[1]};
    return true;
  }

 private:
  int Run(std::string_view text, size_t from, uint32_t options) {
    // Without NO_UTF_CHECK every call would validate the whole text, which is quadratic.
    return pcre2_match(code_, reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), from,
                       PCRE2_NO_UTF_CHECK | options, data_.get(), context_.get());
  }

  const pcre2_code* code_;
  std::unique_ptr<pcre2_match_data, FreeMatchData> data_;
  std::unique_ptr<pcre2_match_context, FreeMatchContext> context_;
};

void AppendPart(std::string_view piece, size_t begin, size_t end,
                std::vector<std::string_view>* parts) {
  if (begin < end) parts->push_back(piece.substr(begin, end - begin));
}

// `shown` is what the expression sees: `piece`, or a copy with stand-ins at the same offsets.
void SplitPiece(std::string_view piece, std::string_view shown, Matcher* matcher,
                std::vector<std::string_view>* parts) {
  size_t part_begin = 0;
  size_t from = 0;
  Match match;
  while (from <= shown.size() && matcher->Find(shown, from, &match)) {
    // As crate onig's find_iter: an empty match right behind the last match does not count; the
    // search goes on one character later. Other empty matches cut the piece.
    if (match.begin == match.end && match.end == part_begin) {
      if (match.end == shown.size()) break;
      from = match.end + ReadUtf8(shown, match.end).num_bytes;
      continue;
    }
    AppendPart(piece, part_begin, match.begin, parts);
    AppendPart(piece, match.begin, match.end, parts);
    part_begin = match.end;
    from = match.end;
  }
  AppendPart(piece, part_begin, piece.size(), parts);
}

}  // namespace

void SplitPattern::FreeCode::operator()(pcre2_real_code_8* code) const { pcre2_code_free(code); }

Result<SplitPattern> SplitPattern::Compile(std::string_view pattern) {
  ASSIGN_OR_RETURN(const std::string translated, TranslateOnigurumaPattern(pattern));
  int error = 0;
  PCRE2_SIZE offset = 0;
  Code code(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(translated.data()), translated.size(),
                          PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &offset,
                          nullptr));
  if (code == nullptr) {
    PCRE2_UCHAR message[256] = {};
    pcre2_get_error_message(error, message, sizeof(message));
    return Corrupt("pattern {}: {} (PCRE2 form {}, offset {})", pattern,
                   reinterpret_cast<const char*>(message), translated, offset);
  }
  // Without a JIT in this build of PCRE2 the interpreter does the same, slower.
  pcre2_jit_compile(code.get(), PCRE2_JIT_COMPLETE);
  return SplitPattern(std::move(code));
}

void SplitPattern::Split(std::span<const std::string_view> pieces,
                         std::vector<std::string_view>* parts) const {
  Matcher matcher(code_.get());
  std::string replaced;
  for (const std::string_view piece : pieces) {
    const bool has_stand_ins = ReplaceByStandIns(piece, &replaced);
    SplitPiece(piece, has_stand_ins ? std::string_view(replaced) : piece, &matcher, parts);
  }
}

}  // namespace octavo
