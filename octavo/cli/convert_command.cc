#include <algorithm>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/convert/convert.h"
#include "octavo/convert/source_tensors.h"
#include "octavo/measure/progress.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"
#include "octavo/policy/table_text.h"

namespace octavo {
namespace {

struct ConvertFlags {
  std::string model;
  std::string out;
  PolicyFlags policy;
  int threads = 0;
  bool resume = false;
  bool direct = false;
  std::string source_scales = "multiply";
  bool json = false;
};

// A model of stacked experts has a note for each of them.
constexpr int64_t kNotesShown = 20;

std::string ConvertText(const ConvertReport& report, const std::string& out) {
  int64_t num_quantized = 0;
  double worst_error = 0.0;
  std::string notes;
  int64_t num_notes = 0;
  for (const ConvertedTensor& tensor : report.tensors) {
    if (tensor.error.has_value()) {
      ++num_quantized;
      worst_error = std::max(worst_error, tensor.error->RelativeRms());
    }
    if (!tensor.note.empty() && ++num_notes <= kNotesShown) {
      notes += fmt::format("note       {}: {}\n", tensor.name, tensor.note);
    }
  }
  if (num_notes > kNotesShown) {
    notes += fmt::format("note       {} more of them; --json has all\n", num_notes - kNotesShown);
  }
  return fmt::format(
      "{}wrote      {}\ntensors    {}, {} of them quantized (largest relative RMS error {:.2f} %)\n"
      "bytes      {} -> {} ({:.1f} %)\nseconds    {:.2f}\ntable      {}",
      notes, out, report.tensors.size(), num_quantized, 100.0 * worst_error,
      BytesText(report.bytes_in), BytesText(report.bytes_out),
      100.0 * static_cast<double>(report.bytes_out) /
          static_cast<double>(std::max<int64_t>(report.bytes_in, 1)),
      report.seconds, report.table_hash);
}

Status RunConvertCommand(const ConvertFlags& flags) {
  if (flags.model.empty() || flags.out.empty()) {
    return InvalidArgument("{} is required; run `octavo convert --help` for the options",
                           flags.model.empty() ? "MODEL" : "OUT");
  }
  ASSIGN_OR_RETURN(const std::optional<PolicyOptions> policy, ParsePolicy(flags.policy));
  if (!policy.has_value()) {
    return InvalidArgument("--format: expected one, or --policy or --preset");
  }
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(flags.model));
  RETURN_IF_ERROR(CheckAcceptedSource(checkpoint));
  ASSIGN_OR_RETURN(const ModelSpec spec, MakeCheckpointSpec(checkpoint));
  ASSIGN_OR_RETURN(const PrecisionTable table, CompilePolicy(spec, *policy));
  auto bar = std::make_unique<ProgressBar>("bytes");
  const auto on_progress = [&](const ConvertProgress& progress) {
    bar->Update(progress.bytes_done, progress.bytes_total);
  };
  ConvertOptions options;
  options.out_dir = flags.out;
  options.num_threads = flags.threads;
  options.resume = flags.resume;
  options.direct = flags.direct;
  options.source.scales_divide = flags.source_scales == "inverse";
  options.progress = on_progress;
  const Result<ConvertReport> report = ConvertCheckpoint(checkpoint, spec, table, options);
  bar.reset();
  if (!report) {
    return report.error();
  }
  for (const std::string& warning : report->warnings) {
    fmt::print(stderr, "octavo: warning: {}\n", warning);
  }
  PrintLine(flags.json ? ConvertReportJson(*report) : ConvertText(*report, flags.out));
  return OkStatus();
}

}  // namespace

void AddConvertCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "convert", "Writes a checkpoint in low precision, chosen layers left in BF16");
  const auto flags = std::make_shared<ConvertFlags>();
  command->add_option(
      "MODEL", flags->model,
      "Model folder in HF layout: BF16, F16, F32, or in any format that is written");
  command->add_option("OUT", flags->out, "Folder to write; must not hold anything else");
  AddPolicyFlags(*command, &flags->policy);
  AddStrategyFlags(*command, &flags->policy);
  const std::string words = "Words of other converters";
  command->add_option("--model-dir", flags->model, "The same as MODEL")->group(words);
  command->add_option("--save-dir", flags->out, "The same as OUT")->group(words);
  command->add_option("--threads", flags->threads, "0: all that may be used; changes no byte")
      ->check(CLI::Range(0, 4096));
  command->add_flag("--resume", flags->resume, "Keep the finished files of an interrupted run");
  command->add_flag("--direct", flags->direct,
                    "Encode F32 and F16 weights as they are, not rounded to BF16 first");
  command
      ->add_option("--source-scales", flags->source_scales,
                   "multiply, or inverse: the FP8 source stores divisors under their names")
      ->check(CLI::IsMember({"multiply", "inverse"}));
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command, "  octavo convert models/abacus-dense out/fp8 --format fp8 --keep-last 2");
  command->callback([flags, exit_code] {
    const Status status = RunConvertCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
