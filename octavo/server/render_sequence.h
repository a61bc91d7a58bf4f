#pragma once
// SequenceRenderer: from the engine's snapshots of one sequence to the JSON object of /generate, or
// to the text and the meta_info that other shapes of an answer are made of.
//
// Text and lists are kept as JSON that only grows, so a cumulative chunk costs a copy of what came
// before, not a second rendering of it.

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/engine/request.h"
#include "octavo/engine/version_demand.h"
#include "octavo/server/json_writer.h"
#include "octavo/text/tokenizer.h"

namespace octavo {

struct ReplayRequest;

struct RenderOptions {
  const Tokenizer* tokenizer = nullptr;  // Null: every text is "".
  std::string recipe = {};               // Serving::recipe, reported for replay.
  bool is_emulated = false;              // Serving::is_emulated.
  std::vector<std::string> stop = {};
  bool no_stop_trim = false;
  bool skip_special_tokens = true;
  bool incremental = false;  // Chunks are deltas.
  bool text_in_logprobs = false;
  bool return_logprob = false;
  bool top_logprobs = false;
  bool ids_logprobs = false;
  bool routed_experts = false;
  int64_t routed_experts_start_len = 0;
  int64_t max_new_tokens = 0;
  VersionDemand version_demand = {};
  bool return_prompt_token_ids = false;
  std::vector<int32_t> prompt_token_ids = {};        // Set when return_prompt_token_ids.
  std::shared_ptr<const ReplayRequest> replay = {};  // Null: no meta_info.replay.
};

// One thread. The tokenizer must outlive it.
class SequenceRenderer {
 public:
  explicit SequenceRenderer(RenderOptions options);

  // Takes the next snapshot; its lists are appended to what is known.
  void Append(RequestOutput output);
  bool finished() const { return last_.finish.type != FinishType::kNone; }
  const FinishReason& finish() const { return last_.finish; }
  // Ended without a token, because the weights that it demands are not live.
  bool IsRefusedForVersion() const {
    return last_.finish.type == FinishType::kVersionConflict && last_.completion_tokens == 0;
  }
  const VersionDemand& version_demand() const { return options_.version_demand; }

  // True while a chunk must wait: its text could be the beginning of a stop string.
  bool HoldsBack() const;
  // True when there are tokens that no chunk has shown.
  bool HasNews() const { return num_new_ > 0; }

  // Appends the object of 3.4: {"text", "output_ids", "meta_info", ...}. `index` >= 0 adds "index".
  // In incremental mode it starts the next delta.
  void Render(std::string& out, int64_t index = -1);

  // For shapes of their own: the text that no earlier call gave, all of it when there was none.
  std::string TakeText();
  // The meta_info object.
  void WriteMeta(JsonWriter& json) const;
  // "recipe" and "emulated": what was computed.
  void WriteRecipe(JsonWriter& json) const;
  // "prompt_token_ids" with its ids, when asked for.
  void WritePromptIds(JsonWriter& json) const;
  // The counts, rid and versions of the last snapshot; its lists are empty.
  const RequestOutput& last() const { return last_; }
  // Base64, "" until the sequence has finished.
  const std::string& routed_experts() const { return routed_experts_; }

  // Logprobs that were not finite and were written as -1e30.
  int64_t num_clamped() const { return num_clamped_; }

 private:
  void SettleMembers(const RequestOutput& output);
  void AppendLogprobs(const RequestOutput& output);
  void AppendInputLogprobs(const RequestOutput& output);
  void AppendEntry(std::string& list, float logprob, int32_t id);
  void AppendEntryList(std::string& list, const std::vector<TokenLogprob>& entries);
  void AppendIdAndText(std::string& list, int32_t id);
  std::string_view VisibleText(std::string& storage) const;
  void WriteText(JsonWriter& json, std::string_view text);
  void WriteLogprobs(JsonWriter& json) const;
  void StartNextDelta(size_t text_bytes);

  RenderOptions options_;
  std::unique_ptr<IncrementalDecoder> decoder_;  // Null without a tokenizer.
  RequestOutput last_;                           // The last snapshot, its lists emptied.

  // The first `num_text_bytes_` bytes of the decoder's text, as AppendJsonChars writes them; only
  // what chunks have shown whole.
  std::string text_chars_;
  size_t num_text_bytes_ = 0;

  // Contents of JSON arrays, without their brackets.
  std::string ids_;
  std::string output_logprobs_;
  std::string output_top_;
  std::string output_ids_logprobs_;
  std::string input_logprobs_;
  std::string input_top_;
  std::string input_ids_logprobs_;

  std::string settled_members_;  // Of the meta_info object.
  std::string routed_experts_;   // Base64 of little-endian int32.
  int64_t num_logprobs_ = 0;     // Entries of output_logprobs_.
  int64_t num_new_ = 0;          // Tokens since the last Render.
  size_t sent_bytes_ = 0;        // Of the text, in incremental mode.
  bool inputs_sent_ = false;
  int64_t num_clamped_ = 0;
};

// Appends a logprob; one that is not finite, or below what a float32 sum can bear, as -1e30, which
// `num_clamped` counts.
void AppendLogprob(std::string& out, float logprob, int64_t* num_clamped);

// The finish_reason object of 3.5; "null" for kNone.
std::string FinishReasonJson(const FinishReason& finish, int64_t max_new_tokens);

}  // namespace octavo
