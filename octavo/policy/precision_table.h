#pragma once
// The compiled policy: which tensor has which format, which rule won and which it beat. Converter,
// loader, updater, server and auditor read this one table.

#include <optional>
#include <span>
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

// How a format's parts are named and which configuration says so (docs/formats.md). Of what we
// write only nvfp4 has two: --layout; others write fp8 and mxfp8 in both.
enum class StoredLayout {
  kDefault,            // modelopt for nvfp4; fp8-channel is compressed-tensors in any case.
  kCompressedTensors,  // nvfp4-pack-quantized; scales of blocks and groups without "_inv".
};

// Value type; const is thread-safe. One row for each weight of the ModelSpec, in its order.
struct PrecisionTable {
  StoredLayout layout = StoredLayout::kDefault;
  WeightFormat format = WeightFormat::kBf16;  // What was asked for.
  // The configuration declares calibrated scales of activations, one for a matrix: the optional
  // part of AcceptedTensorsOf. Never so in what we write.
  bool declares_input_scales = false;
  std::vector<PrecisionRow> rows = {};

  // Null when there is no such row.
  const PrecisionRow* Find(std::string_view name) const;
  // XXH3-128 (hex) over the lines "NAME FORMAT\n" sorted by name as bytes: the decisions, not the
  // reasons, so that two ways of asking for the same table agree.
  std::string Hash() const;
};

// Which linear weights --format means. Without a scope: all for the fp8 family and mxfp8; for nvfp4
// the routed experts of a mixture of experts, and gate/up/down of a dense model. In every scope
// MLA's kv_b_proj stays BF16 for mxfp8 and nvfp4, and MTP layers for nvfp4 in ModelOpt's layout;
// a PolicyRule may say otherwise.
enum class QuantizeScope {
  kExperts,  // Routed experts.
  kMlp,      // Those, shared experts and dense MLPs.
  kAll,      // Every linear role.
};

// "experts", "mlp", "all": the spelling of --scope.
std::string_view QuantizeScopeName(QuantizeScope scope);
std::optional<QuantizeScope> ParseQuantizeScope(std::string_view name);

// Inclusive.
struct LayerRange {
  int first = 0;
  int last = 0;
};

// One [[rule]] of a policy file: the weights that all of its given selectors match.
struct PolicyRule {
  std::vector<std::string> patterns = {};  // As --keep; any of them. Empty: every name.
  std::vector<Role> roles = {};            // Any of them. Empty: every role.
  std::vector<LayerRange> layers = {};     // Any of them. Empty: weights outside layers too.
  WeightFormat format = WeightFormat::kBf16;
  bool is_optional = false;  // It may match nothing: a preset's rule for models that have the role.
};

// What a user asked for (docs/policy.md).
struct PolicyOptions {
  WeightFormat format = WeightFormat::kBf16;
  int keep_first = 0;  // Decoder layers at the start that stay BF16.
  int keep_last = 0;   // Decoder layers at the end that stay BF16.
  std::optional<QuantizeScope> scope = {};
  StoredLayout layout = StoredLayout::kDefault;
  // Dotted paths (whole segments), or globs when they hold a '*' (keep_pattern.h).
  std::vector<std::string> keep = {};
  std::vector<PolicyRule> rules = {};  // Behind --keep, in order.
  bool keep_mtp = false;               // Layers of multi-token prediction stay BF16.
};

// Rules, strongest first: the roles that are never quantized, --keep in the order given, rules of a
// policy file, --keep-mtp, --keep-first, --keep-last, what stays BF16 by default, --format. A
// weight whose rows do not fit its format (ColsMultipleOf) stays BF16 by the rule "width K", and
// with it all routed experts of its layer. Every rule that was asked for must match a weight, and
// win one unless it asks for nothing else than what was decided.
// Errors: kInvalidArgument, naming the rule, for one that matches nothing (with patterns that would
// match) or wins nowhere (--format included: a table without one quantized weight), for any keep
// beside --format bf16, for layer counts beyond the model, for a rule that names exactly one weight
// of a width that does not fit, and for rules that split what engines serve as one (q/k/v,
// q_a/kv_a, gate/up, the routed experts of a layer); kUnsupported for a mix of formats that no
// configuration can state.
Result<PrecisionTable> CompilePolicy(const ModelSpec& spec, const PolicyOptions& options);

// --- Stored form -------------------------------------------------------------------------------

// What a stored tensor is to its weight. A scale multiplies, a divisor divides.
enum class StoredPart {
  kCodes,          // Or the BF16 values of a kept weight.
  kScales,         // Beside the codes: per block, channel or group (formats/quantize.h).
  kTensorScale,    // TensorScale(format, amax).
  kTensorDivisor,  // 2688 / amax: weight_global_scale of compressed-tensors.
  kInputScale,     // 1: activations are scaled at run time.
  kInputDivisor,   // The same as a divisor.
};

// One tensor of a checkpoint that belongs to a weight.
struct StoredTensorSpec {
  std::string name;
  DType dtype = DType::kBf16;
  Shape shape;
  StoredPart part = StoredPart::kCodes;
  bool is_optional = false;  // A scale of activations, which others may leave out.
};

// The tensors, in a fixed order (codes first), as which `row` is stored; X is the module.
//   bf16         X.weight
//   fp8*         X.weight F8_E4M3 [n, k], and
//     fp8, fp8-ue8m0  X.weight_scale_inv F32 [ceil(n/128), ceil(k/128)]
//     fp8-channel     X.weight_scale F32 [n, 1]
//     fp8-tensor      X.weight_scale F32 []
//   mxfp8        X.weight F8_E4M3 [n, k], X.weight_scale_inv U8 [n, k/32]
//   nvfp4        X.weight U8 [n, k/2], X.weight_scale F8_E4M3 [n, k/16], X.weight_scale_2 F32 [],
//                X.input_scale F32 []; with kCompressedTensors X.weight_packed, X.weight_scale,
//                X.weight_global_scale F32 [1], X.input_global_scale F32 [1]
// With kCompressedTensors the scales of fp8, fp8-ue8m0 and mxfp8 are X.weight_scale too.
std::vector<StoredTensorSpec> StoredTensorsOf(const PrecisionRow& row,
                                              StoredLayout layout = StoredLayout::kDefault);

// The same, and behind them what a checkpoint of others may hold beside: X.input_scale F32 [] of
// fp8-tensor (is_optional). Dtypes and shapes are ours; CheckStoredType (convert) knows what can
// stand for them.
std::vector<StoredTensorSpec> AcceptedTensorsOf(const PrecisionRow& row,
                                                StoredLayout layout = StoredLayout::kDefault);

// The rows whose weights share one TensorScale, as positions in table.rows: the fused sets of
// `spec` whose rows have a format with SharesScale. Every other row of such a format is a set of
// its own and is not listed.
std::vector<std::vector<int>> SharedScaleSets(const ModelSpec& spec, const PrecisionTable& table);

// --- In and out of a checkpoint's config.json ----------------------------------------------------

// The text of quantization_config for a checkpoint stored by `table` (docs/formats.md), with our
// own key "octavo": {"table": [...], "hash": HEX, ...}. Its list also names `unknown_modules`,
// those of matrices that the weight table does not know: an engine could take them for quantized
// ones. Empty for a table that is all BF16.
std::string QuantizationConfigJson(const PrecisionTable& table,
                                   std::span<const std::string> unknown_modules = {});

// The text of hf_quant_config.json, the file that ModelOpt writes beside config.json: for nvfp4 in
// the default layout; empty for everything else.
std::string HfQuantConfigJson(const PrecisionTable& table,
                              std::span<const std::string> unknown_modules = {});

// The table by which a checkpoint is stored: ours when `quantization_config` carries the "octavo"
// key (its hash is checked), otherwise that of TableFromForeignConfig (foreign_table.h). Empty
// text: every weight is BF16.
// Errors: kCorrupt for text that is no JSON object and for a hash that does not match; those of
// TableFromForeignConfig.
Result<PrecisionTable> TableFromQuantizationConfig(const ModelSpec& spec,
                                                   std::string_view quantization_config);

}  // namespace octavo
