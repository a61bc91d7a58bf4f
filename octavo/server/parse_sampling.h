#pragma once
// sampling_params of one request: every key by name, its range, and what is refused.

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/engine/request.h"
#include "octavo/server/json.h"

namespace octavo {

// What `sampling_params` says beyond the engine's own SamplingParams.
struct SamplingFields {
  SamplingParams params;
  bool to_context_end = false;    // max_new_tokens was null: the budget is what the context leaves.
  std::vector<std::string> stop;  // Never holds an empty string.
  int64_t n = 1;
  int64_t stream_interval = 0;  // 0: the server's default.
  bool skip_special_tokens = true;
  bool no_stop_trim = false;
};

// `object` null stands for {}. Ids are checked against `vocab_size`.
// Errors: kCorrupt for a value of the wrong type, kInvalidArgument for one out of range and for an
// unknown key (a mistyped knob must never change a policy in silence), kUnsupported for what is not
// built; each names the key.
Result<SamplingFields> ParseSampling(const JsonValue* object, int64_t vocab_size);

// One parameter that another dialect spells in its own way: `native_key` is its key in
// sampling_params, `key` what messages call it.
struct SamplingKey {
  std::string_view key;
  std::string_view native_key;
};
// Errors as above. `value` is not null, and native_key is a key that ParseSampling knows.
Status ApplySamplingKey(SamplingKey key, const JsonValue& value, int64_t vocab_size,
                        SamplingFields& fields);

}  // namespace octavo
