#include "octavo/sync/legacy_storage.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <string_view>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/sync/pickle.h"
#include "octavo/sync/torch_names.h"

namespace octavo {
namespace {

// 0x1950a86a20f9469cfc6c, little-endian.
constexpr std::string_view kMagic = "\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19";
constexpr int64_t kProtocol = 1001;

Status CheckStorageClass(std::string_view module, std::string_view name) {
  if ((module == "torch" || module == "torch.storage") && DTypeOfTorchStorage(name).has_value()) {
    return OkStatus();
  }
  return Unsupported("global {}.{} is not a class of storages", Printable(module), Printable(name));
}

// Takes the next pickle off the front of `rest`.
Result<PickleTree> NextPickle(std::string_view* rest) {
  ASSIGN_OR_RETURN(PickleTree tree, ReadPickle(*rest, {.check_global = CheckStorageClass,
                                                       .allow_persistent_ids = true}));
  rest->remove_prefix(tree.num_bytes());
  return tree;
}

Status CheckMachine(const PickleTree& tree) {
  const PickleNode& facts = tree.root();
  if (facts.kind != PickleKind::kDict) {
    return Corrupt("stored tensor: expected facts about the machine, got a {}",
                   PickleKindName(facts.kind));
  }
  for (size_t i = 0; i + 1 < facts.items.size(); i += 2) {
    if (tree.item(facts, i).text == "little_endian" && tree.item(facts, i + 1).integer != 1) {
      return Unsupported("stored tensor: the sender's machine is big-endian");
    }
  }
  return OkStatus();
}

// ("storage", class, key, location, count, view): the dtype and count.
Result<std::pair<DType, int64_t>> ReadDescription(const PickleTree& tree) {
  const Status malformed = Corrupt("stored tensor: expected the description of one storage");
  if (tree.root().kind != PickleKind::kPersistent) {
    return malformed;
  }
  const PickleNode& id = tree.item(tree.root(), 0);
  if (id.kind != PickleKind::kTuple || id.items.size() < 5 || tree.item(id, 0).text != "storage" ||
      tree.item(id, 1).kind != PickleKind::kGlobal || tree.item(id, 4).kind != PickleKind::kInt) {
    return malformed;
  }
  if (id.items.size() > 5 && tree.item(id, 5).kind != PickleKind::kNone) {
    return Unsupported("stored tensor: its storage is a view of another");
  }
  const std::optional<DType> dtype = DTypeOfTorchStorage(tree.item(id, 1).text);
  CHECK(dtype.has_value());  // CheckStorageClass.
  return std::pair(*dtype, tree.item(id, 4).integer);
}

}  // namespace

Result<LegacyStorage> ReadLegacyStorage(std::string_view bytes) {
  std::string_view rest = bytes;
  ASSIGN_OR_RETURN(const PickleTree magic, NextPickle(&rest));
  ASSIGN_OR_RETURN(const PickleTree protocol, NextPickle(&rest));
  if (magic.root().kind != PickleKind::kLong || magic.root().text != kMagic ||
      protocol.root().kind != PickleKind::kInt || protocol.root().integer != kProtocol) {
    return Corrupt("stored tensor: expected torch.save's format {}, got another", kProtocol);
  }
  ASSIGN_OR_RETURN(const PickleTree machine, NextPickle(&rest));
  RETURN_IF_ERROR(CheckMachine(machine));
  ASSIGN_OR_RETURN(const PickleTree description, NextPickle(&rest));
  ASSIGN_OR_RETURN(const auto described, ReadDescription(description));
  ASSIGN_OR_RETURN([[maybe_unused]] const PickleTree keys, NextPickle(&rest));

  const auto [dtype, count] = described;
  int64_t stored = 0;
  if (rest.size() < sizeof(stored)) {
    return Corrupt("stored tensor: it ends before its elements");
  }
  std::memcpy(&stored, rest.data(), sizeof(stored));
  rest.remove_prefix(sizeof(stored));
  const auto num_present = static_cast<int64_t>(rest.size()) / DTypeBytes(dtype);
  if (stored != count || stored != num_present ||
      rest.size() % static_cast<size_t>(DTypeBytes(dtype)) != 0) {
    return Corrupt("stored tensor: expected {} elements of {}, got {} announced and {} bytes",
                   count, DTypeName(dtype), stored, rest.size());
  }
  return LegacyStorage{.bytes = std::as_bytes(std::span(rest)), .dtype = dtype};
}

}  // namespace octavo
