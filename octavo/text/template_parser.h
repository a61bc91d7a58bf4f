#pragma once
// The syntax tree of a chat template: the part of Jinja2 3.1 that the templates of Qwen, Llama and
// DeepSeek models are written in. What is not built is refused here, by name and line, so that a
// template that parses can be rendered.
//
// Statements: if, for, set, break, continue, generation. Not built: macro, call, filter blocks,
// include and the like, raw.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_value.h"

namespace octavo {

struct TemplateExpr {
  enum class Kind {
    kLiteral,
    kName,         // name
    kList,         // args
    kDict,         // args: key, value, key, value, ...
    kAttribute,    // args[0].name
    kItem,         // args[0][args[1]]
    kSlice,        // args[0][args[1]:args[2]:args[3]]; none for one left out
    kCall,         // name(args)
    kMethod,       // args[0].name(args[1], ...)
    kFilter,       // args[0] | name(args[1], ...)
    kTest,         // args[0] is name(args[1], ...)
    kNot,          // not args[0]
    kNegate,       // -args[0]
    kAnd,          // args[0] and args[1]
    kOr,           // args[0] or args[1]
    kBinary,       // args[0] name args[1]: arithmetic, ~, comparisons, in
    kConditional,  // args[0] if args[1] else args[2]
  };

  Kind kind = Kind::kLiteral;
  int line = 0;
  int depth = 0;  // Of the tree below it; the parser bounds it.
  std::string name;
  TemplateValue literal;
  std::vector<TemplateExpr> args;
  std::vector<std::string> keywords;  // Names of the last keywords.size() args.
};

struct TemplateNode {
  enum class Kind {
    kText,     // text
    kOutput,   // {{ exprs[0] }}
    kIf,       // bodies[i] where exprs[i]; one body more is the else
    kFor,      // for names in exprs[0] (if exprs[1]): bodies[0]; bodies[1] is the else
    kSet,      // names = exprs[0]; text is not empty: names[0].text = exprs[0]
    kCapture,  // names[0] = what bodies[0] puts out
    kBreak,
    kContinue,
  };

  Kind kind = Kind::kText;
  int line = 0;
  std::string text;
  std::vector<std::string> names;
  std::vector<TemplateExpr> exprs;
  std::vector<std::vector<TemplateNode>> bodies;
};

// Errors: kCorrupt (syntax), kUnsupported (what is not built); both name the line.
Result<std::vector<TemplateNode>> ParseTemplate(std::string_view source);

}  // namespace octavo
