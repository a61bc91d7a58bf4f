#include "octavo/measure/replay.h"

#include <fmt/format.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/replay_compare.h"
#include "octavo/measure/replay_file.h"

namespace octavo {
namespace {

using Json = nlohmann::ordered_json;
using Clock = std::chrono::steady_clock;

Result<Json> GetObject(HttpClient& client, std::string_view target) {
  ASSIGN_OR_RETURN(const std::string text, GetText(client, target));
  Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object()) {
    return Corrupt("{}{}: expected a JSON object, got '{}'", client.url().ToString(), target,
                   text.substr(0, 200));
  }
  return json;
}

Result<std::string> TextOf(const Json& object, const char* key, std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_string()) {
    return Corrupt("{}: no {}; replaying needs a server of Octavo that names its weights", where,
                   key);
  }
  return found->get<std::string>();
}

Result<bool> BoolOf(const Json& object, const char* key, std::string_view where) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_boolean()) {
    return Corrupt("{}: no {}; replaying needs a server of Octavo that says how it computes", where,
                   key);
  }
  return found->get<bool>();
}

// --- What can be replayed ---

bool IsOfTarget(const ReplaySpan& span, const ReplayTarget& target, bool any_version) {
  const bool same_digest = span.digest.empty() || span.digest == target.digest;
  const bool same_version =
      span.version == target.weight_version || (any_version && !span.digest.empty());
  return same_digest && same_version;
}

std::string WhyNotSpan(const ReplaySpan& span, const ReplayTarget& target) {
  if (!span.digest.empty() && span.digest != target.digest) {
    return fmt::format(
        "made by weights of digest {} (version {}), the server holds {} (version {})", span.digest,
        span.version, target.digest, target.weight_version);
  }
  if (span.digest.empty()) {
    return fmt::format("made by weight version {}, the server holds version {}", span.version,
                       target.weight_version);
  }
  return fmt::format(
      "made by weight version {}, the server calls these weights version {}; --any-version goes "
      "by the digest alone",
      span.version, target.weight_version);
}

// What no choice of weights mends; empty: nothing.
std::string WhyNever(const RecordedReply& reply, const ReplayTarget& target) {
  if (reply.depends_on_batch) {
    return fmt::format("recipe {} lets the other requests of a step change a reply's numbers",
                       reply.recipe);
  }
  if (reply.mixed_context) {
    return "sampled over KV of other weights than its own (in flight: in_place), a mixture that no "
           "server can make again";
  }
  const auto differs = [](const std::string& recorded, const std::string& live) {
    return !recorded.empty() && recorded != live;
  };
  if (differs(reply.recipe, target.recipe)) {
    return fmt::format("made by recipe {}, the server computes {}", reply.recipe, target.recipe);
  }
  if (differs(reply.kv_cache_dtype, target.kv_cache_dtype)) {
    return fmt::format("made with a KV cache in {}, the server's is in {}", reply.kv_cache_dtype,
                       target.kv_cache_dtype);
  }
  if (differs(reply.policy_hash, target.policy_hash)) {
    return fmt::format("made by precision table {}, the server has {}", reply.policy_hash,
                       target.policy_hash);
  }
  return {};
}

std::string SpansText(const std::vector<ReplaySpan>& spans) {
  std::string text;
  for (const ReplaySpan& span : spans) {
    text +=
        fmt::format("{}{} ({} tokens)", text.empty() ? "" : ", ", span.version, span.num_tokens);
  }
  return text;
}

class Planner {
 public:
  Planner(const ReplayTarget& target, const ReplayOptions& options)
      : target_(target), options_(options) {}

  // Adds what can be replayed of `reply`; the reason why not all of it, or nothing.
  Status Add(const RecordedReply& reply) {
    const auto num_tokens = static_cast<int64_t>(reply.content.output_ids.size());
    if (const std::string reason = WhyNever(reply, target_); !reason.empty()) {
      return Refuse(reply, reason);
    }
    const bool is_whole = std::ranges::all_of(reply.weights, [&](const ReplaySpan& span) {
      return IsOfTarget(span, target_, options_.any_version);
    });
    if (is_whole && reply.is_aborted && num_tokens == 0) {
      LeaveOut("aborted before its first token");
      return OkStatus();
    }
    if (is_whole && !reply.is_aborted) {
      plan_.tasks.push_back({.recorded = &reply, .sent = reply});
      return OkStatus();
    }
    if (is_whole) {
      return AddPart(reply, 0, num_tokens);
    }
    return AddParts(reply);
  }

  ReplayPlan Take() { return std::move(plan_); }

 private:
  Status Refuse(const RecordedReply& reply, const std::string& reason) {
    if (!options_.matching) {
      return InvalidArgument("{}: {}", reply.Name(), reason);
    }
    LeaveOut(reason);
    return OkStatus();
  }

  void LeaveOut(const std::string& reason) {
    const auto found = std::ranges::find(plan_.left_out, reason, &LeftOut::reason);
    if (found == plan_.left_out.end()) {
      plan_.left_out.push_back({.reason = reason, .num_replies = 1});
    } else {
      ++found->num_replies;
    }
  }

  Status AddPart(const RecordedReply& reply, int64_t first, int64_t count) {
    Result<RecordedReply> part = PartOfReply(reply, first, count);
    if (!part.has_value() && part.error().code() == StatusCode::kUnsupported) {
      LeaveOut("the later part of a reply with penalties, which count what came before");
      return OkStatus();
    }
    if (!part.has_value()) {
      return part.error();
    }
    plan_.tasks.push_back({.recorded = &reply, .sent = *std::move(part), .first_token = first});
    return OkStatus();
  }

  Status AddParts(const RecordedReply& reply) {
    if (reply.weights.size() > 1 && !options_.matching) {
      return InvalidArgument(
          "{}: made by weight versions {}, of which a server holds one at a time; --matching "
          "replays the part that is the server's (version {})",
          reply.Name(), SpansText(reply.weights), target_.weight_version);
    }
    int64_t first = 0;
    bool any = false;
    for (const ReplaySpan& span : reply.weights) {
      if (IsOfTarget(span, target_, options_.any_version) && span.num_tokens > 0) {
        RETURN_IF_ERROR(AddPart(reply, first, span.num_tokens));
        any = true;
      }
      first += span.num_tokens;
    }
    return any ? OkStatus() : Refuse(reply, WhyNotSpan(reply.weights.front(), target_));
  }

  const ReplayTarget& target_;
  const ReplayOptions& options_;
  ReplayPlan plan_;
};

// --- The run ---

// The tasks, handed out to threads one by one. Thread-safe.
class Run {
 public:
  Run(const HttpUrl& url, const ReplayTarget& target, const ReplayPlan& plan,
      const ReplayOptions& options)
      : url_(url),
        target_(target),
        tasks_(plan.tasks),
        options_(options),
        differences_(plan.tasks.size()) {}

  void Work() {
    HttpClient client(url_, options_.timeouts);
    for (size_t i = next_.fetch_add(1); i < tasks_.size() && !failed_; i = next_.fetch_add(1)) {
      Result<std::optional<ReplayDifference>> difference = Replay(client, tasks_[i]);
      const std::lock_guard lock(mutex_);
      if (!difference.has_value()) {
        failed_ = true;
        failure_ =
            failure_.ok() ? difference.error().WithContext(tasks_[i].recorded->Name()) : failure_;
        return;
      }
      differences_[i] = *std::move(difference);
      ++num_done_;
      if (options_.on_progress) {
        options_.on_progress(num_done_, static_cast<int64_t>(tasks_.size()));
      }
    }
  }

  // After all threads have ended.
  const Status& failure() const { return failure_; }
  const std::vector<std::optional<ReplayDifference>>& differences() const { return differences_; }

 private:
  Result<std::optional<ReplayDifference>> Replay(HttpClient& client, const ReplayTask& task) {
    ASSIGN_OR_RETURN(const std::string text, PostJson(client, "/generate", task.sent.request));
    ASSIGN_OR_RETURN(const RecordedReply replayed, ParseReplayedReply(text));
    for (const ReplaySpan& span : replayed.weights) {
      if (span.digest != target_.digest || span.version != target_.weight_version) {
        return Unavailable(
            "the server's weights changed while they were replayed: version {} (digest {}), now "
            "{} (digest {})",
            target_.weight_version, target_.digest, span.version, span.digest);
      }
    }
    if (replayed.is_aborted) {
      return Unavailable("the server ended the replayed request: {}",
                         replayed.content.finish_reason);
    }
    std::optional<ReplayDifference> difference =
        FirstDifference(task.sent.content, replayed.content);
    if (difference && difference->position >= 0 && difference->what.starts_with("output")) {
      difference->position += task.first_token;
    }
    return difference;
  }

  const HttpUrl& url_;
  const ReplayTarget& target_;
  const std::vector<ReplayTask>& tasks_;
  const ReplayOptions& options_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  std::mutex mutex_;  // Guards the three below.
  int64_t num_done_ = 0;
  Status failure_;
  std::vector<std::optional<ReplayDifference>> differences_;
};

void CountTask(const ReplayTask& task, ReplayReport* report) {
  report->num_tokens += static_cast<int64_t>(task.sent.content.output_ids.size());
  for (const ReplayScores& scores : task.sent.content.scores) {
    for (const std::vector<ReplayScore>& position : scores.positions) {
      report->num_scores += static_cast<int64_t>(position.size());
    }
  }
  const bool has_digest = std::ranges::none_of(
      task.recorded->weights, [](const ReplaySpan& span) { return span.digest.empty(); });
  report->num_without_digest += has_digest ? 0 : 1;
}

ReplayMismatch MismatchOf(const RecordedReply& reply, const ReplayDifference& difference) {
  return {.name = reply.Name(),
          .line = reply.line,
          .index = reply.index,
          .rid = reply.rid,
          .difference = difference};
}

}  // namespace

Result<ReplayTarget> GetReplayTarget(const HttpUrl& url) {
  HttpClient client(url);
  const std::string where = url.ToString();
  ASSIGN_OR_RETURN(const Json info, GetObject(client, "/server_info"));
  ReplayTarget target{.url = where};
  ASSIGN_OR_RETURN(target.recipe, TextOf(info, "recipe", where));
  ASSIGN_OR_RETURN(target.is_emulated, BoolOf(info, "emulated", where));
  ASSIGN_OR_RETURN(target.policy_hash, TextOf(info, "policy_hash", where));
  ASSIGN_OR_RETURN(target.kv_cache_dtype, TextOf(info, "kv_cache_dtype", where));
  ASSIGN_OR_RETURN(target.weight_version, TextOf(info, "weight_version", where));
  ASSIGN_OR_RETURN(const std::string sealed, TextOf(info, "weight_digest", where));
  ASSIGN_OR_RETURN(const Json live, GetObject(client, "/octavo/v1/digest"));
  ASSIGN_OR_RETURN(target.digest, TextOf(live, "digest", where));
  ASSIGN_OR_RETURN(const std::string version, TextOf(live, "weight_version", where));
  if (version != target.weight_version) {
    return Unavailable("{}: its weights changed from version {} to {} just now", where,
                       target.weight_version, version);
  }
  if (sealed != target.digest) {
    return Internal(
        "{}: expected live weights of digest {}, as sealed for version {}, got {}: they were "
        "changed in place",
        where, sealed, version, target.digest);
  }
  return target;
}

Result<ReplayPlan> PlanReplay(const std::vector<RecordedReply>& replies, const ReplayTarget& target,
                              const ReplayOptions& options) {
  Planner planner(target, options);
  Status first;
  int64_t num_refused = 0;
  for (const RecordedReply& reply : replies) {
    const Status status = planner.Add(reply);
    num_refused += status.ok() ? 0 : 1;
    first = first.ok() ? status : first;
  }
  if (!first.ok()) {
    return Status(first.code(),
                  fmt::format("{} ({} of {} replies cannot be replayed on {}; --matching replays "
                              "the others)",
                              first.message(), num_refused, replies.size(), target.url));
  }
  ReplayPlan plan = planner.Take();
  if (plan.tasks.empty()) {
    return InvalidArgument("none of {} replies can be replayed on {}: {}", replies.size(),
                           target.url,
                           plan.left_out.empty() ? "there is none" : plan.left_out.front().reason);
  }
  return plan;
}

Result<ReplayReport> RunReplay(const HttpUrl& url, const ReplayTarget& target,
                               const ReplayPlan& plan, const ReplayOptions& options) {
  Run run(url, target, plan, options);
  const Clock::time_point start = Clock::now();
  std::vector<std::thread> threads;
  const auto num_tasks = static_cast<int64_t>(plan.tasks.size());
  for (int64_t i = 0; i < std::min(options.parallel, num_tasks); ++i) {
    threads.emplace_back([&run] { run.Work(); });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  RETURN_IF_ERROR(run.failure());
  ReplayReport report{.target = target,
                      .num_requests = num_tasks,
                      .seconds = std::chrono::duration<double>(Clock::now() - start).count(),
                      .left_out = plan.left_out};
  for (size_t i = 0; i < plan.tasks.size(); ++i) {
    CountTask(plan.tasks[i], &report);
    const std::optional<ReplayDifference>& difference = run.differences()[i];
    ++(difference.has_value() ? report.num_different : report.num_same);
    if (difference.has_value() && !report.first.has_value()) {
      report.first = MismatchOf(*plan.tasks[i].recorded, *difference);
    }
  }
  return report;
}

std::string ReplayReportText(const ReplayReport& report) {
  const ReplayTarget& target = report.target;
  std::string text = fmt::format(
      "server     {}\nrecipe     {}{}\nweights    version {}, digest {}\nreplayed   {} requests of "
      "{} replies: {} tokens, {} logprobs, {:.1f} s\n",
      target.url, target.recipe, target.is_emulated ? " (emulated)" : "", target.weight_version,
      target.digest, report.num_requests, report.num_replies, report.num_tokens, report.num_scores,
      report.seconds);
  for (const LeftOut& left_out : report.left_out) {
    text += fmt::format("left out   {}: {}\n", left_out.num_replies, left_out.reason);
  }
  if (report.num_without_digest > 0) {
    text += fmt::format("no digest  {} requests: their records name a weight version alone\n",
                        report.num_without_digest);
  }
  if (!report.first.has_value()) {
    return text + fmt::format("same       {}, bit for bit", report.num_same);
  }
  return text + fmt::format("same       {}\ndifferent  {}\nfirst      {}: {}", report.num_same,
                            report.num_different, report.first->name,
                            DifferenceText(report.first->difference));
}

std::string ReplayReportJson(const ReplayReport& report) {
  Json left_out = Json::array();
  for (const LeftOut& one : report.left_out) {
    left_out.push_back({{"reason", one.reason}, {"replies", one.num_replies}});
  }
  Json first;
  if (report.first.has_value()) {
    const ReplayMismatch& mismatch = *report.first;
    const ReplayDifference& difference = mismatch.difference;
    first = {{"line", mismatch.line},
             {"index", mismatch.index},
             {"rid", mismatch.rid},
             {"what", difference.what},
             {"position", difference.position < 0 ? Json() : Json(difference.position)},
             {"recorded", difference.recorded},
             {"replayed", difference.replayed}};
  }
  const ReplayTarget& target = report.target;
  const Json json = {{"same", report.num_same},
                     {"different", report.num_different},
                     {"requests", report.num_requests},
                     {"replies", report.num_replies},
                     {"tokens", report.num_tokens},
                     {"logprobs", report.num_scores},
                     {"without_digest", report.num_without_digest},
                     {"seconds", report.seconds},
                     {"left_out", std::move(left_out)},
                     {"first_difference", std::move(first)},
                     {"server",
                      {{"url", target.url},
                       {"recipe", target.recipe},
                       {"emulated", target.is_emulated},
                       {"weight_version", target.weight_version},
                       {"digest", target.digest},
                       {"policy_hash", target.policy_hash},
                       {"kv_cache_dtype", target.kv_cache_dtype}}}};
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace octavo
