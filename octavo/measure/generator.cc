#include "octavo/measure/generator.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <utility>

#include "octavo/client/generate_client.h"

namespace octavo {
namespace {

class UrlGenerator final : public TextGenerator {
 public:
  UrlGenerator(HttpUrl url, const HttpTimeouts& timeouts)
      : url_(std::move(url)), timeouts_(timeouts) {}

  Result<TextReply> Generate(const TextRequest& request) override {
    HttpClient client(url_, timeouts_);
    GenerateCall call;
    call.text = request.prompt;
    call.max_new_tokens = request.max_new_tokens;
    call.temperature = request.temperature;
    call.top_p = request.top_p;
    call.stop = request.stop;
    ASSIGN_OR_RETURN(GenerateReply reply, octavo::Generate(client, call));
    return TextReply{std::move(reply.text), reply.completion_tokens, std::move(reply.finish_type),
                     std::move(reply.weight_version)};
  }

 private:
  HttpUrl url_;
  HttpTimeouts timeouts_;
};

// Looks for the stop strings in the text that has become final, special tokens included, as the
// server does; of several, the one that begins first wins. One thread: the engine's.
class StopStrings final : public StopMatcher {
 public:
  StopStrings(const Tokenizer* tokenizer, std::vector<std::string> stop)
      : decoder_(tokenizer, /*skip_special_tokens=*/false), stop_(std::move(stop)) {
    for (const std::string& text : stop_) {
      longest_ = std::max(longest_, text.size());
    }
  }

  std::optional<std::string> OnToken(int32_t id) override {
    decoder_.Append(id);
    const std::string_view text = decoder_.text();
    // A match ends in what is new, so it begins at most longest_ - 1 bytes before that.
    const size_t from = searched_ >= longest_ ? searched_ - longest_ + 1 : 0;
    searched_ = text.size();
    std::optional<std::string> matched;
    size_t first = std::string_view::npos;
    for (const std::string& stop : stop_) {
      if (const size_t at = text.find(stop, from); at < first) {
        first = at;
        matched = stop;
      }
    }
    return matched;
  }

 private:
  IncrementalDecoder decoder_;
  std::vector<std::string> stop_;
  size_t longest_ = 0;
  size_t searched_ = 0;  // Bytes of the text that hold no match.
};

// Gathers the output of one request; the submitting thread waits for the end.
class WaitingSink final : public RequestSink {
 public:
  void OnOutput(RequestOutput output) override {
    const std::lock_guard lock(mutex_);
    ids_.insert(ids_.end(), output.new_ids.begin(), output.new_ids.end());
    if (output.finish.type != FinishType::kNone) {
      last_ = std::move(output);
      finished_.notify_one();
    }
  }

  // Ids in all, and the last snapshot. Call once.
  std::pair<std::vector<int32_t>, RequestOutput> Wait() {
    std::unique_lock lock(mutex_);
    finished_.wait(lock, [this] { return last_.finish.type != FinishType::kNone; });
    return {std::move(ids_), std::move(last_)};
  }

 private:
  std::mutex mutex_;  // Guards the two below.
  std::vector<int32_t> ids_;
  RequestOutput last_;
  std::condition_variable finished_;
};

class EngineGenerator final : public TextGenerator {
 public:
  EngineGenerator(Engine* engine, const Tokenizer* tokenizer)
      : engine_(engine), tokenizer_(tokenizer) {}

  Result<TextReply> Generate(const TextRequest& text) override {
    auto sink = std::make_shared<WaitingSink>();
    Request request;
    request.rid = fmt::format("eval-{}", next_id_.fetch_add(1));
    request.input_ids = tokenizer_->Encode(text.prompt);
    request.sampling.max_new_tokens = text.max_new_tokens;
    request.sampling.temperature = static_cast<float>(text.temperature);
    request.sampling.top_p = static_cast<float>(text.top_p);
    request.stop_matcher = std::make_unique<StopStrings>(tokenizer_, text.stop);
    request.sink = sink;
    RETURN_IF_ERROR(engine_->Submit(std::move(request)));
    auto [ids, output] = sink->Wait();
    if (output.finish.type == FinishType::kError) {
      return Internal("{}", output.finish.message);
    }
    return ReplyOf(ids, output);
  }

 private:
  TextReply ReplyOf(std::span<const int32_t> ids, const RequestOutput& output) const {
    TextReply reply;
    reply.completion_tokens = output.completion_tokens;
    reply.weight_version = output.weight_version;
    switch (output.finish.type) {
      case FinishType::kStopString:
        reply.finish_type = "stop";
        break;
      case FinishType::kStopToken:
        reply.finish_type = "stop";
        ids = ids.first(ids.size() - 1);  // The stop token is an output, but no part of the text.
        break;
      case FinishType::kLength:
        reply.finish_type = "length";
        break;
      default:
        reply.finish_type = "abort";
    }
    reply.text = tokenizer_->Decode(ids, /*skip_special_tokens=*/true);
    if (output.finish.type == FinishType::kStopString) {
      reply.text = reply.text.substr(0, reply.text.find(output.finish.matched_string));
    }
    return reply;
  }

  Engine* engine_;
  const Tokenizer* tokenizer_;
  std::atomic<uint64_t> next_id_{0};
};

}  // namespace

std::unique_ptr<TextGenerator> MakeUrlGenerator(const HttpUrl& url, const HttpTimeouts& timeouts) {
  return std::make_unique<UrlGenerator>(url, timeouts);
}

std::unique_ptr<TextGenerator> MakeEngineGenerator(Engine* engine, const Tokenizer* tokenizer) {
  return std::make_unique<EngineGenerator>(engine, tokenizer);
}

}  // namespace octavo
