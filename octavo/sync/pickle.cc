#include "octavo/sync/pickle.h"

#include <fmt/format.h>

#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"

namespace octavo {
namespace {

constexpr int kProtocolMin = 2;
constexpr int kProtocolMax = 5;

bool IsLatin1(std::string_view encoding) {
  return encoding == "latin1" || encoding == "latin-1" || encoding == "iso-8859-1";
}

// The bytes whose Latin-1 text is `text`, in UTF-8: how protocol 2 spells bytes.
Result<std::string> EncodeLatin1(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    const auto lead = static_cast<unsigned char>(text[i]);
    if (lead < 0x80) {
      bytes += text[i];
      continue;
    }
    const bool is_pair = (lead == 0xC2 || lead == 0xC3) && i + 1 < text.size() &&
                         (static_cast<unsigned char>(text[i + 1]) & 0xC0) == 0x80;
    if (!is_pair) {
      return Corrupt("_codecs.encode: expected a text of Latin-1 characters");
    }
    ++i;
    bytes += static_cast<char>(((lead & 0x03) << 6) | (static_cast<unsigned char>(text[i]) & 0x3F));
  }
  return bytes;
}

}  // namespace

std::string_view PickleKindName(PickleKind kind) {
  constexpr std::array<std::string_view, 13> kNames = {
      "None",  "bool", "int",  "long int", "float", "str",          "bytes",
      "tuple", "list", "dict", "global",   "call",  "persistent id"};
  return kNames[static_cast<size_t>(kind)];
}

std::string Printable(std::string_view text) {
  constexpr size_t kBytesMax = 80;
  std::string out;
  for (const char c : text.substr(0, kBytesMax)) {
    out += c >= ' ' && c <= '~' ? c : '?';
  }
  return text.size() > kBytesMax ? out + "..." : out;
}

// The machine that a pickle is a program of. One use.
class PickleReader {
 public:
  PickleReader(std::string_view bytes, const PickleOptions& options)
      : bytes_(bytes), options_(options) {}

  Result<PickleTree> Read();

 private:
  using Handler = Status (*)(PickleReader& reader);
  struct Opcode {
    unsigned char code;
    Handler run;
  };
  static std::span<const Opcode> Opcodes();
  static std::array<Handler, 256> HandlersByCode();

  // --- Input ---
  Result<std::string_view> Take(uint64_t num_bytes);
  Result<uint64_t> TakeUint(size_t num_bytes);  // Little-endian.
  Result<std::string_view> TakeCounted(size_t count_bytes);
  Result<std::string_view> TakeLine();

  // --- Stack ---
  Result<uint32_t> Pop();
  Result<uint32_t> Top(PickleKind kind);
  Result<std::vector<uint32_t>> PopToMark();
  Result<std::vector<uint32_t>> PopItems(size_t count);
  Status Push(PickleNode node);
  Status PushInt(int64_t value) { return Push({.kind = PickleKind::kInt, .integer = value}); }
  Status PushUint(size_t num_bytes);
  Status PushText(PickleKind kind, size_t count_bytes);
  Status PushLong(size_t count_bytes);
  Status PushGlobal(std::string_view module, std::string_view name);
  Status PushCall(uint32_t callable, uint32_t arguments);
  Status PushEncoded(const PickleNode& arguments);
  Status Extend(PickleKind kind, const std::vector<uint32_t>& items);
  Status PushMemo(uint64_t idx);
  Status Memoize(uint64_t idx);

  // --- Opcodes that do more than one of these ---
  Status Proto();
  Status Frame();
  Status Mark();
  Status BinInt();
  Status BinFloat();
  Status Tuple();
  Status TupleOf(size_t count);
  Status SetItem();
  Status SetItems();
  Status Append();
  Status Appends();
  Status Global();
  Status StackGlobal();
  Status Reduce();
  Status Build();
  Status BinPersistent();
  Status Get(size_t num_bytes);
  Status Put(size_t num_bytes);

  const std::string_view bytes_;
  const PickleOptions& options_;
  size_t at_ = 0;
  std::vector<uint32_t> stack_;
  std::vector<size_t> marks_;  // Heights of the stack.
  std::vector<uint32_t> memo_;
  PickleTree tree_;
};

// --- Input ---

Result<std::string_view> PickleReader::Take(uint64_t num_bytes) {
  if (num_bytes > bytes_.size() - at_) {
    return Corrupt("expected {} more bytes, got {}", num_bytes, bytes_.size() - at_);
  }
  const std::string_view taken = bytes_.substr(at_, num_bytes);
  at_ += num_bytes;
  return taken;
}

Result<uint64_t> PickleReader::TakeUint(size_t num_bytes) {
  ASSIGN_OR_RETURN(const std::string_view taken, Take(num_bytes));
  uint64_t value = 0;
  for (size_t i = 0; i < num_bytes; ++i) {
    value |= uint64_t{static_cast<unsigned char>(taken[i])} << (8 * i);
  }
  return value;
}

Result<std::string_view> PickleReader::TakeCounted(size_t count_bytes) {
  ASSIGN_OR_RETURN(const uint64_t count, TakeUint(count_bytes));
  return Take(count);
}

Result<std::string_view> PickleReader::TakeLine() {
  const size_t end = bytes_.find('\n', at_);
  if (end == std::string_view::npos) {
    return Corrupt("expected a line, got no end of it");
  }
  const std::string_view line = bytes_.substr(at_, end - at_);
  at_ = end + 1;
  return line;
}

// --- Stack ---

Result<uint32_t> PickleReader::Pop() {
  if (stack_.size() <= (marks_.empty() ? 0 : marks_.back())) {
    return Corrupt("expected a value on the stack, got none");
  }
  const uint32_t top = stack_.back();
  stack_.pop_back();
  return top;
}

Result<uint32_t> PickleReader::Top(PickleKind kind) {
  ASSIGN_OR_RETURN(const uint32_t top, Pop());
  stack_.push_back(top);
  if (tree_.nodes_[top].kind != kind) {
    return Corrupt("expected a {} on the stack, got a {}", PickleKindName(kind),
                   PickleKindName(tree_.nodes_[top].kind));
  }
  return top;
}

Result<std::vector<uint32_t>> PickleReader::PopItems(size_t count) {
  if (stack_.size() - (marks_.empty() ? 0 : marks_.back()) < count) {
    return Corrupt("expected {} values on the stack, got less", count);
  }
  const auto first = stack_.end() - static_cast<std::ptrdiff_t>(count);
  std::vector<uint32_t> items(first, stack_.end());
  stack_.erase(first, stack_.end());
  return items;
}

Result<std::vector<uint32_t>> PickleReader::PopToMark() {
  if (marks_.empty()) {
    return Corrupt("expected a MARK on the stack, got none");
  }
  ASSIGN_OR_RETURN(std::vector<uint32_t> items, PopItems(stack_.size() - marks_.back()));
  marks_.pop_back();
  return items;
}

Status PickleReader::Push(PickleNode node) {
  if (tree_.nodes_.size() >= options_.num_nodes_max) {
    return Exhausted("more than {} values", options_.num_nodes_max);
  }
  stack_.push_back(static_cast<uint32_t>(tree_.nodes_.size()));
  tree_.nodes_.push_back(std::move(node));
  return OkStatus();
}

Status PickleReader::PushUint(size_t num_bytes) {
  ASSIGN_OR_RETURN(const uint64_t value, TakeUint(num_bytes));
  return PushInt(static_cast<int64_t>(value));
}

Status PickleReader::PushText(PickleKind kind, size_t count_bytes) {
  ASSIGN_OR_RETURN(const std::string_view text, TakeCounted(count_bytes));
  return Push({.kind = kind, .text = text});
}

// Two's complement of any length.
Status PickleReader::PushLong(size_t count_bytes) {
  ASSIGN_OR_RETURN(const std::string_view text, TakeCounted(count_bytes));
  if (text.size() > sizeof(int64_t)) {
    return Push({.kind = PickleKind::kLong, .text = text});
  }
  uint64_t value = !text.empty() && (text.back() & 0x80) != 0 ? ~uint64_t{0} : 0;
  for (size_t i = text.size(); i-- > 0;) {
    value = (value << 8) | static_cast<unsigned char>(text[i]);
  }
  return PushInt(static_cast<int64_t>(value));
}

Status PickleReader::PushGlobal(std::string_view module, std::string_view name) {
  RETURN_IF_ERROR(options_.check_global(module, name));
  return Push({.kind = PickleKind::kGlobal, .text = name, .module = module});
}

Status PickleReader::PushEncoded(const PickleNode& arguments) {
  const bool is_latin1 = arguments.items.size() == 2 &&
                         tree_.item(arguments, 0).kind == PickleKind::kString &&
                         tree_.item(arguments, 1).kind == PickleKind::kString &&
                         IsLatin1(tree_.item(arguments, 1).text);
  if (!is_latin1) {
    return Corrupt("_codecs.encode: expected a str and \"latin1\"");
  }
  ASSIGN_OR_RETURN(std::string encoded, EncodeLatin1(tree_.item(arguments, 0).text));
  tree_.owned_.push_back(std::move(encoded));
  return Push({.kind = PickleKind::kBytes, .text = tree_.owned_.back()});
}

Status PickleReader::PushCall(uint32_t callable, uint32_t arguments) {
  const PickleNode& global = tree_.nodes_[callable];
  if (global.kind != PickleKind::kGlobal) {
    return Corrupt("expected a global to call, got a {}", PickleKindName(global.kind));
  }
  if (tree_.nodes_[arguments].kind != PickleKind::kTuple) {
    return Corrupt("{}.{}: expected a tuple of arguments, got a {}", Printable(global.module),
                   Printable(global.text), PickleKindName(tree_.nodes_[arguments].kind));
  }
  if (global.module == "_codecs" && global.text == "encode") {
    return PushEncoded(tree_.nodes_[arguments]);
  }
  return Push({.kind = PickleKind::kCall, .items = {callable, arguments}});
}

// Adds to the container on top of the stack.
Status PickleReader::Extend(PickleKind kind, const std::vector<uint32_t>& items) {
  ASSIGN_OR_RETURN(const uint32_t top, Top(kind));
  if (kind == PickleKind::kDict && items.size() % 2 != 0) {
    return Corrupt("expected keys with values, got {} items", items.size());
  }
  std::vector<uint32_t>& held = tree_.nodes_[top].items;
  held.insert(held.end(), items.begin(), items.end());
  return OkStatus();
}

Status PickleReader::PushMemo(uint64_t idx) {
  if (idx >= memo_.size()) {
    return Corrupt("memo {}: nothing was put there", idx);
  }
  stack_.push_back(memo_[idx]);
  return OkStatus();
}

// Picklers number what they keep from 0 on without gaps, so a memo never outgrows the values.
Status PickleReader::Memoize(uint64_t idx) {
  ASSIGN_OR_RETURN(const uint32_t top, Pop());
  stack_.push_back(top);
  if (idx > memo_.size()) {
    return Unsupported("memo {}: expected at most {}, the next free one", idx, memo_.size());
  }
  if (idx == memo_.size()) {
    memo_.push_back(top);
  }
  memo_[idx] = top;
  return OkStatus();
}

// --- Opcodes ---

Status PickleReader::Proto() {
  ASSIGN_OR_RETURN(const uint64_t version, TakeUint(1));
  if (version < kProtocolMin || version > kProtocolMax) {
    return Unsupported("protocol: expected {} to {}, got {}", kProtocolMin, kProtocolMax, version);
  }
  return OkStatus();
}

// Frames only say how to read ahead.
Status PickleReader::Frame() {
  ASSIGN_OR_RETURN(const uint64_t num_bytes, TakeUint(8));
  return num_bytes <= bytes_.size() - at_ ? OkStatus()
                                          : Corrupt("a frame of {} bytes, of which {} are there",
                                                    num_bytes, bytes_.size() - at_);
}

Status PickleReader::Mark() {
  if (marks_.size() >= options_.num_marks_max) {
    return Exhausted("containers nested more than {} deep", options_.num_marks_max);
  }
  marks_.push_back(stack_.size());
  return OkStatus();
}

Status PickleReader::BinInt() {
  ASSIGN_OR_RETURN(const uint64_t bits, TakeUint(4));
  return PushInt(static_cast<int32_t>(static_cast<uint32_t>(bits)));
}

Status PickleReader::BinFloat() {
  ASSIGN_OR_RETURN(const std::string_view text, Take(8));
  uint64_t bits = 0;
  for (const char c : text) {
    bits = (bits << 8) | static_cast<unsigned char>(c);
  }
  return Push({.kind = PickleKind::kFloat, .real = std::bit_cast<double>(bits)});
}

Status PickleReader::Tuple() {
  ASSIGN_OR_RETURN(std::vector<uint32_t> items, PopToMark());
  return Push({.kind = PickleKind::kTuple, .items = std::move(items)});
}

Status PickleReader::TupleOf(size_t count) {
  ASSIGN_OR_RETURN(std::vector<uint32_t> items, PopItems(count));
  return Push({.kind = PickleKind::kTuple, .items = std::move(items)});
}

Status PickleReader::SetItem() {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopItems(2));
  return Extend(PickleKind::kDict, items);
}

Status PickleReader::SetItems() {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopToMark());
  return Extend(PickleKind::kDict, items);
}

Status PickleReader::Append() {
  ASSIGN_OR_RETURN(const uint32_t item, Pop());
  return Extend(PickleKind::kList, {item});
}

Status PickleReader::Appends() {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopToMark());
  return Extend(PickleKind::kList, items);
}

Status PickleReader::Global() {
  ASSIGN_OR_RETURN(const std::string_view module, TakeLine());
  ASSIGN_OR_RETURN(const std::string_view name, TakeLine());
  return PushGlobal(module, name);
}

Status PickleReader::StackGlobal() {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopItems(2));
  for (const uint32_t idx : items) {
    if (tree_.nodes_[idx].kind != PickleKind::kString) {
      return Corrupt("expected the name of a global, got a {}",
                     PickleKindName(tree_.nodes_[idx].kind));
    }
  }
  return PushGlobal(tree_.nodes_[items[0]].text, tree_.nodes_[items[1]].text);
}

// REDUCE, and NEWOBJ for a class whose constructor takes the arguments.
Status PickleReader::Reduce() {
  ASSIGN_OR_RETURN(const std::vector<uint32_t> items, PopItems(2));
  return PushCall(items[0], items[1]);
}

Status PickleReader::Build() {
  ASSIGN_OR_RETURN(const uint32_t state, Pop());
  ASSIGN_OR_RETURN(const uint32_t top, Top(PickleKind::kCall));
  if (tree_.nodes_[top].items.size() != 2) {
    return Corrupt("an object got its state twice");
  }
  tree_.nodes_[top].items.push_back(state);
  return OkStatus();
}

Status PickleReader::BinPersistent() {
  if (!options_.allow_persistent_ids) {
    return Unsupported("a persistent id, which means nothing here");
  }
  ASSIGN_OR_RETURN(const uint32_t id, Pop());
  return Push({.kind = PickleKind::kPersistent, .items = {id}});
}

Status PickleReader::Get(size_t num_bytes) {
  ASSIGN_OR_RETURN(const uint64_t idx, TakeUint(num_bytes));
  return PushMemo(idx);
}

Status PickleReader::Put(size_t num_bytes) {
  ASSIGN_OR_RETURN(const uint64_t idx, TakeUint(num_bytes));
  return Memoize(idx);
}

std::span<const PickleReader::Opcode> PickleReader::Opcodes() {
  using enum PickleKind;
  static constexpr Opcode kOpcodes[] = {
      {0x80, [](PickleReader& r) { return r.Proto(); }},
      {0x95, [](PickleReader& r) { return r.Frame(); }},
      {'(', [](PickleReader& r) { return r.Mark(); }},
      // Scalars.
      {'N', [](PickleReader& r) { return r.Push({}); }},
      {0x88, [](PickleReader& r) { return r.Push({.kind = kBool, .integer = 1}); }},
      {0x89, [](PickleReader& r) { return r.Push({.kind = kBool}); }},
      {'J', [](PickleReader& r) { return r.BinInt(); }},
      {'K', [](PickleReader& r) { return r.PushUint(1); }},
      {'M', [](PickleReader& r) { return r.PushUint(2); }},
      {0x8A, [](PickleReader& r) { return r.PushLong(1); }},
      {0x8B, [](PickleReader& r) { return r.PushLong(4); }},
      {'G', [](PickleReader& r) { return r.BinFloat(); }},
      // Texts: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, and the same of bytes; BYTEARRAY8.
      {0x8C, [](PickleReader& r) { return r.PushText(kString, 1); }},
      {'X', [](PickleReader& r) { return r.PushText(kString, 4); }},
      {0x8D, [](PickleReader& r) { return r.PushText(kString, 8); }},
      {'C', [](PickleReader& r) { return r.PushText(kBytes, 1); }},
      {'B', [](PickleReader& r) { return r.PushText(kBytes, 4); }},
      {0x8E, [](PickleReader& r) { return r.PushText(kBytes, 8); }},
      {0x96, [](PickleReader& r) { return r.PushText(kBytes, 8); }},
      // Containers.
      {')', [](PickleReader& r) { return r.Push({.kind = kTuple}); }},
      {']', [](PickleReader& r) { return r.Push({.kind = kList}); }},
      {'}', [](PickleReader& r) { return r.Push({.kind = kDict}); }},
      {'t', [](PickleReader& r) { return r.Tuple(); }},
      {0x85, [](PickleReader& r) { return r.TupleOf(1); }},
      {0x86, [](PickleReader& r) { return r.TupleOf(2); }},
      {0x87, [](PickleReader& r) { return r.TupleOf(3); }},
      {'a', [](PickleReader& r) { return r.Append(); }},
      {'e', [](PickleReader& r) { return r.Appends(); }},
      {'s', [](PickleReader& r) { return r.SetItem(); }},
      {'u', [](PickleReader& r) { return r.SetItems(); }},
      // The memo: MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET.
      {0x94, [](PickleReader& r) { return r.Memoize(r.memo_.size()); }},
      {'q', [](PickleReader& r) { return r.Put(1); }},
      {'r', [](PickleReader& r) { return r.Put(4); }},
      {'h', [](PickleReader& r) { return r.Get(1); }},
      {'j', [](PickleReader& r) { return r.Get(4); }},
      // Globals and what is made of them: GLOBAL, STACK_GLOBAL, REDUCE, NEWOBJ, BUILD, BINPERSID.
      {'c', [](PickleReader& r) { return r.Global(); }},
      {0x93, [](PickleReader& r) { return r.StackGlobal(); }},
      {'R', [](PickleReader& r) { return r.Reduce(); }},
      {0x81, [](PickleReader& r) { return r.Reduce(); }},
      {'b', [](PickleReader& r) { return r.Build(); }},
      {'Q', [](PickleReader& r) { return r.BinPersistent(); }},
  };
  return kOpcodes;
}

std::array<PickleReader::Handler, 256> PickleReader::HandlersByCode() {
  std::array<Handler, 256> handlers = {};
  for (const Opcode& opcode : Opcodes()) {
    handlers[opcode.code] = opcode.run;
  }
  return handlers;
}

Result<PickleTree> PickleReader::Read() {
  constexpr unsigned char kProto = 0x80;
  constexpr unsigned char kStop = '.';
  if (bytes_.empty() || static_cast<unsigned char>(bytes_[0]) != kProto) {
    return Corrupt("pickle: expected the opcode PROTO at byte 0");
  }
  const std::array<Handler, 256> handlers = HandlersByCode();
  while (at_ < bytes_.size()) {
    const size_t opcode_at = at_;
    const auto code = static_cast<unsigned char>(bytes_[at_++]);
    if (code == kStop) {
      if (stack_.size() != 1 || !marks_.empty()) {
        return Corrupt("pickle: byte {}: STOP: expected one value on the stack, got {}", opcode_at,
                       stack_.size());
      }
      tree_.root_ = stack_[0];
      tree_.num_bytes_ = at_;
      return std::move(tree_);
    }
    if (handlers[code] == nullptr) {
      return Unsupported("pickle: byte {}: opcode 0x{:02x} is not one that a tensor needs",
                         opcode_at, code);
    }
    if (const Status status = handlers[code](*this); !status.ok()) {
      return status.WithContext(fmt::format("pickle: byte {}", opcode_at));
    }
  }
  return Corrupt("pickle: {} bytes without a STOP", bytes_.size());
}

Result<PickleTree> ReadPickle(std::string_view bytes, const PickleOptions& options) {
  CHECK(options.check_global != nullptr);
  return PickleReader(bytes, options).Read();
}

}  // namespace octavo
