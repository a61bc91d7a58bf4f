#include "octavo/text/template_evaluator.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <ctime>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/text/python_text.h"
#include "octavo/text/template_functions.h"
#include "octavo/text/template_parser.h"
#include "octavo/text/template_value.h"

namespace octavo {
namespace {

using ExprKind = TemplateExpr::Kind;
using NodeKind = TemplateNode::Kind;
using Value = TemplateValue;

// Published templates take about 20 steps a message.
constexpr size_t kTextBytesMax = size_t{256} << 20;
constexpr int64_t kStepsMax = 4'000'000;

Status WrongOperands(std::string_view op, const Value& left, const Value& right) {
  for (const Value* value : {&left, &right}) {
    if (value->undefined() != nullptr) {
      return InvalidArgument("{} is undefined", value->undefined()->name);
    }
  }
  return InvalidArgument("{} {} {} is not built", left.KindName(), op, right.KindName());
}

// Python's floor division and its remainder. Empty beyond 64 bits or by zero.
std::optional<int64_t> FloorArithmetic(std::string_view op, int64_t left, int64_t right) {
  if (right == 0 || (left == INT64_MIN && right == -1)) return std::nullopt;
  const int64_t remainder = left % right;
  const bool rounds_down = remainder != 0 && (remainder < 0) != (right < 0);
  if (op == "%") return rounds_down ? remainder + right : remainder;
  return left / right - (rounds_down ? 1 : 0);
}

std::optional<int64_t> IntegerArithmetic(std::string_view op, int64_t left, int64_t right) {
  int64_t result = 0;
  if (op == "+") {
    if (__builtin_add_overflow(left, right, &result)) return std::nullopt;
  } else if (op == "-") {
    if (__builtin_sub_overflow(left, right, &result)) return std::nullopt;
  } else if (op == "*") {
    if (__builtin_mul_overflow(left, right, &result)) return std::nullopt;
  } else {
    return FloorArithmetic(op, left, right);
  }
  return result;
}

Result<Value> Join(std::string_view left, std::string_view right) {
  if (left.size() + right.size() > kTextBytesMax) {
    return Unsupported("more than {} bytes of text", kTextBytesMax);
  }
  return Value(std::string(left).append(right));
}

Result<Value> Arithmetic(std::string_view op, const Value& left, const Value& right) {
  if (op == "~") {
    ASSIGN_OR_RETURN(const std::string text, TextOf(left));
    ASSIGN_OR_RETURN(const std::string tail, TextOf(right));
    return Join(text, tail);
  }
  if (left.integer() != nullptr && right.integer() != nullptr) {
    const std::optional<int64_t> result = IntegerArithmetic(op, *left.integer(), *right.integer());
    if (!result.has_value()) {
      return InvalidArgument("{} {} {}: no int of 64 bits", *left.integer(), op, *right.integer());
    }
    return Value(*result);
  }
  if (op == "+" && left.string() != nullptr && right.string() != nullptr) {
    return Join(*left.string(), *right.string());
  }
  if (op == "+" && left.list() != nullptr && right.list() != nullptr) {
    Value::List joined = *left.list();
    joined.insert(joined.end(), right.list()->begin(), right.list()->end());
    return Value(std::move(joined));
  }
  return WrongOperands(op, left, right);
}

Result<bool> IsIn(const Value& left, const Value& right) {
  if (right.string() != nullptr) {
    if (left.string() == nullptr) return WrongOperands("in", left, right);
    return right.string()->find(*left.string()) != std::string::npos;
  }
  if (right.dict() != nullptr && right.namespace_fields() == nullptr) {
    return left.string() != nullptr && FindEntry(*right.dict(), *left.string()) != nullptr;
  }
  if (right.undefined() != nullptr) return false;
  if (right.list() == nullptr) return WrongOperands("in", left, right);
  return std::any_of(right.list()->begin(), right.list()->end(),
                     [&left](const Value& item) { return item.Equals(left); });
}

Result<Value> Compare(std::string_view op, const Value& left, const Value& right) {
  if (op == "==") return Value(left.Equals(right));
  if (op == "!=") return Value(!left.Equals(right));
  if (op == "in" || op == "not in") {
    ASSIGN_OR_RETURN(const bool is_in, IsIn(left, right));
    return Value(is_in == (op == "in"));
  }
  int order = 0;
  if (left.integer() != nullptr && right.integer() != nullptr) {
    order = *left.integer() < *right.integer() ? -1 : *left.integer() > *right.integer() ? 1 : 0;
  } else if (left.string() != nullptr && right.string() != nullptr) {
    order = left.string()->compare(*right.string());  // Bytes of UTF-8 order as code points do.
  } else {
    return WrongOperands(op, left, right);
  }
  const bool equal_counts = op.size() == 2;
  return Value(order == 0 ? equal_counts : (op[0] == '<') == (order < 0));
}

// Indices of a Python slice.
Result<std::vector<size_t>> SliceIndices(int64_t size, const std::vector<Value>& bounds) {
  for (const Value& bound : bounds) {
    if (bound.integer() == nullptr && !bound.is_none()) {
      return InvalidArgument("a slice by {}", bound.KindName());
    }
  }
  const int64_t step = bounds[2].integer() == nullptr ? 1 : *bounds[2].integer();
  if (step == 0) return InvalidArgument("a slice with step 0");
  // A bound from the end, then into the range that the direction allows.
  const auto clamp = [&](const Value& bound, int64_t when_absent) {
    if (bound.integer() == nullptr) return when_absent;
    const int64_t idx = *bound.integer() < 0 ? *bound.integer() + size : *bound.integer();
    return std::clamp<int64_t>(idx, step > 0 ? 0 : -1, step > 0 ? size : size - 1);
  };
  const int64_t begin = clamp(bounds[0], step > 0 ? 0 : size - 1);
  const int64_t end = clamp(bounds[1], step > 0 ? size : -1);
  std::vector<size_t> indices;
  // A step beyond the size takes one item at most; bounded, it cannot overflow.
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  for (int64_t idx = begin; step > 0 ? idx < end : idx > end; idx += stride) {
    indices.push_back(static_cast<size_t>(idx));
  }
  return indices;
}

Result<Value> Slice(const Value& object, const std::vector<Value>& bounds) {
  if (object.list() != nullptr) {
    ASSIGN_OR_RETURN(const std::vector<size_t> indices,
                     SliceIndices(static_cast<int64_t>(object.list()->size()), bounds));
    Value::List items;
    for (const size_t idx : indices) items.push_back((*object.list())[idx]);
    return Value(std::move(items));
  }
  if (object.string() == nullptr) {
    if (object.undefined() != nullptr) {
      return InvalidArgument("{} is undefined", object.undefined()->name);
    }
    return InvalidArgument("a slice of {}", object.KindName());
  }
  const std::vector<std::string_view> points = CodePoints(*object.string());
  ASSIGN_OR_RETURN(const std::vector<size_t> indices,
                   SliceIndices(static_cast<int64_t>(points.size()), bounds));
  std::string text;
  for (const size_t idx : indices) text += points[idx];
  return Value(std::move(text));
}

// object[key], or undefined.
Result<Value> ItemOf(const Value& object, const Value& key) {
  if (object.undefined() != nullptr) {
    return InvalidArgument("{} is undefined", object.undefined()->name);
  }
  if (object.dict() != nullptr && key.string() != nullptr) {
    const Value* found = FindEntry(*object.dict(), *key.string());
    return found != nullptr ? *found : Value::MakeUndefined(*key.string());
  }
  if (key.integer() == nullptr) return Value::MakeUndefined("an item");
  const auto pick = [&key](const auto& items, auto make) {
    const auto size = static_cast<int64_t>(items.size());
    const int64_t idx = *key.integer() < 0 ? *key.integer() + size : *key.integer();
    return idx < 0 || idx >= size ? Value::MakeUndefined(fmt::format("item {}", *key.integer()))
                                  : make(items[static_cast<size_t>(idx)]);
  };
  if (object.list() != nullptr) {
    return pick(*object.list(), [](const Value& item) { return item; });
  }
  if (object.string() != nullptr) {
    return pick(CodePoints(*object.string()),
                [](std::string_view point) { return Value(std::string(point)); });
  }
  return Value::MakeUndefined("an item");
}

class Evaluator {
 public:
  Evaluator(Value::Dict variables, const std::optional<std::tm>& now) : now_(now) {
    scopes_.push_back(std::move(variables));
  }
  // A namespace may hold itself.
  ~Evaluator() {
    for (const Value& value : namespaces_) value.namespace_fields()->clear();
  }
  Evaluator(const Evaluator&) = delete;
  Evaluator& operator=(const Evaluator&) = delete;

  Result<std::string> Run(const std::vector<TemplateNode>& nodes) {
    ASSIGN_OR_RETURN([[maybe_unused]] const Flow flow, RunNodes(nodes));
    return std::move(out_);
  }

 private:
  enum class Flow { kNext, kBreak, kContinue };

  Result<Flow> RunNodes(const std::vector<TemplateNode>& nodes) {
    for (const TemplateNode& node : nodes) {
      ASSIGN_OR_RETURN(const Flow flow, RunNode(node));
      if (flow != Flow::kNext) return flow;
    }
    return Flow::kNext;
  }

  Result<Flow> RunNode(const TemplateNode& node) {
    if (++num_steps_ > kStepsMax) {
      return Unsupported("line {}: more than {} steps", node.line, kStepsMax);
    }
    switch (node.kind) {
      case NodeKind::kText:
        RETURN_IF_ERROR(PutOut(node.text));
        return Flow::kNext;
      case NodeKind::kOutput: {
        ASSIGN_OR_RETURN(const Value value, EvalAtLine(node.exprs[0]));
        const Result<std::string> text = TextOf(value);
        if (!text.has_value()) return AtLine(node.line, text.error());
        RETURN_IF_ERROR(PutOut(*text));
        return Flow::kNext;
      }
      case NodeKind::kIf:
        return RunIf(node);
      case NodeKind::kFor:
        return RunFor(node);
      case NodeKind::kSet: {
        ASSIGN_OR_RETURN(Value value, EvalAtLine(node.exprs[0]));
        RETURN_IF_ERROR(Assign(node, std::move(value)));
        return Flow::kNext;
      }
      case NodeKind::kCapture:
        return RunCapture(node);
      case NodeKind::kBreak:
        return Flow::kBreak;
      case NodeKind::kContinue:
        break;
    }
    return Flow::kContinue;
  }

  Status PutOut(std::string_view text) {
    if (out_.size() + text.size() > kTextBytesMax) {
      return Unsupported("more than {} bytes of text", kTextBytesMax);
    }
    out_ += text;
    return Status();
  }

  Result<Flow> RunIf(const TemplateNode& node) {
    for (size_t i = 0; i < node.exprs.size(); ++i) {
      ASSIGN_OR_RETURN(const Value condition, EvalAtLine(node.exprs[i]));
      if (condition.IsTrue()) return RunNodes(node.bodies[i]);
    }
    return node.bodies.size() > node.exprs.size() ? RunNodes(node.bodies.back()) : Flow::kNext;
  }

  Result<Flow> RunCapture(const TemplateNode& node) {
    std::string outside = std::exchange(out_, {});
    scopes_.emplace_back();
    ASSIGN_OR_RETURN(const Flow flow, RunNodes(node.bodies[0]));
    scopes_.pop_back();
    std::string captured = std::exchange(out_, std::move(outside));
    SetEntry(node.names[0], Value(std::move(captured)), &scopes_.back());
    return flow;
  }

  // A failure ends the whole rendering, so scopes need no unwinding then.
  Result<Flow> RunFor(const TemplateNode& node) {
    ASSIGN_OR_RETURN(const Value iterable, EvalAtLine(node.exprs[0]));
    ASSIGN_OR_RETURN(Value::List items, ItemsOf(iterable));
    if (node.exprs.size() > 1) {
      Value::List selected;
      for (Value& item : items) {
        scopes_.emplace_back();
        RETURN_IF_ERROR(AssignNames(node, item));
        ASSIGN_OR_RETURN(const Value condition, EvalAtLine(node.exprs[1]));
        scopes_.pop_back();
        if (condition.IsTrue()) selected.push_back(std::move(item));
      }
      items = std::move(selected);
    }
    num_steps_ += static_cast<int64_t>(items.size());
    for (size_t i = 0; i < items.size(); ++i) {
      scopes_.emplace_back();
      SetEntry("loop", LoopAt(items, i), &scopes_.back());
      RETURN_IF_ERROR(AssignNames(node, items[i]));
      ASSIGN_OR_RETURN(const Flow flow, RunNodes(node.bodies[0]));
      scopes_.pop_back();
      if (flow == Flow::kBreak) break;
    }
    return items.empty() && node.bodies.size() > 1 ? RunNodes(node.bodies[1]) : Flow::kNext;
  }

  static Value LoopAt(const Value::List& items, size_t idx) {
    const auto number = static_cast<int64_t>(idx);
    const auto size = static_cast<int64_t>(items.size());
    Value::Dict loop;
    loop.reserve(9);
    loop.emplace_back("index", Value(number + 1));
    loop.emplace_back("index0", Value(number));
    loop.emplace_back("revindex", Value(size - number));
    loop.emplace_back("revindex0", Value(size - number - 1));
    loop.emplace_back("first", Value(idx == 0));
    loop.emplace_back("last", Value(number + 1 == size));
    loop.emplace_back("length", Value(size));
    if (idx > 0) loop.emplace_back("previtem", items[idx - 1]);
    if (idx + 1 < items.size()) loop.emplace_back("nextitem", items[idx + 1]);
    return Value(std::move(loop));
  }

  Status Assign(const TemplateNode& node, Value value) {
    if (node.text.empty()) return AssignNames(node, value);
    const Value target = Lookup(node.names[0]);
    if (target.namespace_fields() == nullptr) {
      return InvalidArgument("line {}: {} is no namespace", node.line, node.names[0]);
    }
    SetEntry(node.text, std::move(value), target.namespace_fields());
    return Status();
  }

  // To one name, or of a list to several.
  Status AssignNames(const TemplateNode& node, const Value& value) {
    if (node.names.size() == 1) {
      SetEntry(node.names[0], value, &scopes_.back());
      return Status();
    }
    ASSIGN_OR_RETURN(const Value::List items, ItemsOf(value));
    if (items.size() != node.names.size()) {
      return InvalidArgument("line {}: expected {} values, got {}", node.line, node.names.size(),
                             items.size());
    }
    for (size_t i = 0; i < node.names.size(); ++i) {
      SetEntry(node.names[i], items[i], &scopes_.back());
    }
    return Status();
  }

  Value Lookup(const std::string& name) const {
    for (size_t i = scopes_.size(); i > 0; --i) {
      if (const Value* found = FindEntry(scopes_[i - 1], name)) return *found;
    }
    return Value::MakeUndefined(name);
  }

  Result<Value> EvalAtLine(const TemplateExpr& expr) {
    Result<Value> value = Eval(expr);
    if (!value.has_value()) return AtLine(expr.line, value.error());
    return value;
  }

  static Status AtLine(int line, const Status& status) {
    return status.WithContext(fmt::format("line {}", line));
  }

  Result<Value> Eval(const TemplateExpr& expr) {
    switch (expr.kind) {
      case ExprKind::kLiteral:
        return expr.literal;
      case ExprKind::kName:
        return Lookup(expr.name);
      case ExprKind::kConditional: {
        ASSIGN_OR_RETURN(const Value condition, Eval(expr.args[1]));
        return Eval(expr.args[condition.IsTrue() ? 0 : 2]);
      }
      case ExprKind::kAnd:
      case ExprKind::kOr: {
        ASSIGN_OR_RETURN(Value left, Eval(expr.args[0]));
        if (left.IsTrue() == (expr.kind == ExprKind::kOr)) return left;
        return Eval(expr.args[1]);
      }
      default:
        break;
    }
    TemplateArguments args;
    for (const TemplateExpr& arg : expr.args) {
      ASSIGN_OR_RETURN(Value value, Eval(arg));
      args.values.push_back(std::move(value));
    }
    args.keywords = expr.keywords;
    return Apply(expr, std::move(args));
  }

  // What takes the values of all its operands.
  Result<Value> Apply(const TemplateExpr& expr, TemplateArguments args) {
    std::vector<Value>& values = args.values;
    switch (expr.kind) {
      case ExprKind::kList:
        return Value(std::move(values));
      case ExprKind::kDict:
        return MakeDict(values);
      case ExprKind::kAttribute:
        return ItemOf(values[0], Value(expr.name));
      case ExprKind::kItem:
        return ItemOf(values[0], values[1]);
      case ExprKind::kSlice:
        return Slice(values[0], {values[1], values[2], values[3]});
      case ExprKind::kCall: {
        Result<Value> value = CallTemplateFunction(expr.name, args, now_);
        if (value.has_value() && value->namespace_fields() != nullptr) {
          namespaces_.push_back(*value);
        }
        return value;
      }
      case ExprKind::kMethod:
        return CallTemplateMethod(expr.name, args);
      case ExprKind::kFilter:
        return ApplyTemplateFilter(expr.name, args);
      case ExprKind::kTest:
        return Value(TestTemplateValue(expr.name, values[0]));
      case ExprKind::kNot:
        return Value(!values[0].IsTrue());
      case ExprKind::kNegate:
        return Arithmetic("-", Value(int64_t{0}), values[0]);
      default:
        break;
    }
    CHECK(expr.kind == ExprKind::kBinary);
    const bool compares = std::string_view("=!<>in").find(expr.name[0]) != std::string::npos;
    return compares ? Compare(expr.name, values[0], values[1])
                    : Arithmetic(expr.name, values[0], values[1]);
  }

  static Result<Value> MakeDict(const std::vector<Value>& values) {
    Value::Dict dict;
    for (size_t i = 0; i + 1 < values.size(); i += 2) {
      if (values[i].string() == nullptr) {
        return Unsupported("a dict with {} as a key is not built", values[i].KindName());
      }
      SetEntry(*values[i].string(), values[i + 1], &dict);
    }
    return Value(std::move(dict));
  }

  const std::optional<std::tm>& now_;
  std::vector<Value::Dict> scopes_;  // The innermost last.
  std::vector<Value> namespaces_;    // All that were made.
  int64_t num_steps_ = 0;
  std::string out_;
};

}  // namespace

Result<std::string> RenderTemplate(const std::vector<TemplateNode>& nodes,
                                   TemplateValue::Dict variables,
                                   const std::optional<std::tm>& now) {
  return Evaluator(std::move(variables), now).Run(nodes);
}

}  // namespace octavo
