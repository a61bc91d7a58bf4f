// A quantization_config and, after the first NUL, keep patterns (one a line, at most four; the last
// line is the environment's list too). Whatever is accepted must be a whole table that splits no
// fused set and comes back from the text that stores it; whatever is refused must say why. The same
// bytes are also run as matching vectors.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/conformance.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/sglang_fp8.h"
#include "octavo/policy/table_json.h"
#include "octavo/policy/table_text.h"
#include "octavo/policy/verdicts.h"

namespace {

using octavo::ModelSpec;
using octavo::PrecisionRow;
using octavo::PrecisionTable;
using octavo::Result;
using octavo::WeightFormat;

// Each pattern costs a walk over all names; more of them show nothing new.
constexpr size_t kMaxKeeps = 4;

// Two layers, untied: the smallest model in which every kind of weight occurs.
ModelSpec SmallSpec() {
  octavo::HfConfig config;
  config.architecture = "Qwen3ForCausalLM";
  config.hidden_size = 128;
  config.num_layers = 2;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 64;
  config.intermediate_size = 192;
  config.vocab_size = 10;
  config.max_position_embeddings = 64;
  return octavo::MakeModelSpec(config).value();
}

void CheckTable(const ModelSpec& spec, const PrecisionTable& table) {
  CHECK(table.rows.size() == spec.weights.size());
  for (size_t i = 0; i < table.rows.size(); ++i) {
    const PrecisionRow& row = table.rows[i];
    CHECK(row.name == spec.weights[i].name);
    CHECK(row.shape == spec.weights[i].shape);
    const bool is_quantized = row.format != WeightFormat::kBf16;
    CHECK((!is_quantized || octavo::IsLinearRole(row.role)));
  }
  for (const octavo::FusedSet& set : octavo::FusedSetsOf(spec)) {
    for (const int member : set.members) {
      CHECK(table.rows[static_cast<size_t>(member)].format ==
            table.rows[static_cast<size_t>(set.members.front())].format);
    }
  }
  CHECK(!octavo::TableToJson(table).empty());
  CHECK(!octavo::TableToText(table).empty());
}

// A table that a policy made comes back through its configuration, of which there is nothing to
// say.
void CheckWritten(const ModelSpec& spec, const PrecisionTable& table) {
  const bool any_quantized = std::ranges::any_of(
      table.rows, [](const auto& row) { return row.format != WeightFormat::kBf16; });
  const std::string stored = octavo::QuantizationConfigJson(table);
  CHECK(stored.empty() != any_quantized);
  const Result<PrecisionTable> again = octavo::TableFromQuantizationConfig(spec, stored);
  CHECK(again.has_value());
  CHECK(again->Hash() == table.Hash());
  const auto findings = octavo::CheckQuantizationConfig(spec, table, stored, {});
  CHECK(findings.has_value());
  CHECK(findings->empty());
}

void RunConfig(const ModelSpec& spec, std::string_view text, const std::string& env) {
  const Result<PrecisionTable> table = octavo::TableFromQuantizationConfig(spec, text);
  if (table.has_value()) {
    CheckTable(spec, *table);
    const auto findings = octavo::CheckQuantizationConfig(spec, *table, text, {});
    CHECK((findings.has_value() || !findings.error().message().empty()));
  } else {
    CHECK(!table.error().message().empty());
  }
  const auto list = octavo::ReadSglangFp8List(text, {.env_ignored = env, .mapper = {}});
  CHECK((list.has_value() || !list.error().message().empty()));
  const auto report = octavo::RunMatchingVectors(text);
  CHECK((report.has_value() || !report.error().message().empty()));
}

void RunKeeps(const ModelSpec& spec, std::vector<std::string> keep) {
  const Result<PrecisionTable> table =
      octavo::CompilePolicy(spec, {.format = WeightFormat::kFp8, .keep = keep});
  if (!table.has_value()) {
    CHECK(!table.error().message().empty());
    return;
  }
  CheckTable(spec, *table);
  CheckWritten(spec, *table);
  for (const std::string& pattern : keep) {
    bool won = false;
    for (const PrecisionRow& row : table->rows) {
      won = won || row.rule == "--keep " + pattern;
    }
    CHECK(won);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t num_bytes) {
  const std::string_view input(reinterpret_cast<const char*>(data), num_bytes);
  static const ModelSpec spec = SmallSpec();
  static const PrecisionTable bf16_table = octavo::CompilePolicy(spec, {}).value();
  const size_t split = input.find('\0');
  std::vector<std::string> keep;
  for (size_t pos = split; pos < input.size() && keep.size() < kMaxKeeps;) {
    const size_t end = input.find('\n', pos + 1);
    keep.emplace_back(input.substr(pos + 1, end - pos - 1));
    pos = end;
  }
  RunConfig(spec, input.substr(0, split), keep.empty() ? std::string() : keep.back());
  for (const std::string& name : keep) {
    const auto row = octavo::ExplainRow(bf16_table, name);
    CHECK((row.has_value() || row.error().code() == octavo::StatusCode::kNotFound));
  }
  if (!keep.empty()) {
    RunKeeps(spec, std::move(keep));
  }
  return 0;
}
