#include "octavo/text/template_parser.h"

#include <algorithm>
#include <array>
#include <cstddef>
#include <initializer_list>
#include <iterator>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/text/template_functions.h"
#include "octavo/text/template_lexer.h"
#include "octavo/text/template_value.h"

namespace octavo {
namespace {

using ExprKind = TemplateExpr::Kind;
using NodeKind = TemplateNode::Kind;
using TokenKind = TemplateToken::Kind;

// Published templates nest less than ten deep and join less than twenty operands in a row; these
// keep hostile ones off the stack, of the parser and of the evaluator.
constexpr int kDepthMax = 64;
constexpr int kExprDepthMax = 256;

class Parser {
 public:
  explicit Parser(std::vector<TemplateToken> tokens) : tokens_(std::move(tokens)) {}

  Result<std::vector<TemplateNode>> Run() {
    ASSIGN_OR_RETURN(std::vector<TemplateNode> nodes, ParseBody({}));
    if (Now().kind != TokenKind::kEnd) return Unexpected();
    if (too_deep_line_ > 0) {
      return Unsupported("line {}: an expression nested this deep is not built", too_deep_line_);
    }
    return nodes;
  }

 private:
  using Nodes = std::vector<TemplateNode>;

  const TemplateToken& Now() const { return tokens_[pos_]; }
  const TemplateToken& Next() const { return tokens_[std::min(pos_ + 1, tokens_.size() - 1)]; }

  bool At(TokenKind kind, std::string_view text) const {
    return Now().kind == kind && Now().text == text;
  }
  bool AtName(std::string_view text) const { return At(TokenKind::kName, text); }
  bool NextIsName(std::string_view text) const {
    return Next().kind == TokenKind::kName && Next().text == text;
  }
  bool AtOperator(std::string_view text) const { return At(TokenKind::kOperator, text); }

  bool Take(TokenKind kind, std::string_view text) {
    if (!At(kind, text)) return false;
    ++pos_;
    return true;
  }
  bool TakeName(std::string_view text) { return Take(TokenKind::kName, text); }
  bool TakeOperator(std::string_view text) { return Take(TokenKind::kOperator, text); }

  Status Unexpected() const {
    if (Now().kind == TokenKind::kEnd) return Corrupt("line {}: unexpected end", Now().line);
    return Corrupt("line {}: unexpected \"{}\"", Now().line, Now().text);
  }
  Status Refuse(std::string_view what) const {
    return Unsupported("line {}: {} is not built", Now().line, what);
  }

  Status ExpectOperator(std::string_view text) {
    return TakeOperator(text) ? Status() : Unexpected();
  }
  Status ExpectBlockEnd() {
    if (Now().kind != TokenKind::kBlockEnd) return Unexpected();
    ++pos_;
    return Status();
  }
  Result<std::string> ExpectName() {
    if (Now().kind != TokenKind::kName) return Unexpected();
    return tokens_[pos_++].text;
  }

  TemplateExpr Make(ExprKind kind, std::vector<TemplateExpr> args, std::string name = {}) {
    TemplateExpr expr;
    expr.kind = kind;
    expr.line = Now().line;
    expr.name = std::move(name);
    for (TemplateExpr& arg : args) AddArg(std::move(arg), &expr);
    return expr;
  }
  // An expression that is too deep is refused in the end; until then it must not grow.
  void AddArg(TemplateExpr arg, TemplateExpr* expr) {
    if (arg.depth == kExprDepthMax) {
      too_deep_line_ = arg.line;
      return;
    }
    expr->depth = std::max(expr->depth, arg.depth + 1);
    expr->args.push_back(std::move(arg));
  }
  template <typename... Exprs>
  static std::vector<TemplateExpr> Args(Exprs... exprs) {
    std::vector<TemplateExpr> args;
    args.reserve(sizeof...(exprs));
    (args.push_back(std::move(exprs)), ...);
    return args;
  }
  TemplateExpr MakeLiteral(TemplateValue value) {
    TemplateExpr expr = Make(ExprKind::kLiteral, {});
    expr.literal = std::move(value);
    return expr;
  }
  TemplateNode MakeNode(NodeKind kind) const {
    TemplateNode node;
    node.kind = kind;
    node.line = Now().line;
    return node;
  }

  // Counts how deep the calls on the stack nest.
  class Nesting {
   public:
    explicit Nesting(int* depth) : depth_(depth) { ++*depth_; }
    ~Nesting() { --*depth_; }
    Nesting(const Nesting&) = delete;
    Nesting& operator=(const Nesting&) = delete;
    bool too_deep() const { return *depth_ > kDepthMax; }

   private:
    int* depth_;
  };

  // --- Statements.

  // Up to a block that starts with one of `ends`, which is left for the caller, or to the end.
  Result<Nodes> ParseBody(std::initializer_list<std::string_view> ends) {
    const Nesting nesting(&depth_);
    if (nesting.too_deep()) return Refuse("a template nested this deep");
    Nodes nodes;
    while (Now().kind != TokenKind::kEnd) {
      if (Now().kind == TokenKind::kText) {
        nodes.push_back(MakeNode(NodeKind::kText));
        nodes.back().text = tokens_[pos_++].text;
      } else if (Now().kind == TokenKind::kOutputBegin) {
        ++pos_;
        nodes.push_back(MakeNode(NodeKind::kOutput));
        ASSIGN_OR_RETURN(TemplateExpr expr, ParseExpr());
        nodes.back().exprs.push_back(std::move(expr));
        if (Now().kind != TokenKind::kOutputEnd) return Unexpected();
        ++pos_;
      } else if (Now().kind != TokenKind::kBlockBegin) {
        return Unexpected();
      } else if (std::any_of(ends.begin(), ends.end(),
                             [this](std::string_view end) { return NextIsName(end); })) {
        return nodes;
      } else {
        RETURN_IF_ERROR(ParseStatement(&nodes));
      }
    }
    if (ends.size() > 0) return Corrupt("line {}: expected {}", Now().line, *(ends.end() - 1));
    return nodes;
  }

  Status ParseStatement(Nodes* nodes) {
    ++pos_;  // The block's begin.
    ASSIGN_OR_RETURN(const std::string keyword, ExpectName());
    if (keyword == "if") return ParseIf(nodes);
    if (keyword == "for") return ParseFor(nodes);
    if (keyword == "set") return ParseSet(nodes);
    if (keyword == "break" || keyword == "continue") {
      if (num_loops_ == 0) return Corrupt("line {}: {} outside a loop", Now().line, keyword);
      nodes->push_back(MakeNode(keyword == "break" ? NodeKind::kBreak : NodeKind::kContinue));
      return ExpectBlockEnd();
    }
    if (keyword == "generation") {  // Marks text for training; says nothing here.
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Nodes body, ParseBody({"endgeneration"}));
      std::move(body.begin(), body.end(), std::back_inserter(*nodes));
      return ExpectEndOf("endgeneration");
    }
    return Unsupported("line {}: the statement {} is not built", Now().line, keyword);
  }

  Status ExpectEndOf(std::string_view keyword) {
    ++pos_;  // The block's begin.
    if (!TakeName(keyword)) return Unexpected();
    return ExpectBlockEnd();
  }

  Status ParseIf(Nodes* nodes) {
    TemplateNode node = MakeNode(NodeKind::kIf);
    for (;;) {
      ASSIGN_OR_RETURN(TemplateExpr condition, ParseExpr());
      node.exprs.push_back(std::move(condition));
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Nodes body, ParseBody({"elif", "else", "endif"}));
      node.bodies.push_back(std::move(body));
      if (!NextIsName("elif")) break;
      pos_ += 2;
    }
    if (NextIsName("else")) {
      pos_ += 2;
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Nodes body, ParseBody({"endif"}));
      node.bodies.push_back(std::move(body));
    }
    nodes->push_back(std::move(node));
    return ExpectEndOf("endif");
  }

  Status ParseFor(Nodes* nodes) {
    TemplateNode node = MakeNode(NodeKind::kFor);
    RETURN_IF_ERROR(ParseTargets(&node.names));
    if (!TakeName("in")) return Unexpected();
    ASSIGN_OR_RETURN(TemplateExpr items, ParseOr());  // A conditional would take the filter's if.
    node.exprs.push_back(std::move(items));
    if (TakeName("if")) {
      ASSIGN_OR_RETURN(TemplateExpr filter, ParseExpr());
      node.exprs.push_back(std::move(filter));
    }
    if (AtName("recursive")) return Refuse("a recursive loop");
    RETURN_IF_ERROR(ExpectBlockEnd());
    ++num_loops_;
    ASSIGN_OR_RETURN(Nodes body, ParseBody({"else", "endfor"}));
    --num_loops_;
    node.bodies.push_back(std::move(body));
    if (NextIsName("else")) {
      pos_ += 2;
      RETURN_IF_ERROR(ExpectBlockEnd());
      ASSIGN_OR_RETURN(Nodes otherwise, ParseBody({"endfor"}));
      node.bodies.push_back(std::move(otherwise));
    }
    nodes->push_back(std::move(node));
    return ExpectEndOf("endfor");
  }

  Status ParseTargets(std::vector<std::string>* names) {
    do {
      ASSIGN_OR_RETURN(std::string name, ExpectName());
      names->push_back(std::move(name));
    } while (TakeOperator(","));
    return Status();
  }

  Status ParseSet(Nodes* nodes) {
    TemplateNode node = MakeNode(NodeKind::kSet);
    RETURN_IF_ERROR(ParseTargets(&node.names));
    if (TakeOperator(".")) {
      if (node.names.size() > 1) return Refuse("several attributes in a set");
      ASSIGN_OR_RETURN(node.text, ExpectName());
    }
    if (TakeOperator("=")) {
      ASSIGN_OR_RETURN(TemplateExpr value, ParseTupleOrExpr());
      node.exprs.push_back(std::move(value));
      nodes->push_back(std::move(node));
      return ExpectBlockEnd();
    }
    if (node.names.size() > 1 || !node.text.empty()) return Unexpected();
    if (AtOperator("|")) return Refuse("a filter of a set block");
    node.kind = NodeKind::kCapture;
    RETURN_IF_ERROR(ExpectBlockEnd());
    ASSIGN_OR_RETURN(Nodes body, ParseBody({"endset"}));
    node.bodies.push_back(std::move(body));
    nodes->push_back(std::move(node));
    return ExpectEndOf("endset");
  }

  // --- Expressions, from the loosest binding to the tightest.

  Result<TemplateExpr> ParseTupleOrExpr() {
    ASSIGN_OR_RETURN(TemplateExpr first, ParseExpr());
    if (!AtOperator(",")) return first;
    TemplateExpr tuple = Make(ExprKind::kList, {});
    AddArg(std::move(first), &tuple);
    while (TakeOperator(",")) {
      ASSIGN_OR_RETURN(TemplateExpr next, ParseExpr());
      AddArg(std::move(next), &tuple);
    }
    return tuple;
  }

  Result<TemplateExpr> ParseExpr() {
    const Nesting nesting(&depth_);
    if (nesting.too_deep()) return Refuse("an expression nested this deep");
    ASSIGN_OR_RETURN(TemplateExpr expr, ParseOr());
    while (TakeName("if")) {
      ASSIGN_OR_RETURN(TemplateExpr condition, ParseOr());
      TemplateExpr otherwise = MakeLiteral(TemplateValue());
      if (TakeName("else")) {
        ASSIGN_OR_RETURN(otherwise, ParseExpr());
      }
      expr = Make(ExprKind::kConditional,
                  Args(std::move(expr), std::move(condition), std::move(otherwise)));
    }
    return expr;
  }

  Result<TemplateExpr> ParseOr() {
    ASSIGN_OR_RETURN(TemplateExpr left, ParseAnd());
    while (TakeName("or")) {
      ASSIGN_OR_RETURN(TemplateExpr right, ParseAnd());
      left = Make(ExprKind::kOr, Args(std::move(left), std::move(right)));
    }
    return left;
  }

  Result<TemplateExpr> ParseAnd() {
    ASSIGN_OR_RETURN(TemplateExpr left, ParseNot());
    while (TakeName("and")) {
      ASSIGN_OR_RETURN(TemplateExpr right, ParseNot());
      left = Make(ExprKind::kAnd, Args(std::move(left), std::move(right)));
    }
    return left;
  }

  Result<TemplateExpr> ParseNot() {
    const Nesting nesting(&depth_);
    if (nesting.too_deep()) return Refuse("an expression nested this deep");
    if (!TakeName("not")) return ParseCompare();
    ASSIGN_OR_RETURN(TemplateExpr operand, ParseNot());
    return Make(ExprKind::kNot, Args(std::move(operand)));
  }

  // The comparison that stands here, "" for none.
  std::string TakeComparison() {
    for (const std::string_view op : {"==", "!=", "<=", ">=", "<", ">"}) {
      if (TakeOperator(op)) return std::string(op);
    }
    if (TakeName("in")) return "in";
    if (AtName("not") && NextIsName("in")) {
      pos_ += 2;
      return "not in";
    }
    return "";
  }

  Result<TemplateExpr> ParseCompare() {
    ASSIGN_OR_RETURN(TemplateExpr left, ParseBinary(0));
    const std::string op = TakeComparison();
    if (op.empty()) return left;
    ASSIGN_OR_RETURN(TemplateExpr right, ParseBinary(0));
    TemplateExpr compare = Make(ExprKind::kBinary, Args(std::move(left), std::move(right)), op);
    if (!TakeComparison().empty()) return Refuse("a chain of comparisons");
    return compare;
  }

  // Sums; then ~; then products.
  Result<TemplateExpr> ParseBinary(size_t level) {
    static constexpr std::array<std::array<std::string_view, 4>, 3> kLevels = {
        {{"+", "-"}, {"~"}, {"*", "//", "%", "/"}}};
    if (level == kLevels.size()) return ParseUnary(/*with_filter=*/true);
    ASSIGN_OR_RETURN(TemplateExpr left, ParseBinary(level + 1));
    for (;;) {
      const auto* op = std::find_if(kLevels[level].begin(), kLevels[level].end(),
                                    [this](std::string_view text) { return TakeOperator(text); });
      if (op == kLevels[level].end()) break;
      if (*op == "/") return Refuse("a division");
      ASSIGN_OR_RETURN(TemplateExpr right, ParseBinary(level + 1));
      left = Make(ExprKind::kBinary, Args(std::move(left), std::move(right)), std::string(*op));
    }
    if (AtOperator("**")) return Refuse("a power");
    return left;
  }

  // As in Jinja2, a filter applies to -x as a whole.
  Result<TemplateExpr> ParseUnary(bool with_filter) {
    const Nesting nesting(&depth_);
    if (nesting.too_deep()) return Refuse("an expression nested this deep");
    TemplateExpr expr;
    if (TakeOperator("-")) {
      ASSIGN_OR_RETURN(TemplateExpr operand, ParseUnary(/*with_filter=*/false));
      expr = Make(ExprKind::kNegate, Args(std::move(operand)));
    } else {
      ASSIGN_OR_RETURN(expr, ParsePrimary());
    }
    RETURN_IF_ERROR(ParsePostfix(&expr));
    if (with_filter) RETURN_IF_ERROR(ParseFiltersAndTests(&expr));
    return expr;
  }

  Result<TemplateExpr> ParsePrimary() {
    const TemplateToken& token = Now();
    if (token.kind == TokenKind::kName) {
      ++pos_;
      const std::string& name = token.text;
      if (name == "true" || name == "True") return MakeLiteral(TemplateValue(true));
      if (name == "false" || name == "False") return MakeLiteral(TemplateValue(false));
      if (name == "none" || name == "None") return MakeLiteral(TemplateValue::MakeNone());
      return Make(ExprKind::kName, {}, name);
    }
    if (token.kind == TokenKind::kInteger) {
      ++pos_;
      return MakeLiteral(TemplateValue(token.integer));
    }
    if (token.kind == TokenKind::kString) {
      std::string text;
      while (Now().kind == TokenKind::kString) text += tokens_[pos_++].text;
      return MakeLiteral(TemplateValue(std::move(text)));
    }
    if (TakeOperator("(")) {
      ASSIGN_OR_RETURN(TemplateExpr expr, ParseTupleOrExpr());
      RETURN_IF_ERROR(ExpectOperator(")"));
      return expr;
    }
    if (TakeOperator("[")) return ParseItems(ExprKind::kList, "]");
    if (TakeOperator("{")) return ParseItems(ExprKind::kDict, "}");
    return Unexpected();
  }

  // The items of a list or dict, behind its bracket.
  Result<TemplateExpr> ParseItems(ExprKind kind, std::string_view close) {
    TemplateExpr items = Make(kind, {});
    while (!AtOperator(close)) {
      if (!items.args.empty()) RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator(close)) break;
      ASSIGN_OR_RETURN(TemplateExpr item, ParseExpr());
      AddArg(std::move(item), &items);
      if (kind == ExprKind::kList) continue;
      RETURN_IF_ERROR(ExpectOperator(":"));
      ASSIGN_OR_RETURN(TemplateExpr value, ParseExpr());
      AddArg(std::move(value), &items);
    }
    RETURN_IF_ERROR(ExpectOperator(close));
    return items;
  }

  Status ParsePostfix(TemplateExpr* expr) {
    for (;;) {
      if (TakeOperator(".")) {
        ASSIGN_OR_RETURN(std::string name, ExpectName());
        TemplateExpr attribute =
            Make(ExprKind::kAttribute, Args(std::move(*expr)), std::move(name));
        *expr = std::move(attribute);
      } else if (TakeOperator("[")) {
        RETURN_IF_ERROR(ParseSubscript(expr));
      } else if (AtOperator("(")) {
        RETURN_IF_ERROR(ParseCall(expr));
      } else {
        return Status();
      }
    }
  }

  Status ParseSubscript(TemplateExpr* expr) {
    std::vector<TemplateExpr> parts;
    parts.push_back(std::move(*expr));
    bool is_slice = false;
    if (AtOperator("]")) return Unexpected();
    for (;;) {
      if (AtOperator(":") || AtOperator("]")) {
        parts.push_back(MakeLiteral(TemplateValue::MakeNone()));
      } else {
        ASSIGN_OR_RETURN(TemplateExpr part, ParseExpr());
        parts.push_back(std::move(part));
      }
      if (!TakeOperator(":")) break;
      is_slice = true;
    }
    RETURN_IF_ERROR(ExpectOperator("]"));
    if (parts.size() > 4) return Unexpected();
    if (is_slice && parts.size() == 3) parts.push_back(MakeLiteral(TemplateValue::MakeNone()));
    *expr = Make(is_slice ? ExprKind::kSlice : ExprKind::kItem, std::move(parts));
    return Status();
  }

  Status ParseCall(TemplateExpr* callee) {
    TemplateExpr call;
    if (callee->kind == ExprKind::kName) {
      if (!IsTemplateFunction(callee->name)) {
        return Refuse("the function " + callee->name);
      }
      call = Make(ExprKind::kCall, {}, callee->name);
    } else if (callee->kind == ExprKind::kAttribute) {
      if (!IsTemplateMethod(callee->name)) return Refuse("the method " + callee->name);
      call = Make(ExprKind::kMethod, std::move(callee->args), callee->name);
    } else {
      return Refuse("a call of this");
    }
    RETURN_IF_ERROR(ParseArguments(&call));
    *callee = std::move(call);
    return Status();
  }

  // (args, name=value): appended to the call's.
  Status ParseArguments(TemplateExpr* call) {
    RETURN_IF_ERROR(ExpectOperator("("));
    bool is_first = true;
    while (!AtOperator(")")) {
      if (!is_first) RETURN_IF_ERROR(ExpectOperator(","));
      if (AtOperator(")")) break;
      is_first = false;
      if (AtOperator("*") || AtOperator("**")) return Refuse("an argument list in an argument");
      if (Now().kind == TokenKind::kName && Next().kind == TokenKind::kOperator &&
          Next().text == "=") {
        call->keywords.push_back(Now().text);
        pos_ += 2;
      } else if (!call->keywords.empty()) {
        return Unexpected();
      }
      ASSIGN_OR_RETURN(TemplateExpr arg, ParseExpr());
      AddArg(std::move(arg), call);
    }
    return ExpectOperator(")");
  }

  Status ParseFiltersAndTests(TemplateExpr* expr) {
    for (;;) {
      if (TakeOperator("|")) {
        ASSIGN_OR_RETURN(std::string name, ExpectName());
        if (!IsTemplateFilter(name)) return Refuse("the filter " + name);
        TemplateExpr filter = Make(ExprKind::kFilter, Args(std::move(*expr)), std::move(name));
        if (AtOperator("(")) RETURN_IF_ERROR(ParseArguments(&filter));
        *expr = std::move(filter);
      } else if (TakeName("is")) {
        const bool is_negated = TakeName("not");
        ASSIGN_OR_RETURN(std::string name, ExpectName());
        if (!IsTemplateTest(name)) return Refuse("the test " + name);
        TemplateExpr test = Make(ExprKind::kTest, Args(std::move(*expr)), std::move(name));
        if (AtOperator("(")) return Refuse("an argument of a test");
        *expr = is_negated ? Make(ExprKind::kNot, Args(std::move(test))) : std::move(test);
      } else {
        return Status();
      }
    }
  }

  std::vector<TemplateToken> tokens_;
  size_t pos_ = 0;
  int depth_ = 0;
  int num_loops_ = 0;
  int too_deep_line_ = 0;  // Of an expression; 0: of none.
};

}  // namespace

Result<std::vector<TemplateNode>> ParseTemplate(std::string_view source) {
  ASSIGN_OR_RETURN(std::vector<TemplateToken> tokens, LexTemplate(source));
  return Parser(std::move(tokens)).Run();
}

}  // namespace octavo
