// Method: weights of several chunks in every format, with rows that end nowhere near the end of a
// chunk, digested by teams of every size: the digest of each tensor must be that of its canonical
// bytes. And one flipped byte of any tensor must change it, wherever the threads' shares meet.

#include "octavo/sync/live_digest.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/hash.h"
#include "octavo/base/status.h"
#include "octavo/base/thread_pool.h"
#include "octavo/convert/digest.h"
#include "octavo/formats/format.h"
#include "octavo/kernels/backend.h"
#include "octavo/kernels/test_tensors.h"
#include "octavo/model/model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

struct Tensor {
  std::string name;
  WeightFormat format;
  int64_t rows;
  int64_t cols;
};

// From less than a chunk to five of them.
std::vector<Tensor> Tensors() {
  return {{"a.weight", WeightFormat::kBf16, 610, 257},
          {"b.weight", WeightFormat::kFp8, 515, 321},
          {"c.weight", WeightFormat::kMxfp8, 997, 160},
          {"d.weight", WeightFormat::kNvfp4, 2001, 208},
          {"e.weight", WeightFormat::kFp8Channel, 33, 95},
          {"f.weight", WeightFormat::kBf16, 17, 31}};
}

class DigestOfChunks : public ::testing::Test {
 protected:
  DigestOfChunks() {
    for (const Tensor& tensor : Tensors()) {
      sources_.push_back(std::make_unique<TestMatrix>(tensor.format, tensor.rows, tensor.cols, 3));
      PrecisionRow row;
      row.name = tensor.name;
      row.role = Role::kMlpUp;
      row.shape = {tensor.rows, tensor.cols};
      row.format = tensor.format;
      table_.rows.push_back(row);
      weights_.matrices.push_back(sources_.back()->PackFor(*backend_));
    }
  }
  ModelDigest Digest(int num_threads) {
    ThreadPool pool(num_threads);
    Result<ModelDigest> digest = DigestLiveWeights(table_, weights_, *backend_, &pool);
    EXPECT_TRUE(digest.has_value()) << digest.error().message();
    return std::move(*digest);
  }

  std::unique_ptr<Backend> backend_ = std::move(*MakeCpuBackend(BestIsa(), 1));
  std::vector<std::unique_ptr<TestMatrix>> sources_;
  PrecisionTable table_;
  ModelWeights weights_;
};

TEST_F(DigestOfChunks, IsThatOfTheCanonicalBytesForAnyNumberOfThreads) {
  for (const int num_threads : {1, 2, 3, 5, 16}) {
    const ModelDigest digest = Digest(num_threads);
    const auto hex_of = [&](const std::string& name) {
      const auto line = std::ranges::find(digest.tensors, name, &TensorDigestLine::name);
      return line == digest.tensors.end() ? "absent" : line->hex;
    };
    for (size_t i = 0; i < table_.rows.size(); ++i) {
      const std::string& name = table_.rows[i].name;
      EXPECT_EQ(hex_of(name), HashHex(TensorDigest(sources_[i]->codes()))) << name;
    }
    EXPECT_EQ(hex_of("b.weight_scale_inv"), HashHex(TensorDigest(sources_[1]->scales())));
    EXPECT_EQ(hex_of("d.weight_scale"), HashHex(TensorDigest(sources_[3]->scales())));
  }
  const Result<ModelDigest> alone = DigestLiveWeights(table_, weights_, *backend_, nullptr);
  EXPECT_EQ(alone->hex, Digest(3).hex);
}

TEST_F(DigestOfChunks, ChangesWithOneByteOfAnyTensor) {
  const std::string before = Digest(3).hex;
  for (size_t i = 0; i < sources_.size(); ++i) {
    std::vector<std::byte>& codes = sources_[i]->codes();
    for (const double place : {0.0, 0.33, 0.34, 0.5, 0.67, 0.9999}) {
      const auto at = static_cast<size_t>(place * static_cast<double>(codes.size()));
      codes[at] ^= std::byte{1};
      weights_.matrices[i] = sources_[i]->PackFor(*backend_);
      EXPECT_NE(Digest(3).hex, before) << table_.rows[i].name << " " << at;
      codes[at] ^= std::byte{1};
    }
    weights_.matrices[i] = sources_[i]->PackFor(*backend_);
  }
  EXPECT_EQ(Digest(2).hex, before);
}

}  // namespace
}  // namespace octavo
