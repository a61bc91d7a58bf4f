#pragma once
// Which arithmetic serves each weight: part of what was asked for, and named in every report.

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/kernels/matrix.h"
#include "octavo/policy/precision_table.h"

namespace octavo {

// Where the global scale of an nvfp4 input comes from (docs/numerics.md).
enum class Nvfp4InputScale {
  kToken,   // The largest magnitude of the token's row.
  kPow2,    // Always 1.
  kStatic,  // input_scale or input_global_scale of the checkpoint.
  kBatch,   // The largest magnitude of the whole call: requests depend on each other.
};

// "token", "pow2", "static", "batch": the spelling of --nvfp4-input-scale.
std::string_view Nvfp4InputScaleName(Nvfp4InputScale scale);
std::optional<Nvfp4InputScale> ParseNvfp4InputScale(std::string_view name);

// Codes as they are stored, activations in BF16: a format of its own that must be asked for.
enum class WeightOnly {
  kNone,
  kW8A16,  // Every weight of 8 bits.
  kW4A16,  // Every nvfp4 weight.
};

// "w8a16", "w4a16": the spelling of --format; nullopt for any other text.
std::optional<WeightOnly> ParseWeightOnly(std::string_view name);

struct ArithmeticOptions {
  std::optional<Nvfp4InputScale> nvfp4_input_scale = {};  // Absent: kToken.
  WeightOnly weight_only = WeightOnly::kNone;
};

// The input form of each row of the table. Foreign fp8-tensor weights take the checkpoint's input
// scale where its configuration declares one.
// Errors: kInvalidArgument for an option that no row could take, naming its flag.
Result<std::vector<InputForm>> InputFormsOf(const PrecisionTable& table,
                                            const ArithmeticOptions& options);

// The recipe id of a served model: equal ids and equal weights mean equal bits. BACKEND/FORMATS
// such as "serving-1/bf16", "serving-1/fp8", "serving-1/nvfp4-token", "serving-1/mxfp8-w8a16", and
// "+kv-fp8_e4m3" behind it with that cache. Formats of a mixed table are joined by '+'.
std::string RecipeId(std::string_view backend_recipe, const PrecisionTable& table,
                     std::span<const InputForm> inputs, DType kv_dtype);

// True when a weight is served in an arithmetic that this hardware has no instructions for: mxfp8
// and nvfp4 with quantized inputs, on CPUs by exact decode to BF16.
bool IsEmulated(std::span<const InputForm> inputs);

// True when a request's numbers depend on the others of its steps: nvfp4 with kBatch.
bool DependsOnBatch(std::span<const InputForm> inputs);

}  // namespace octavo
