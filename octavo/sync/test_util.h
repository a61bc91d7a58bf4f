#pragma once
// For the tests of sync: the trained models of the tree, and a client that waits.

#include <condition_variable>
#include <filesystem>
#include <memory>
#include <mutex>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/tensor.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/engine/engine.h"
#include "octavo/sync/serving.h"

namespace octavo::testing_util {

inline constexpr const char* kTrained = "models/abacus-dense";
inline constexpr const char* kBase = "models/abacus-dense-base";

inline PolicyOptions Fp8KeepLast(int keep_last) {
  PolicyOptions policy;
  policy.format = WeightFormat::kFp8;
  policy.keep_last = keep_last;
  return policy;
}

// A small engine over one of the models.
inline std::unique_ptr<Serving> Serve(const std::string& model_dir, int keep_last = 2) {
  ServingOptions options;
  options.model_dir = model_dir;
  options.policy = Fp8KeepLast(keep_last);
  options.num_threads = 2;
  options.engine.max_total_tokens = 8192;
  auto serving = StartServing(options);
  CHECK(serving.error().message() == "");
  return std::move(serving).value();
}

// Accumulates the snapshots of one request until it is finished.
class WaitingSink : public RequestSink {
 public:
  void OnOutput(RequestOutput output) override {
    const std::lock_guard lock(mutex_);
    ids_.insert(ids_.end(), output.new_ids.begin(), output.new_ids.end());
    for (const TokenLogprob& entry : output.new_logprobs) {
      logprobs_.push_back(entry.logprob);
    }
    last_ = std::move(output);
    changed_.notify_all();
  }
  void WaitForTokens(size_t count) {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return ids_.size() >= count || Finished(); });
  }
  RequestOutput Wait() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return Finished(); });
    return last_;
  }
  const std::vector<int32_t>& ids() const { return ids_; }
  const std::vector<float>& logprobs() const { return logprobs_; }

 private:
  bool Finished() const { return last_.finish.type != FinishType::kNone; }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<int32_t> ids_;
  std::vector<float> logprobs_;
  RequestOutput last_;
};

inline Request GreedyRequest(const std::string& rid, int64_t max_new_tokens) {
  Request request;
  request.rid = rid;
  request.input_ids = {51, 32, 17, 99, 200, 201, 45, 7, 8, 9};
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.temperature = 0.0F;
  request.sampling.ignore_eos = true;
  request.return_logprob = true;
  request.sink = std::make_shared<WaitingSink>();
  return request;
}

inline std::shared_ptr<WaitingSink> Generate(Engine& engine, const std::string& rid,
                                             int64_t max_new_tokens, bool stream = false) {
  Request request = GreedyRequest(rid, max_new_tokens);
  request.stream = stream;
  auto sink = std::make_shared<WaitingSink>();
  request.sink = sink;
  const Status status = engine.Submit(std::move(request));
  CHECK(status.message() == "");
  return sink;
}

class TemporaryFolder {
 public:
  TemporaryFolder() {
    std::string pattern = (std::filesystem::temp_directory_path() / "octavo-XXXXXX").string();
    path_ = mkdtemp(pattern.data());
  }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

}  // namespace octavo::testing_util
