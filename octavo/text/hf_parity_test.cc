// Method: tests/data/text holds 5,478 lines of many scripts, emoji, control characters, malformed
// bytes and added tokens, with a hash of the ids and the texts that HF `tokenizers` 0.23.3 gives by
// three tokenizers (scripts/make_tokenizer_data.py says how they were made), and 2,552 lines of
// digits, CJK mixes, line ends and added tokens for three more that are built as those of Llama 3
// and DeepSeek-V2 and V3 (scripts/make_model_tokenizer_data.py). Every id and every byte must be
// equal. Texts of 1 MB are kept as a recipe and a hash.

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/gzip.h"
#include "octavo/base/status.h"
#include "octavo/text/hash_ids_for_test.h"
#include "octavo/text/tokenizer.h"
#include "octavo/text/utf8.h"

namespace octavo {
namespace {

struct Corpus {
  std::string path;  // Of a tokenizer.json, or of a folder.
  std::string lines;
  size_t num_lines_min;
};

// By name.
const std::map<std::string, Corpus> kCorpora = {
    {"abacus", {"models/abacus-dense/tokenizer.json", "lines.bin.gz", 5000}},
    {"sample", {"tests/data/text/sample_tokenizer.json", "lines.bin.gz", 5000}},
    {"split", {"tests/data/text/split_tokenizer.json", "lines.bin.gz", 5000}},
    {"llama3", {"tests/data/text/llama3", "hard_lines.bin.gz", 2500}},
    {"deepseek_v2", {"tests/data/text/deepseek_v2", "hard_lines.bin.gz", 2500}},
    {"deepseek_v3", {"tests/data/text/deepseek_v3", "hard_lines.bin.gz", 2500}},
};

// Reads the layout that make_tokenizer_data.py describes.
class DataReader {
 public:
  explicit DataReader(const std::string& path) {
    Result<std::string> data = ReadTextOrGzip(path);
    EXPECT_TRUE(data.has_value()) << data.error().message();
    if (data.has_value()) data_ = *std::move(data);
  }

  uint32_t Varint() {
    uint32_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<uint8_t>(data_.at(pos_++));
      value |= uint32_t{byte & 0x7Fu} << shift;
      if (byte < 0x80) return value;
    }
  }
  std::string Bytes(size_t num_bytes) {
    pos_ += num_bytes;
    return data_.substr(pos_ - num_bytes, num_bytes);
  }
  uint64_t Fixed64() {
    const std::string bytes = Bytes(sizeof(uint64_t));
    uint64_t value = 0;
    std::memcpy(&value, bytes.data(), bytes.size());
    return value;
  }
  std::vector<int32_t> Ids() {
    std::vector<int32_t> ids(Varint());
    for (int32_t& id : ids) id = static_cast<int32_t>(Varint());
    return ids;
  }
  std::string TextOr(const std::string& otherwise) {
    const uint32_t code = Varint();
    return code == 0 ? otherwise : Bytes(code - 1);
  }
  bool AtEnd() const { return pos_ == data_.size(); }

 private:
  std::string data_;
  size_t pos_ = 0;
};

struct Expected {
  uint64_t hash = 0;  // Of the ids.
  std::string decoded;
  std::string decoded_skipping;
};

struct ExpectedCorpus {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
  std::vector<Expected> lines;
};

std::vector<std::string> ReadLines(const Corpus& corpus) {
  DataReader reader("tests/data/text/" + corpus.lines);
  std::vector<std::string> lines;
  const uint32_t num_lines = reader.Varint();
  for (uint32_t i = 0; i < num_lines; ++i) {
    lines.push_back(reader.Bytes(reader.Varint()));
  }
  EXPECT_TRUE(reader.AtEnd());
  return lines;
}

ExpectedCorpus ReadExpected(const std::string& name, const std::vector<std::string>& lines) {
  DataReader reader(fmt::format("tests/data/text/{}.ids.bin.gz", name));
  ExpectedCorpus corpus;
  corpus.prefix = reader.Ids();
  corpus.suffix = reader.Ids();
  EXPECT_EQ(reader.Varint(), lines.size());
  for (const std::string& line : lines) {
    Expected expected;
    expected.hash = reader.Fixed64();
    expected.decoded = reader.TextOr(ReplaceInvalidUtf8(line));
    expected.decoded_skipping = reader.TextOr(expected.decoded);
    corpus.lines.push_back(std::move(expected));
  }
  EXPECT_TRUE(reader.AtEnd());
  return corpus;
}

Tokenizer LoadOrDie(const std::string& path) {
  Result<Tokenizer> tokenizer =
      path.ends_with(".json") ? Tokenizer::Load(path) : Tokenizer::LoadFolder(path);
  EXPECT_TRUE(tokenizer.has_value()) << tokenizer.error().message();
  return *std::move(tokenizer);
}

class HfParity : public testing::TestWithParam<std::string> {
 protected:
  void SetUp() override {
    const Corpus& corpus = kCorpora.at(GetParam());
    lines_ = ReadLines(corpus);
    expected_ = ReadExpected(GetParam(), lines_);
    ASSERT_GE(lines_.size(), corpus.num_lines_min);
    for (const std::string& line : lines_) {
      ids_.push_back(tokenizer_.Encode(line, /*add_special_tokens=*/false));
    }
  }

  Tokenizer tokenizer_ = LoadOrDie(kCorpora.at(GetParam()).path);
  std::vector<std::string> lines_;
  ExpectedCorpus expected_;
  std::vector<std::vector<int32_t>> ids_;  // Ours, of each line.
};

TEST_P(HfParity, EncodesEveryLineToTheSameIds) {
  for (size_t i = 0; i < lines_.size(); ++i) {
    ASSERT_EQ(Fnv1a(ids_[i]), expected_.lines[i].hash)
        << "line " << i << ": " << testing::PrintToString(lines_[i]);
  }
}

TEST_P(HfParity, PutsTheSameSpecialTokensAroundEveryLine) {
  for (size_t i = 0; i < lines_.size(); ++i) {
    std::vector<int32_t> ids = expected_.prefix;
    ids.insert(ids.end(), ids_[i].begin(), ids_[i].end());
    ids.insert(ids.end(), expected_.suffix.begin(), expected_.suffix.end());
    ASSERT_EQ(tokenizer_.Encode(lines_[i]), ids) << "line " << i;
  }
}

TEST_P(HfParity, DecodesEveryLineToTheSameText) {
  for (size_t i = 0; i < lines_.size(); ++i) {
    const Expected& expected = expected_.lines[i];
    ASSERT_EQ(tokenizer_.Decode(ids_[i], /*skip_special_tokens=*/false), expected.decoded)
        << "line " << i;
    ASSERT_EQ(tokenizer_.Decode(ids_[i], /*skip_special_tokens=*/true), expected.decoded_skipping)
        << "line " << i;
  }
}

TEST_P(HfParity, DecodesTokenByTokenToTheSameTextAndRetractsNothing) {
  for (size_t i = 0; i < lines_.size(); ++i) {
    const Expected& expected = expected_.lines[i];
    IncrementalDecoder decoder(&tokenizer_, /*skip_special_tokens=*/false);
    std::string seen;
    for (const int32_t id : ids_[i]) {
      decoder.Append(id);
      ASSERT_TRUE(decoder.text().starts_with(seen)) << "line " << i;
      ASSERT_TRUE(decoder.Finished().starts_with(decoder.text())) << "line " << i;
      seen = decoder.text();
      ASSERT_TRUE(expected.decoded.starts_with(seen)) << "line " << i;
    }
    ASSERT_EQ(decoder.Finished(), expected.decoded) << "line " << i;
  }
}

// Every prefix of the ids is a request that stopped there.
TEST_P(HfParity, FinishesEveryPrefixLikeDecode) {
  for (size_t i = 0; i < lines_.size(); i += 7) {
    const std::vector<int32_t>& ids = ids_[i];
    if (ids.size() > 200) continue;
    IncrementalDecoder decoder(&tokenizer_, /*skip_special_tokens=*/true);
    for (size_t n = 0; n < ids.size(); ++n) {
      decoder.Append(ids[n]);
      ASSERT_EQ(decoder.Finished(), tokenizer_.Decode(std::span(ids).first(n + 1), true))
          << "line " << i << ", " << n + 1 << " ids";
    }
  }
}

TEST_P(HfParity, GivesTheSameIdsFromManyThreads) {
  std::vector<size_t> num_different(4);
  std::vector<std::thread> threads;
  threads.reserve(num_different.size());
  threads.reserve(num_different.size());
  for (size_t t = 0; t < num_different.size(); ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < lines_.size(); i += 3) {
        const auto ids = tokenizer_.Encode(lines_[i], /*add_special_tokens=*/false);
        num_different[t] += Fnv1a(ids) == expected_.lines[i].hash ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(num_different, std::vector<size_t>(4));
}

INSTANTIATE_TEST_SUITE_P(AllTokenizers, HfParity,
                         testing::Values("abacus", "sample", "split", "llama3", "deepseek_v2",
                                         "deepseek_v3"),
                         [](const auto& info) { return info.param; });

std::string FromHex(std::string_view hex) {
  std::string bytes;
  for (size_t i = 0; hex != "-" && i + 1 < hex.size(); i += 2) {
    bytes.push_back(static_cast<char>(std::stoi(std::string(hex.substr(i, 2)), nullptr, 16)));
  }
  return bytes;
}

std::vector<std::string> Words(std::string_view line, char separator) {
  std::vector<std::string> words(1);
  for (const char c : line) {
    if (c == separator) {
      words.emplace_back();
    } else {
      words.back().push_back(c);
    }
  }
  return words;
}

// One "word", one run of white space, fifty thousand added tokens: neither a match limit nor
// quadratic time may stand in the way.
TEST(HfParityOfLongRuns, EncodesMegabytesToTheSameIds) {
  std::string runs;
  for (const std::string name : {"long_runs.txt", "hard_long_runs.txt"}) {
    const Result<std::string> file = ReadTextFile("tests/data/text/" + name);
    ASSERT_TRUE(file.has_value()) << file.error().message();
    runs += *file;
  }
  int num_runs = 0;
  for (const auto& [name, corpus] : kCorpora) {
    const Tokenizer tokenizer = LoadOrDie(corpus.path);
    for (const std::string& line : Words(runs, '\n')) {
      const std::vector<std::string> fields = Words(line, ' ');
      if (fields.front() != name) continue;
      ASSERT_EQ(fields.size(), 6u) << line;
      std::string text;
      for (int i = std::stoi(fields[2]); i > 0; --i) text += FromHex(fields[1]);
      text += FromHex(fields[3]);
      const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/false);
      EXPECT_EQ(ids.size(), std::stoul(fields[4])) << line;
      EXPECT_EQ(fmt::format("{:016x}", Fnv1a(ids)), fields[5]) << line;
      ++num_runs;
    }
  }
  EXPECT_EQ(num_runs, 84);
}

}  // namespace
}  // namespace octavo
