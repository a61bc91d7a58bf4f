#include "octavo/convert/audit_codes.h"

#include <algorithm>
#include <array>
#include <span>
#include <string>
#include <string_view>
#include <utility>

#include "octavo/base/check.h"
#include "octavo/convert/audit.h"

namespace octavo {
namespace {

constexpr std::string_view kError = "error";
constexpr std::string_view kWarning = "warning";
constexpr std::string_view kInfo = "info";
constexpr std::string_view kReconvert = "convert again from the source";

constexpr auto kCodes = std::to_array<AuditCode>({
    // Files.
    {"unreadable", kError, "a file is missing, truncated or malformed",
     "fetch or convert the checkpoint again"},
    {"index-missing", kWarning, "there are several files and no index",
     "write one, or convert with octavo, which always does: engines look tensors up in it"},
    {"index-file", kError, "the index names a file that is not there",
     "fetch the missing shard, or convert again"},
    {"index-tensor", kError, "the index names a tensor that its file does not hold",
     "fetch the shard again, or write the index anew"},
    {"index-unlisted", kError, "a shard holds a tensor that the index has elsewhere or not at all",
     "write the index anew from the shards"},
    {"total-size", kError, "metadata.total_size is not the sum of the bytes of all tensors",
     "set metadata.total_size to the expected sum"},
    {"checkpoint", kWarning, "a file beside the checkpoint was passed over",
     "remove what does not belong to the checkpoint"},
    // Configuration.
    {"architecture", kWarning,
     "the architecture is not known here: weights are judged by name only",
     "audit it with a build that knows this architecture"},
    {"table", kError, "quantization_config cannot be read as a table of precisions", kReconvert},
    {"table-unread", kWarning,
     "quantization_config is in a form that is not read here: which weights an engine would "
     "quantize is not checked",
     "see the message; the tensors themselves were checked"},
    {"foreign-config", kInfo, "quantization_config was not written by octavo",
     "convert with octavo to have the table stored with its hash"},
    {"config-missing", kError, "weights are quantized and config.json does not say so",
     "add the quantization_config of the format to config.json"},
    {"config-unquantized", kError, "config.json declares a format and no weight is quantized",
     "remove quantization_config, or quantize the weights"},
    {"config-format", kError, "weights are stored in another format than config.json declares",
     "declare the stored format, or convert again"},
    {"config-twice", kWarning, "config.json holds several quantization configurations that differ",
     "keep quantization_config alone"},
    {"scale-fmt", kError, "scale_fmt says ue8m0 and scales are no powers of two",
     "remove scale_fmt, or convert to fp8-ue8m0"},
    {"scale-fmt-absent", kInfo, "all scales are powers of two and scale_fmt does not say so",
     "scale_fmt \"ue8m0\" would let engines use the scales as they are"},
    {"hf-quant-config", kError, "hf_quant_config.json declares another format than config.json",
     "remove the stale file, or write it anew"},
    {"hf-quant-list", kWarning, "hf_quant_config.json and config.json keep different modules",
     "write both lists from one source"},
    {"kv-cache", kWarning, "an FP8 KV cache is declared and no k_scale or v_scale is stored",
     "remove the key: engines would store the cache in FP8 with scale 1"},
    {"input-scale-missing", kError, "static activation scales are declared or needed, and missing",
     "store X.input_scale; 1 where activations are scaled at run time"},
    {"entry-trailing-dot", kWarning,
     "an entry of the list ends in a dot: some engines never match "
     "it",
     "write the module without the dot"},
    {"list-not-exact", kWarning, "our list of kept modules is not exactly the set of kept matrices",
     kReconvert},
    {"list-differs", kError, "the list that other engines read means another table than ours",
     "convert again, or restore the list: other engines would serve another model"},
    {"list-hidden", kWarning, "modules_to_not_convert is hidden by ignored_layers",
     "write one of the two keys"},
    {"entry-unmatched", kWarning, "an entry of the list matches no module",
     "remove it, or write the full name of a module without \".weight\""},
    {"entry-fused-name", kWarning, "an entry names a fused module: only its shards are compared",
     "list every shard by its own name instead"},
    {"kept-by-one-expert", kWarning,
     "all experts of a layer stay BF16 because one of them is listed",
     "list the container of experts if all are meant, otherwise remove the entry"},
    // Which weights.
    {"weight-missing", kError, "a weight of the model is not stored", kReconvert},
    {"weight-shape", kError, "a weight has another shape than the model's", kReconvert},
    {"weight-dtype", kError, "a kept weight is no float tensor", "store the weight in BF16"},
    {"expected-quantized", kError,
     "a weight is stored in BF16 and the configuration makes engines expect codes",
     "list the module among those not converted, or quantize the weight"},
    {"expected-bf16", kError, "a weight is stored as codes and the configuration says it is kept",
     "remove the entry that keeps this module, or store the weight in BF16"},
    {"engine-differs", kError, "SGLang would build a module otherwise than it is stored",
     "convert again, or correct the list of kept modules"},
    {"engine-differs-other", kWarning,
     "another engine would build a module otherwise than it is stored",
     "list the module in the form that this engine reads, or serve it with another engine"},
    {"role-quantized", kError,
     "a router, embedding, head or norm is quantized: engines keep those in BF16",
     "convert again with a rule that keeps it"},
    {"not-a-matrix", kError, "a tensor that is no matrix or stack of matrices is quantized",
     "convert again with a rule that keeps it"},
    {"kv-b-quantized", kWarning,
     "kv_b_proj is stored as mxfp8 or nvfp4: engines split it and some read its scales wrongly",
     "keep kv_b_proj in BF16"},
    {"set-split", kError, "members of one fused set are stored in different formats",
     "give all members one format: engines concatenate them"},
    {"unknown-tensor", kInfo, "a tensor that the model's weight table does not know",
     "nothing needs it here; it is kept as it is"},
    {"format-unknown", kWarning, "codes in a form that is none of the formats here",
     "see the message"},
    // Scales.
    {"scale-missing", kError, "codes without their scales",
     "convert again: codes without scales "
     "mean nothing"},
    {"orphan-scale", kError, "scales without a quantized weight",
     "remove the scales, or quantize their weight"},
    {"scale-dtype", kError, "scales of a dtype that the format does not have", kReconvert},
    {"scale-packed", kError,
     "scales are packed UE8M0 bytes in int32: a layout of kernels, not of files",
     "store F32 scales, one a block"},
    {"scale-shape", kError, "scales of another shape than the weight needs", kReconvert},
    {"scale-value", kError, "a scale is zero, negative, NaN or infinite", kReconvert},
    {"scale-subnormal", kWarning, "a scale is subnormal: devices that flush it decode zeros",
     kReconvert},
    {"zero-block", kError, "an all-zero block has scale 0 and NaN codes: it was divided by zero",
     "convert again with a floor under amax"},
    {"scale-inverted", kError,
     "every scale is above 1 and so is what it makes of ordinary codes: these are divisors",
     "convert with --source-scales inverse, which stores the reciprocals; a scale multiplies, in "
     "spite of its name"},
    {"scale-loose", kWarning,
     "hardly any block uses the largest code: the scales are larger than the format needs",
     "look for codes of another FP8 variant (FNUZ), or for scales that were replaced"},
    {"scale-unshared", kError,
     "members of a fused set have different NVFP4 global scales: engines use one for all",
     "convert again with one amax for the set"},
    {"scale-unshared-fp8", kWarning,
     "members of a fused set have different FP8 tensor scales: engines requantize with the largest",
     "convert again with one amax for the set"},
    {"input-scale-unshared", kWarning, "members of a fused set have different input scales",
     "use the largest for all"},
    {"groups-underflow", kInfo, "an outlier leaves many groups with subnormal scales",
     "keep the weight in BF16 if it matters"},
    // Codes and values.
    {"codes-dtype", kError, "weights in E5M2, which is for KV caches", kReconvert},
    {"nan-code", kError, "codes that are NaN", kReconvert},
    {"fnuz-codes", kError,
     "the codes look like E4M3 FNUZ (largest code 7F, never 80), which F8_E4M3 is not",
     "convert again; the bytes of the two variants must not be mixed"},
    {"not-finite", kError, "NaN or infinite values in a kept weight",
     "the source is damaged; fetch it again"},
    // Against the source.
    {"source-table", kError, "the source cannot serve as one",
     "give the checkpoint that this one was converted from"},
    {"source-missing", kError, "the source has no such weight, or it cannot be converted",
     "give the checkpoint that this one was converted from"},
    {"differs", kError, "bytes that the source does not give", kReconvert},
    {"differs-by-rule", kWarning,
     "bytes that the source gives under another quantizer's rules, which are recognised",
     "convert with octavo if the bytes must be those of docs/formats.md"},
    {"rms-error", kWarning, "the error against the source is above twice what the format gives",
     "look for outliers in this weight, and keep it in BF16 if it matters"},
});

}  // namespace

std::span<const AuditCode> AuditCodes() { return kCodes; }

AuditFinding MakeFinding(std::string_view code, std::string_view tensor, std::string message) {
  const auto* const entry = std::ranges::find(kCodes, code, &AuditCode::code);
  CHECK(entry != kCodes.end());
  return {std::string(entry->code), std::string(entry->severity), std::string(tensor),
          std::move(message), std::string(entry->cure)};
}

}  // namespace octavo
