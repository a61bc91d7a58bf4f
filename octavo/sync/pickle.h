#pragma once
// Python pickles, read as data: the opcodes of protocols 2 to 5 that plain containers, calls and
// persistent ids are made of. Nothing is called and nothing is imported. A REDUCE becomes a node
// that says which global would have been called with what, and every global must pass a list.
//
// Source: CPython, Lib/pickletools.py (the opcodes and what they do to stack and memo).

#include <cstddef>
#include <cstdint>
#include <deque>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

enum class PickleKind : uint8_t {
  kNone,
  kBool,        // integer: 0 or 1.
  kInt,         // integer.
  kLong,        // An integer that needs more than 8 bytes; text: its bytes, little-endian.
  kFloat,       // real.
  kString,      // text: UTF-8 as sent, not checked.
  kBytes,       // text.
  kTuple,       // items.
  kList,        // items.
  kDict,        // items: key, value, key, value, ...; keys may repeat.
  kGlobal,      // module, text: its name.
  kCall,        // items: a kGlobal, a kTuple of arguments, and maybe the state of a BUILD.
  kPersistent,  // items: the id.
};

// "int", "list", ...: for messages.
std::string_view PickleKindName(PickleKind kind);

// Texts are parts of the input, or of the tree.
struct PickleNode {
  PickleKind kind = PickleKind::kNone;
  int64_t integer = 0;
  double real = 0.0;
  std::string_view text = {};
  std::string_view module = {};
  std::vector<uint32_t> items = {};  // Indices of nodes. Lists and dicts may contain themselves.
};

struct PickleOptions {
  // Whether a global may be named; its error becomes that of the whole pickle, with the place.
  Status (*check_global)(std::string_view module, std::string_view name) = nullptr;
  bool allow_persistent_ids = false;
  // Bounds of what is kept, whatever the input says: about 100 bytes a node.
  size_t num_nodes_max = size_t{1} << 21;
  size_t num_marks_max = 64;  // Nested containers that are being filled.
};

// Move-only. The input outlives it.
class PickleTree {
 public:
  PickleTree() = default;
  PickleTree(PickleTree&&) noexcept = default;
  PickleTree& operator=(PickleTree&&) noexcept = default;
  PickleTree(const PickleTree&) = delete;
  PickleTree& operator=(const PickleTree&) = delete;

  const PickleNode& root() const { return nodes_[root_]; }
  const PickleNode& node(uint32_t idx) const { return nodes_[idx]; }
  // The i-th item of a node.
  const PickleNode& item(const PickleNode& node, size_t i) const { return nodes_[node.items[i]]; }
  size_t num_nodes() const { return nodes_.size(); }
  // Bytes up to the STOP; more may follow.
  size_t num_bytes() const { return num_bytes_; }

 private:
  friend class PickleReader;

  std::vector<PickleNode> nodes_;
  std::deque<std::string> owned_;  // Texts that are not parts of the input.
  uint32_t root_ = 0;
  size_t num_bytes_ = 0;
};

// Reads the pickle that `bytes` begin with.
// Errors, all with the byte that the opcode stands at: kCorrupt for what is no pickle; kUnsupported
// for an opcode that is not read; those of check_global; kExhausted for a bound.
Result<PickleTree> ReadPickle(std::string_view bytes, const PickleOptions& options);

// `text` for a message: printable ASCII, and at most 80 bytes of it.
std::string Printable(std::string_view text);

}  // namespace octavo
