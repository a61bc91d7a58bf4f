// Method: pickles spelled out opcode by opcode: each opcode that is read, once; each error once;
// and every truncation of a long one.

#include "octavo/sync/pickle.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <string>
#include <string_view>

namespace octavo {
namespace {

using testing::HasSubstr;
using namespace std::string_literals;

Status CheckGlobal(std::string_view module, std::string_view name) {
  const bool is_known = (module == "m" && name == "f") || module == "_codecs";
  return is_known ? OkStatus() : Unsupported("global {}.{} is not on the list", module, name);
}

constexpr PickleOptions kOptions = {.check_global = CheckGlobal};

Result<PickleTree> Read(std::string_view body, const PickleOptions& options = kOptions) {
  return ReadPickle(body, options);
}

std::string Proto4(const std::string& body) { return "\x80\x04" + body + "."; }

// What the one value of a pickle is.
struct Scalar {
  std::string body;
  PickleKind kind;
  int64_t integer = 0;
  std::string text = {};
};

TEST(ReadPickle, ReadsEveryScalar) {
  const Scalar cases[] = {
      {"N", PickleKind::kNone},
      {"\x88", PickleKind::kBool, 1},
      {"\x89", PickleKind::kBool, 0},
      {"K\xff", PickleKind::kInt, 255},
      {"M\x01\x02", PickleKind::kInt, 513},
      {"J\xfe\xff\xff\xff", PickleKind::kInt, -2},
      {"\x8a\x00"s, PickleKind::kInt, 0},
      {"\x8a\x01\xff", PickleKind::kInt, -1},
      {"\x8a\x02\xff\x00"s, PickleKind::kInt, 255},
      {"\x8b\x08\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x80"s, PickleKind::kInt, INT64_MIN},
      {"\x8a\x09"s + "123456789", PickleKind::kLong, 0, "123456789"},
      {"\x8c\x02"s + "ab", PickleKind::kString, 0, "ab"},
      {"X\x02\x00\x00\x00"s + "ab", PickleKind::kString, 0, "ab"},
      {"\x8d\x02\x00\x00\x00\x00\x00\x00\x00"s + "ab", PickleKind::kString, 0, "ab"},
      {"C\x02"s + "ab", PickleKind::kBytes, 0, "ab"},
      {"B\x02\x00\x00\x00"s + "ab", PickleKind::kBytes, 0, "ab"},
      {"\x8e\x02\x00\x00\x00\x00\x00\x00\x00"s + "ab", PickleKind::kBytes, 0, "ab"},
      {"\x96\x02\x00\x00\x00\x00\x00\x00\x00"s + "ab", PickleKind::kBytes, 0, "ab"},
      {"\x95\x01\x00\x00\x00\x00\x00\x00\x00"s + "N", PickleKind::kNone},
  };
  for (const Scalar& scalar : cases) {
    const std::string bytes = Proto4(scalar.body);
    const auto tree = Read(bytes);
    ASSERT_TRUE(tree.has_value()) << tree.error().message();
    EXPECT_EQ(tree->root().kind, scalar.kind) << tree.error().message();
    EXPECT_EQ(tree->root().integer, scalar.integer);
    EXPECT_EQ(tree->root().text, scalar.text);
    EXPECT_EQ(tree->num_bytes(), bytes.size());
  }
}

TEST(ReadPickle, ReadsAFloatBigEndian) {
  const std::string bytes = Proto4("G\x3f\xf8\x00\x00\x00\x00\x00\x00"s);
  EXPECT_EQ(Read(bytes)->root().real, 1.5);
}

// [("a", 1), {"k": (2, 3)}]
TEST(ReadPickle, ReadsContainersAndTheirMemo) {
  const std::string bytes = Proto4(
      "]\x94("  // the list, and a mark
      "\x8c\x01"
      "a\x94K\x01\x86"       // ("a", 1)
      "}h\x01(K\x02K\x03ts"  // {"a" from the memo: (2, 3)}
      "e");
  const auto tree = Read(bytes);
  ASSERT_TRUE(tree.has_value()) << tree.error().message();
  const PickleNode& list = tree->root();
  ASSERT_EQ(list.items.size(), 2U);
  EXPECT_EQ(tree->item(tree->item(list, 0), 0).text, "a");
  EXPECT_EQ(tree->item(tree->item(list, 0), 1).integer, 1);
  const PickleNode& dict = tree->item(list, 1);
  EXPECT_EQ(dict.kind, PickleKind::kDict);
  EXPECT_EQ(tree->item(dict, 0).text, "a");
  EXPECT_EQ(tree->item(tree->item(dict, 1), 1).integer, 3);
}

// The other spellings: APPEND, SETITEMS, BINPUT, LONG_BINPUT, LONG_BINGET, TUPLE1, TUPLE3.
TEST(ReadPickle, ReadsTheOtherSpellings) {
  const std::string bytes =
      Proto4("]q\x00)r\x01\x00\x00\x00\x85"s + "aj\x01\x00\x00\x00NN\x87"s + "a}(NNNNua");
  const auto tree = Read(bytes);
  ASSERT_TRUE(tree.has_value()) << tree.error().message();
  ASSERT_EQ(tree->root().items.size(), 3U);
  EXPECT_EQ(tree->item(tree->root(), 0).items.size(), 1U);
  EXPECT_EQ(tree->item(tree->root(), 1).items.size(), 3U);
  EXPECT_EQ(tree->item(tree->root(), 2).items.size(), 4U);
}

TEST(ReadPickle, KeepsCallsWithoutMakingThem) {
  for (const std::string& body : {"cm\nf\n)R"s, "\x8c\x01m\x8c\x01"s + "f\x93)\x81"s}) {
    const std::string bytes = Proto4(body + "}b");
    const auto tree = Read(bytes);
    ASSERT_TRUE(tree.has_value()) << tree.error().message();
    const PickleNode& call = tree->root();
    ASSERT_EQ(call.items.size(), 3U);
    EXPECT_EQ(tree->item(call, 0).module, "m");
    EXPECT_EQ(tree->item(call, 0).text, "f");
    EXPECT_EQ(tree->item(call, 1).kind, PickleKind::kTuple);
    EXPECT_EQ(tree->item(call, 2).kind, PickleKind::kDict);
  }
}

// Protocol 2 has no bytes: U+00E9 is E9.
TEST(ReadPickle, TurnsLatin1TextsBackIntoBytes) {
  const std::string bytes = Proto4("c_codecs\nencode\nX\x03\x00\x00\x00"s + "a\xc3\xa9" +
                                   "X\x06\x00\x00\x00"s + "latin1\x86R");
  const auto tree = Read(bytes);
  ASSERT_TRUE(tree.has_value()) << tree.error().message();
  EXPECT_EQ(tree->root().kind, PickleKind::kBytes);
  EXPECT_EQ(tree->root().text, "a\xe9");
}

TEST(ReadPickle, SaysWhereItStopsAndLeavesWhatFollows) {
  const auto tree = Read(Proto4("N") + "more");
  ASSERT_TRUE(tree.has_value());
  EXPECT_EQ(tree->num_bytes(), 4U);
}

struct Fault {
  std::string bytes;
  StatusCode code;
  std::string message;
};

TEST(ReadPickle, EveryErrorNamesItsByte) {
  const Fault faults[] = {
      {"", StatusCode::kCorrupt, "expected the opcode PROTO at byte 0"},
      {"N.", StatusCode::kCorrupt, "expected the opcode PROTO at byte 0"},
      {"\x80\x01N.", StatusCode::kUnsupported, "byte 0: protocol: expected 2 to 5, got 1"},
      {"\x80\x06N.", StatusCode::kUnsupported, "byte 0: protocol: expected 2 to 5, got 6"},
      {Proto4("cos\nsystem\n"), StatusCode::kUnsupported,
       "byte 2: global os.system is not on the list"},
      {Proto4("\x8c\x02os\x8c\x06system\x93"), StatusCode::kUnsupported,
       "byte 14: global os.system is not on the list"},
      {Proto4("(ios\nsystem\n"), StatusCode::kUnsupported, "byte 3: opcode 0x69 is not one"},
      {Proto4("Vx\n"), StatusCode::kUnsupported, "byte 2: opcode 0x56 is not one"},
      {Proto4("NQ"), StatusCode::kUnsupported, "byte 3: a persistent id"},
      {Proto4("a"), StatusCode::kCorrupt, "byte 2: expected a value on the stack, got none"},
      {Proto4("Na"), StatusCode::kCorrupt, "byte 3: expected a value on the stack, got none"},
      {Proto4("NNa"), StatusCode::kCorrupt, "byte 4: expected a list on the stack, got a None"},
      {Proto4("t"), StatusCode::kCorrupt, "byte 2: expected a MARK on the stack, got none"},
      {Proto4("N(\x85"), StatusCode::kCorrupt, "byte 4: expected 1 values on the stack, got less"},
      {Proto4("}(Nu"), StatusCode::kCorrupt, "byte 5: expected keys with values, got 1 items"},
      {Proto4("h\x00"s), StatusCode::kCorrupt, "byte 2: memo 0: nothing was put there"},
      {Proto4("Nr\x00\x00\x00\x40"s), StatusCode::kUnsupported, "byte 3: memo 1073741824"},
      {Proto4("N)R"), StatusCode::kCorrupt, "byte 4: expected a global to call, got a None"},
      {Proto4("cm\nf\nNR"), StatusCode::kCorrupt, "expected a tuple of arguments, got a None"},
      {Proto4("cm\nf\n)RNbNb"), StatusCode::kCorrupt, "an object got its state twice"},
      {Proto4("c_codecs\nencode\n)R"), StatusCode::kCorrupt, "_codecs.encode: expected a str"},
      {Proto4("KK\x93"), StatusCode::kCorrupt, "byte 4: expected 2 values on the stack, got less"},
      {Proto4("NN"), StatusCode::kCorrupt, "byte 4: STOP: expected one value on the stack, got 2"},
      {Proto4(""), StatusCode::kCorrupt, "byte 2: STOP: expected one value on the stack, got 0"},
      {Proto4("N("), StatusCode::kCorrupt, "byte 4: STOP"},
      {"\x80\x04N", StatusCode::kCorrupt, "3 bytes without a STOP"},
      {"\x80\x04X\xff\xff\xff\xffN.", StatusCode::kCorrupt,
       "byte 2: expected 4294967295 more bytes, got 2"},
      {"\x80\x04\x95\xff\xff\xff\xff\xff\xff\xff\xffN.", StatusCode::kCorrupt,
       "byte 2: a frame of"},
  };
  for (const Fault& fault : faults) {
    const auto tree = Read(fault.bytes);
    ASSERT_FALSE(tree.has_value()) << fault.message;
    EXPECT_EQ(tree.error().code(), fault.code) << tree.error().message();
    EXPECT_THAT(tree.error().message(), HasSubstr(fault.message));
  }
}

TEST(ReadPickle, BoundsWhatItKeeps) {
  PickleOptions few = kOptions;
  few.num_nodes_max = 3;
  EXPECT_THAT(Read(Proto4("NNNN"), few).error().message(), HasSubstr("more than 3 values"));
  few = kOptions;
  EXPECT_THAT(Read(Proto4(std::string(65, '(')), few).error().message(),
              HasSubstr("nested more than 64 deep"));
}

// A list that holds itself is a tree with a cycle, and no harm.
TEST(ReadPickle, AListMayHoldItself) {
  const std::string bytes = Proto4("]\x94h\x00"s + "a");
  const auto tree = Read(bytes);
  ASSERT_TRUE(tree.has_value()) << tree.error().message();
  EXPECT_EQ(&tree->item(tree->root(), 0), &tree->root());
}

TEST(ReadPickle, RefusesEveryTruncation) {
  const std::string bytes =
      Proto4("\x95\x10\x00\x00\x00\x00\x00\x00\x00](cm\nf\n}(X\x01\x00\x00\x00"s + "aKxu\x85Re");
  ASSERT_TRUE(Read(bytes).has_value()) << Read(bytes).error().message();
  for (size_t size = 0; size < bytes.size(); ++size) {
    EXPECT_FALSE(Read(bytes.substr(0, size)).has_value()) << size;
  }
}

TEST(Printable, HidesWhatATerminalWouldObey) {
  EXPECT_EQ(Printable("a\x1b[2J\xff"), "a?[2J?");
  EXPECT_EQ(Printable(std::string(100, 'x')), std::string(80, 'x') + "...");
}

}  // namespace
}  // namespace octavo
