#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/cli/planned_model.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/engine_modules.h"
#include "octavo/policy/plan_as.h"
#include "octavo/policy/policy_finding.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_json.h"
#include "octavo/policy/table_text.h"
#include "octavo/policy/tensor_parallel.h"

namespace octavo {
namespace {

struct PlanFlags {
  std::string model;
  PolicyFlags policy;
  std::string explain;
  std::string as;
  int64_t tp = 0;  // 0: not asked for.
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

// Where N ranks would cut each weight. False: they could not.
Result<bool> RunPlanTp(const PlanFlags& flags) {
  if (!flags.explain.empty()) {
    return InvalidArgument("--tp: tells of every weight: without --explain");
  }
  ASSIGN_OR_RETURN(const PlannedModel model, PlanModel(flags.model, flags.policy));
  ASSIGN_OR_RETURN(const TensorParallelPlan plan,
                   PlanTensorParallel(model.spec, model.table, flags.tp));
  ASSIGN_OR_RETURN(const std::string text,
                   flags.json ? TensorParallelJson(model.spec, model.table, flags.tp)
                              : TensorParallelText(model.spec, model.table, flags.tp));
  PrintLine(text);
  return plan.is_legal();
}

Status RunPlanCommand(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(const PlannedModel model, PlanModel(flags.model, flags.policy));
  const PrecisionTable& table = model.table;
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
  command
      ->add_option("--tp", flags->tp,
                   "Where so many ranks of tensor parallelism would cut each weight, and which "
                   "sizes are legal and why not; exit code 1: this one is not")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 16));
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2\n"
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2 --explain "
              "model.layers.7.mlp.up_proj\n"
              "  octavo plan models/abacus-dense --format mxfp8 --tp 4\n"
              "  octavo plan out/abacus-fp8 --as sglang");
  command->callback([flags, exit_code] {
    if (!flags->as.empty() || flags->tp > 0) {
      const Result<bool> agrees = !flags->as.empty() ? RunPlanAs(*flags) : RunPlanTp(*flags);
      *exit_code = !agrees ? ReportError(agrees.error()) : *agrees ? kExitOk : kExitFailed;
      return;
    }
    const Status status = RunPlanCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
