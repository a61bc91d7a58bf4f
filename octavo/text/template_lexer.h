#pragma once
// The tokens of a chat template, as Jinja2 3.1 reads them with the options of HF transformers:
// trim_blocks and lstrip_blocks on, one newline at the end of the source dropped
// (utils/chat_template_utils.py; jinja2/lexer.py).

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

struct TemplateToken {
  enum class Kind {
    kText,  // Between tags; `text` is what goes out.
    kOutputBegin,
    kOutputEnd,
    kBlockBegin,
    kBlockEnd,
    kName,
    kString,  // `text` is unescaped.
    kInteger,
    kOperator,
    kEnd,
  };

  Kind kind = Kind::kEnd;
  std::string text;
  int64_t integer = 0;
  int line = 1;  // From 1.
};

// `source` is UTF-8. The last token is kEnd.
// Errors: kCorrupt (a tag or string that does not end, an unknown character), kUnsupported (a
// float, an escape that is not built). Both name the line.
Result<std::vector<TemplateToken>> LexTemplate(std::string_view source);

}  // namespace octavo
