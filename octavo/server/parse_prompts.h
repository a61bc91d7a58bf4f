#pragma once
// What the bodies of /generate, /v1/completions and /v1/chat/completions have in common: prompts,
// options that may differ from prompt to prompt, and the samples of each.

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/version_demand.h"
#include "octavo/server/json.h"
#include "octavo/server/parse_generate.h"
#include "octavo/server/parse_sampling.h"

namespace octavo {

// One prompt with its options, before n is spread out.
struct PromptItem {
  std::vector<int32_t> ids = {};
  SamplingFields sampling = {};
  bool return_logprob = false;
  int64_t logprob_start_len = -1;
  int64_t top_logprobs_num = 0;
  std::vector<int32_t> token_ids_logprob = {};
  bool return_routed_experts = false;
  int64_t routed_experts_start_len = 0;
  std::string rid = {};  // Empty: drawn.
  std::string extra_key = {};
  VersionDemand version_demand = {};
  std::optional<int64_t> stale_prefix_versions = {};
};

struct Prompts {
  std::vector<PromptItem> items = {};
  bool is_batch = false;
};

// An option that may be one value or a list with one entry a prompt. A view of the body.
struct ListField {
  const JsonValue* value = nullptr;
  bool is_list = false;

  // The value of prompt `item_idx`: an entry of the list, or the one value for all; null when
  // absent or null.
  const JsonValue* At(size_t item_idx) const;
};

// `nested`: the single value is itself a list, so a list of lists is one entry a prompt.
// Errors: kCorrupt, kInvalidArgument for a list that does not fit the prompts.
Result<ListField> FindListField(const JsonValue& body, std::string_view key, const Prompts& prompts,
                                bool nested = false);

// kUnsupported, by name, for a field that changes the tokens or the numbers returned and is not
// built; kInvalidArgument for a data-parallel rank other than 0.
Status RefuseUnbuilt(const JsonValue& body);

// kInvalidArgument for text that no context of this server could hold, whatever its tokens.
Status CheckTextSize(std::string_view text, std::string_view name, const GenerateContext& context);

// A prompt of text, or one of token ids; `name` is for messages. At least one token.
// Errors: kCorrupt, kInvalidArgument, kUnsupported (text without a tokenizer).
Result<std::vector<int32_t>> TokenizePrompt(const JsonValue& value, std::string_view name,
                                            const GenerateContext& context);
Result<std::vector<int32_t>> CheckedIds(const JsonValue& value, std::string_view name,
                                        const GenerateContext& context);

// One prompt or a list of prompts, as text or as ids. Errors as above.
enum class PromptKind { kText, kIds };
Result<Prompts> ReadPromptField(const JsonValue& value, std::string_view name, PromptKind kind,
                                const GenerateContext& context);

// Fits the sampling to its prompt: the budget of a request that names none, and what
// --allow-auto-truncate cuts. Errors: kUnsupported for stop strings without a tokenizer.
Status FitSampling(const GenerateContext& context, PromptItem& item);

// extra_key, return_routed_experts and its start, min_weight_version or exact_weight_version, and
// stale_prefix_versions. Errors: kCorrupt, kInvalidArgument.
Status ReadOthers(const JsonValue& body, Prompts& prompts);

// Gives each prompt the rid that the client named; returns the one rid of a batch.
Result<std::string> ReadRids(const JsonValue& body, Prompts& prompts);

// One item a sample: p0s0, p0s1, p1s0, ... Sets is_list and items of `call`, whose stream is set,
// and clears a batch_rid that n > 1 makes void. Errors: kInvalidArgument for too many.
Status SpreadOut(const Prompts& prompts, const GenerateContext& context, ParsedGenerate& call);

}  // namespace octavo
