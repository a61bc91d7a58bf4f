#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_json.h"
#include "octavo/policy/table_text.h"

namespace octavo {
namespace {

struct PlanFlags {
  std::string model;
  PolicyFlags policy;
  std::string explain;
  std::string as;
  bool json = false;
};

// What another engine does with a checkpoint. False: it differs from what is stored.
Result<bool> RunPlanAs(const PlanFlags& flags) {
  const std::optional<ForeignEngine> engine = ParseEngine(flags.as);
  if (!engine) {
    return InvalidArgument(
        "--as: expected sglang, vllm, transformers, compressed-tensors or modelopt, got {}",
        flags.as);
  }
  if (!flags.policy.format.empty() || !flags.explain.empty()) {
    return InvalidArgument("--as: judges a checkpoint as it is: without --format and --explain");
  }
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  ASSIGN_OR_RETURN(const ModelSpec spec, MakeCheckpointSpec(checkpoint));
  const std::string& config = checkpoint.config().quantization_config;
  std::vector<StoredDType> stored;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    stored.push_back({tensor.name, tensor.view.dtype, tensor.view.shape});
  }
  ASSIGN_OR_RETURN(
      const PlanAsReport report,
      PlanAs({.spec = &spec, .quantization_config = config, .stored = stored, .engine = *engine}));
  PrintLine(flags.json ? PlanAsJson(report) : PlanAsText(report));
  return report.ok();
}

// With the names that the tensors have; a folder of config.json alone is planned too.
Result<ModelSpec> SpecOf(const std::string& model, const HfConfig& config) {
  const Result<Checkpoint> checkpoint = Checkpoint::Open(model);
  if (checkpoint) {
    return MakeCheckpointSpec(*checkpoint);
  }
  if (checkpoint.error().code() != StatusCode::kNotFound) {
    return checkpoint.error();
  }
  return MakeModelSpec(config);
}

// By the policy, or as it is stored. A policy beside a checkpoint that stores something else is
// what a conversion would make of it.
Result<PrecisionTable> PlannedTable(const ModelSpec& spec, const HfConfig& config,
                                    const std::optional<PolicyOptions>& policy) {
  if (!policy.has_value()) {
    return TableFromQuantizationConfig(spec, config.quantization_config);
  }
  ASSIGN_OR_RETURN(PrecisionTable table, CompilePolicy(spec, *policy));
  if (!config.quantization_config.empty()) {
    const auto stored = TableFromQuantizationConfig(spec, config.quantization_config);
    if (!stored || stored->Hash() != table.Hash()) {
      fmt::print(stderr,
                 "octavo: the checkpoint stores another table: this is what `octavo convert` would "
                 "write\n");
    }
  }
  return table;
}

Status RunPlanCommand(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(const std::optional<PolicyOptions> policy, ParsePolicy(flags.policy));
  ASSIGN_OR_RETURN(const HfConfig config, ReadHfConfig(flags.model));
  ASSIGN_OR_RETURN(const ModelSpec spec, SpecOf(flags.model, config));
  ASSIGN_OR_RETURN(const PrecisionTable table, PlannedTable(spec, config, policy));
  if (flags.explain.empty()) {
    PrintLine(flags.json ? TableToJson(table) : TableToText(table));
    return OkStatus();
  }
  if (flags.json) {
    ASSIGN_OR_RETURN(const PrecisionRow* row, FindRow(table, flags.explain));
    PrintLine(RowToJson(*row));
    return OkStatus();
  }
  ASSIGN_OR_RETURN(const std::string text, ExplainRow(table, flags.explain));
  PrintLine(text);
  return OkStatus();
}

}  // namespace

void AddPlanCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "plan", "Shows which tensor gets which precision, and why; writes nothing");
  const auto flags = std::make_shared<PlanFlags>();
  command->add_option("MODEL", flags->model, "Model folder in HF layout")->required();
  AddPolicyFlags(*command, &flags->policy);
  command->add_option("--explain", flags->explain, "One tensor or module: every rule it met");
  command->add_option("--as", flags->as,
                      "What sglang, vllm, transformers, compressed-tensors or modelopt would do "
                      "with this checkpoint, and where that differs from what is stored");
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2\n"
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2 --explain "
              "model.layers.7.mlp.up_proj\n"
              "  octavo plan out/abacus-fp8 --as sglang");
  command->callback([flags, exit_code] {
    if (!flags->as.empty()) {
      const Result<bool> agrees = RunPlanAs(*flags);
      *exit_code = !agrees ? ReportError(agrees.error()) : *agrees ? kExitOk : kExitFailed;
      return;
    }
    const Status status = RunPlanCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
