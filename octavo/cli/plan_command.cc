#include <memory>
#include <optional>
#include <string>

#include "octavo/base/status.h"
#include "octavo/checkpoint/hf_config.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_json.h"
#include "octavo/policy/table_text.h"
#include "octavo/sync/serving.h"

namespace octavo {
namespace {

struct PlanFlags {
  std::string model;
  PolicyFlags policy;
  std::string explain;
  bool json = false;
};

Status RunPlanCommand(const PlanFlags& flags) {
  ASSIGN_OR_RETURN(const std::optional<PolicyOptions> policy, ParsePolicy(flags.policy));
  ASSIGN_OR_RETURN(const HfConfig config, ReadModelConfig(flags.model));
  ASSIGN_OR_RETURN(const ModelSpec spec, MakeModelSpec(config));
  ASSIGN_OR_RETURN(const PrecisionTable table, ChooseTable(spec, config, policy));
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
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2\n"
              "  octavo plan models/abacus-dense --format fp8 --keep-last 2 --explain "
              "model.layers.7.mlp.up_proj");
  command->callback([flags, exit_code] {
    const Status status = RunPlanCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
