// Method: a trainer that takes steps, as an engine of its own that loads each step's BF16 weights
// from files, and an FP8 engine that is updated to them without a restart. Right after each update
// both score the same sequences: the mean |difference of logprobs| has to be that of an engine
// which has just loaded the weights. The same with one scale left stale must show.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/checkpoint_for_test.h"
#include "octavo/convert/transform.h"
#include "octavo/engine/engine.h"
#include "octavo/engine/request.h"
#include "octavo/formats/bf16.h"
#include "octavo/policy/precision_table.h"
#include "octavo/sync/serving.h"
#include "octavo/sync/test_util.h"

namespace octavo {
namespace {

using testing_util::kBase;
using testing_util::kTrained;
using testing_util::TemporaryFolder;
using testing_util::WaitingSink;

constexpr int kSteps = 5;
// The pair of weights that a trainer scales against each other: gate, up and down are linear in up,
// so doubling one and halving the other changes no logit, but every scale of both.
constexpr const char* kUp = "model.layers.1.mlp.up_proj.weight";
constexpr const char* kDown = "model.layers.1.mlp.down_proj.weight";

TestTensors ReadTensors(const std::string& dir) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(dir);
  CHECK(checkpoint.has_value());
  TestTensors tensors;
  for (const StoredTensor& tensor : checkpoint->tensors()) {
    CHECK(tensor.view.dtype == DType::kBf16);
    const auto size = static_cast<size_t>(NumElements(tensor.view.shape) * 2);
    tensors[tensor.name] = {
        DType::kBf16, tensor.view.shape, {tensor.view.data, tensor.view.data + size}};
  }
  return tensors;
}

float ValueAt(const TestTensor& tensor, size_t i) {
  uint16_t bits;
  std::memcpy(&bits, tensor.bytes.data() + 2 * i, sizeof(bits));
  return Bf16ToFloat(bits);
}

// Step k of kSteps from the early checkpoint to the trained one.
TestTensors WeightsOfStep(const TestTensors& from, const TestTensors& to, int step) {
  TestTensors tensors = from;
  const float share = static_cast<float>(step) / kSteps;
  for (auto& [name, tensor] : tensors) {
    const float scale = name == kUp     ? std::ldexp(1.0F, step)
                        : name == kDown ? std::ldexp(1.0F, -step)
                                        : 1.0F;
    for (size_t i = 0; 2 * i < tensor.bytes.size(); ++i) {
      const float begin = ValueAt(from.at(name), i);
      const float end = ValueAt(to.at(name), i);
      const uint16_t bits = FloatToBf16((begin + share * (end - begin)) * scale);
      std::memcpy(tensor.bytes.data() + 2 * i, &bits, sizeof(bits));
    }
  }
  return tensors;
}

ConstTensorView ViewOf(const TestTensor& tensor) {
  return {tensor.dtype, tensor.shape, tensor.bytes.data()};
}

std::unique_ptr<Serving> Load(const TestTensors& tensors,
                              const std::optional<PolicyOptions>& policy, const std::string& dir) {
  const Result<std::string> config = ReadTextFile(std::string(kBase) + "/config.json");
  CHECK(config.has_value());
  WriteTestCheckpoint(dir, tensors, 1, *config);
  ServingOptions options;
  options.model_dir = dir;
  options.policy = policy;
  options.num_threads = 1;
  options.engine.max_total_tokens = 4096;
  Result<std::unique_ptr<Serving>> serving = StartServing(options);
  CHECK(serving.error().message() == "");
  return std::move(serving).value();
}

RequestOutput Run(Engine& engine, Request request) {
  const auto sink = std::make_shared<WaitingSink>();
  request.sink = sink;
  const Status status = engine.Submit(std::move(request));
  CHECK(status.message() == "");
  return sink->Wait();
}

using Sequences = std::vector<std::vector<int32_t>>;

// What the engine itself samples, as a trainer would be given it.
Sequences SampleSequences(Engine& engine) {
  Sequences sequences;
  for (const int64_t seed : {1, 2, 3}) {
    Request request = testing_util::GreedyRequest("sample", 48);
    request.sampling.temperature = 1.0F;
    request.sampling.seed = seed;
    std::vector<int32_t> ids = request.input_ids;
    const RequestOutput output = Run(engine, std::move(request));
    ids.insert(ids.end(), output.new_ids.begin(), output.new_ids.end());
    sequences.push_back(std::move(ids));
  }
  return sequences;
}

std::vector<float> Score(Engine& engine, const Sequences& sequences) {
  std::vector<float> logprobs;
  for (const std::vector<int32_t>& ids : sequences) {
    Request request = testing_util::GreedyRequest("score", 0);
    request.input_ids = ids;
    request.logprob_start_len = 0;
    for (const auto& [logprob, id] : Run(engine, std::move(request)).input_logprobs) {
      if (logprob.has_value()) {
        logprobs.push_back(*logprob);
      }
    }
  }
  CHECK(logprobs.size() > size_t{100});
  return logprobs;
}

double MeanGap(const std::vector<float>& a, const std::vector<float>& b) {
  CHECK(a.size() == b.size());
  double sum = 0.0;
  for (size_t i = 0; i < a.size(); ++i) {
    sum += std::abs(static_cast<double>(a[i]) - static_cast<double>(b[i]));
  }
  return sum / static_cast<double>(a.size());
}

// Puts every weight in BF16, but for `stale`: its codes are new and its scales those of `before`.
Status Push(Serving& serving, const TestTensors& tensors, const std::string& stale,
            const TestTensors& before) {
  ASSIGN_OR_RETURN(const std::string id, serving.updater->Begin(""));
  for (const auto& [name, tensor] : tensors) {
    if (name != stale) {
      RETURN_IF_ERROR(serving.updater->Put(id, name, ViewOf(tensor)));
      continue;
    }
    const PrecisionRow& row = *serving.table.Find(name);
    ASSIGN_OR_RETURN(const auto fresh, TransformWeight(row, ViewOf(tensor), {}));
    ASSIGN_OR_RETURN(const auto old, TransformWeight(row, ViewOf(before.at(name)), {}));
    for (size_t part = 0; part < fresh.size(); ++part) {
      const OwnedTensor& sent = part == 0 ? fresh[part] : old[part];
      RETURN_IF_ERROR(
          serving.updater->Put(id, sent.name, {sent.dtype, sent.shape, sent.bytes.bytes().data()}));
    }
  }
  RETURN_IF_ERROR(serving.updater->Seal(id));
  return serving.updater->Commit(id, InFlight::kRetract).error();
}

class Freshness : public testing::Test {
 protected:
  Freshness() : base_(ReadTensors(kBase)), trained_(ReadTensors(kTrained)) {}

  // The gap between the trainer of each step and an engine that has just been updated to it;
  // `stale`: the weight whose scales stay those of the step before, in every update.
  std::vector<double> GapsAfterUpdates(const std::string& stale) {
    const std::unique_ptr<Serving> serving = Load(
        WeightsOfStep(base_, trained_, 0), testing_util::Fp8KeepLast(0), folder_.path() + "/s");
    const Sequences sequences = SampleSequences(*serving->engine);
    std::vector<double> gaps;
    TestTensors before = WeightsOfStep(base_, trained_, 0);
    for (int step = 0; step <= kSteps; ++step) {
      const TestTensors weights = WeightsOfStep(base_, trained_, step);
      if (step > 0) {
        const Status pushed = Push(*serving, weights, stale, before);
        EXPECT_TRUE(pushed.ok()) << pushed.message();
      }
      const std::unique_ptr<Serving> trainer = Load(weights, {}, folder_.path() + "/t");
      const std::vector<float> expected = Score(*trainer->engine, sequences);
      gaps.push_back(MeanGap(Score(*serving->engine, sequences), expected));
      if (stale.empty()) {
        // Just loaded, from files that no update has touched.
        const std::unique_ptr<Serving> fresh =
            Load(weights, testing_util::Fp8KeepLast(0), folder_.path() + "/f");
        EXPECT_EQ(MeanGap(Score(*fresh->engine, sequences), expected), gaps.back()) << step;
      }
      before = weights;
    }
    return gaps;
  }

  const TestTensors base_;
  const TestTensors trained_;
  const TemporaryFolder folder_;
};

// Fresh is what the first load shows; each later policy quantizes a little otherwise, by far less
// than a half. A stale scale is off by a factor of two in one of the layers.
TEST_F(Freshness, StaysAtTheLevelOfALoadAfterEveryUpdate) {
  const std::vector<double> gaps = GapsAfterUpdates("");
  ASSERT_EQ(gaps.size(), size_t{kSteps + 1});
  EXPECT_GT(gaps.front(), 0.0);
  for (const double gap : gaps) {
    EXPECT_LT(gap, 2.0 * gaps.front());
  }
}

TEST_F(Freshness, IsLostWithOneStaleScale) {
  const std::vector<double> gaps = GapsAfterUpdates(kUp);
  for (int step = 1; step <= kSteps; ++step) {
    EXPECT_GT(gaps[static_cast<size_t>(step)], 2.0 * gaps.front()) << step;
  }
}

}  // namespace
}  // namespace octavo
