#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/update_client.h"
#include "octavo/measure/progress.h"

namespace octavo {
namespace {

struct PushFlags {
  std::string source;
  std::vector<std::string> urls;
  std::string api_key;
  std::string weight_version;
  std::string in_flight = "retract";
  std::string staging = "shadow";
  int64_t bucket_mb = 64;
  bool json = false;
};

std::string PushText(const PushReport& report) {
  std::string text = fmt::format(
      "version    {}\nseconds    {:.3f}\npause      {:.2f} ms\nbytes      {}\nin flight  {}\n"
      "retracted  {}\nlost       {}\ndigest     {}",
      report.version, report.seconds, report.pause_ms, report.bytes, report.in_flight,
      report.retracted, report.lost, report.digest);
  for (const PushServerReport& server : report.servers) {
    text += fmt::format("\nrecipe     {}{}, {}", server.recipe,
                        server.is_emulated ? " (emulated)" : "", server.url);
  }
  return text;
}

Status RunPushCommand(const PushFlags& flags) {
  ASSIGN_OR_RETURN(const Checkpoint checkpoint, Checkpoint::Open(flags.source));
  std::vector<PushTensor> tensors;
  for (const StoredTensor& tensor : checkpoint.tensors()) {
    tensors.push_back({tensor.name, tensor.view});
  }
  PushOptions options;
  options.api_key = flags.api_key;
  options.bucket_bytes = flags.bucket_mb << 20;
  options.in_flight = flags.in_flight;
  options.staging = flags.staging;
  if (!flags.weight_version.empty()) {
    options.weight_version = flags.weight_version;
  }
  auto bar = std::make_unique<ProgressBar>("bytes");
  options.on_progress = [&](int64_t sent, int64_t total) { bar->Update(sent, total); };
  const Result<PushReport> report = PushCheckpoint(tensors, flags.urls, options);
  bar.reset();
  if (!report) {
    return report.error();
  }
  PrintLine(flags.json ? PushReportJson(*report) : PushText(*report));
  return OkStatus();
}

}  // namespace

void AddPushCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "push", "Sends the weights of a checkpoint to running servers, as one transaction");
  const auto flags = std::make_shared<PushFlags>();
  command->add_option("SOURCE", flags->source, "Model folder, BF16 or stored by the served table")
      ->required();
  command->add_option("--to", flags->urls, "Server; several: all of them or none")->required();
  AddApiKeyFlag(*command, &flags->api_key);
  command->add_option("--weight-version", flags->weight_version,
                      "Label of the new weights; the live one plus one when absent");
  command->add_option("--bucket-mb", flags->bucket_mb, "MiB of one request")
      ->check(CLI::Range(1, 240))
      ->capture_default_str();
  command->add_option("--in-flight", flags->in_flight, "What happens to running requests")
      ->check(CLI::IsMember({"retract", "drain", "abort", "in_place"}))
      ->capture_default_str();
  command
      ->add_option("--staging", flags->staging,
                   "shadow: beside the live weights; in_place: over them, paused, no way back")
      ->check(CLI::IsMember({"shadow", "in_place"}))
      ->capture_default_str();
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo push models/abacus-dense --to http://127.0.0.1:30000 --weight-version 1");
  command->callback([flags, exit_code] {
    const Status status = RunPushCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
