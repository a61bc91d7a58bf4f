#pragma once
// The compiled policy: which tensor has which format, which rule won and which it beat. Converter,
// loader, updater, server and auditor read this one table.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/formats/format.h"
#include "octavo/model/spec/model_spec.h"

namespace octavo {

struct PrecisionRow {
  std::string name;  // HF parameter name.
  Role role = Role::kNorm;
  int layer = -1;
  Shape shape;
  WeightFormat format = WeightFormat::kBf16;
  std::string rule = {};                   // The rule that won: "--keep-last 2", "role norm", ...
  std::string reason = {};                 // One sentence for people.
  std::vector<std::string> shadowed = {};  // Rules that also matched and lost, strongest first.
};

// Value type; const is thread-safe. One row for each weight of the ModelSpec, in its order.
struct PrecisionTable {
  WeightFormat format = WeightFormat::kBf16;  // What was asked for.
  std::vector<PrecisionRow> rows = {};

  // Null when there is no such row.
  const PrecisionRow* Find(std::string_view name) const;
  // XXH3-128 (hex) over the lines "NAME FORMAT\n" sorted by name as bytes: the decisions, not the
  // reasons, so that two ways of asking for the same table agree.
  std::string Hash() const;
};

// What a user asked for (docs/policy.md).
struct PolicyOptions {
  WeightFormat format = WeightFormat::kBf16;
  int keep_first = 0;  // Decoder layers at the start that stay BF16.
  int keep_last = 0;   // Decoder layers at the end that stay BF16.
  // Dotted paths (whole segments), or globs when they hold a '*' (keep_pattern.h).
  std::vector<std::string> keep = {};
};

// Rules, strongest first: role embedding / lm_head / norm, --keep in the order given, --keep-first,
// --keep-last, --format. Every rule that was asked for must match a weight and win one.
// Errors: kInvalidArgument, naming the rule, for one that matches nothing (with patterns that would
// match) or wins nowhere (--format included: a table without one quantized weight), for any keep
// beside --format bf16, for layer counts beyond the model, and for rules that split a fused set
// (q/k/v, gate/up).
Result<PrecisionTable> CompilePolicy(const ModelSpec& spec, const PolicyOptions& options);

// --- Stored form -------------------------------------------------------------------------------

// One tensor of a checkpoint that belongs to a weight: the codes, then its scales.
struct StoredTensorSpec {
  std::string name;
  DType dtype = DType::kBf16;
  Shape shape;
};

// The tensors, in a fixed order, as which `row` is stored: fp8 gives NAME (F8_E4M3) and
// NAME_scale_inv (F32, [ceil(n/128), ceil(k/128)]); bf16 gives NAME.
std::vector<StoredTensorSpec> StoredTensorsOf(const PrecisionRow& row);

// --- In and out of a checkpoint's config.json ----------------------------------------------------

// The text of quantization_config for a checkpoint stored by `table` (docs/formats.md), with our
// own key "octavo": {"table": [...], "hash": HEX, ...}. Empty for a table that is all BF16.
std::string QuantizationConfigJson(const PrecisionTable& table);

// The table by which a checkpoint is stored: ours when `quantization_config` carries the "octavo"
// key (its hash is checked), otherwise read in the dialect of its quant_method ("fp8": the
// sglang_fp8 dialect of docs/policy.md). Empty text: every weight is BF16.
// Errors: kUnsupported for another quant_method or block size, by name; kCorrupt for a hash that
// does not match; kInvalidArgument for lists that split a fused set.
Result<PrecisionTable> TableFromQuantizationConfig(const ModelSpec& spec,
                                                   std::string_view quantization_config);

}  // namespace octavo
