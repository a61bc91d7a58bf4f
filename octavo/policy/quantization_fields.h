#pragma once
// A foreign quantization_config as plain data: every key that some dialect reads, read once.

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/status.h"

namespace octavo {

// A list of names. Dialects tell an absent key from a null one and both from an empty list.
struct NameList {
  enum class State { kAbsent, kNull, kList, kOther };

  std::string key;  // Where it stood: "ignored_layers", "quantization.exclude_modules".
  State state = State::kAbsent;
  std::vector<std::string> names = {};
  std::string found = {};  // For kOther: what stood there instead of a list of strings.

  bool exists() const { return state != State::kAbsent; }
};

// One entry of config_groups of compressed-tensors.
struct TargetGroup {
  std::vector<std::string> targets;
  std::string method;  // "fp8", "nvfp4", "mxfp8", "int8", ...: from the group's weights.
};

struct QuantizationFields {
  std::string quant_method;  // Lower case; empty when absent.
  std::string quant_algo;    // Upper case; of the object "quantization" when that is there.
  bool has_flat_algo = false;
  bool has_config = false;  // False for a checkpoint without a quantization_config.
  bool has_linear_fp8_config = false;
  bool has_static_activations = false;          // activation_scheme "static".
  std::optional<int64_t> group_size = {};       // Top level, or of the first group's weights.
  std::vector<int64_t> weight_block_size = {};  // As written; empty when absent.
  NameList ignored_layers = {};
  NameList modules_to_not_convert = {};
  NameList ignore = {};
  NameList exclude_modules = {};  // Top level, or of "quantization".
  NameList exclude = {};
  std::vector<TargetGroup> groups = {};
  // Module -> algorithm (upper case), in the order written.
  std::vector<std::pair<std::string, std::string>> quantized_layers = {};
};

// `text` is a JSON object, or empty for a checkpoint without one.
// Errors: kCorrupt for text that is no JSON object (or nests too deeply); kInvalidArgument for a
// key of another type, by name. A list of another type is no error until a dialect reads it.
Result<QuantizationFields> ReadQuantizationFields(std::string_view text);

// The names of a list that a dialect reads; none for an absent or null key.
// Errors: kInvalidArgument for kOther, naming the key.
Result<std::vector<std::string>> NamesOf(const NameList& list);

}  // namespace octavo
