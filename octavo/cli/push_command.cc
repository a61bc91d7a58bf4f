#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/probe_client.h"
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
  std::string require = "all";
  double retry_s = 60.0;
  double timeout_s = 600.0;
  int64_t bucket_mb = 64;
  std::string probe;  // A file; empty: none.
  std::optional<double> max_dlogp;
  std::optional<double> max_mean_dlogp;
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
    if (server.probe.has_value()) {
      text += fmt::format(
          "\nprobe      |dlogp| mean {:.6g}, max {:.6g}, k3 {:.6g} over {} tokens of {} sequences, "
          "{}",
          server.probe->mean_dlogp, server.probe->max_dlogp, server.probe->k3,
          server.probe->num_tokens, server.probe->num_sequences, server.url);
    }
  }
  return text;
}

Result<std::optional<Probe>> ReadProbe(const PushFlags& flags) {
  if (flags.probe.empty()) {
    return std::optional<Probe>();
  }
  if (!flags.max_dlogp.has_value() && !flags.max_mean_dlogp.has_value()) {
    return InvalidArgument(
        "--probe: expected --max-dlogp, --max-mean-dlogp or both, for without a bound every "
        "version passes");
  }
  ASSIGN_OR_RETURN(Probe probe, ReadProbeFile(flags.probe));
  probe.max_dlogp = flags.max_dlogp;
  probe.max_mean_dlogp = flags.max_mean_dlogp;
  return std::optional<Probe>(std::move(probe));
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
  ASSIGN_OR_RETURN(options.probe, ReadProbe(flags));
  options.require = flags.require;
  options.timeouts.retry_s = flags.retry_s;
  options.timeouts.idle_s = flags.timeout_s;
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

void AddProbeFlags(CLI::App& command, PushFlags* flags) {
  CLI::Option* probe = command.add_option(
      "--probe", flags->probe,
      "JSON lines of {input_ids, logprobs}: the new weights must give the trainer's logprobs "
      "before they go live");
  command
      .add_option("--max-dlogp", flags->max_dlogp, "Largest |trainer - engine| of a token, in nats")
      ->check(CLI::NonNegativeNumber)
      ->needs(probe);
  command
      .add_option("--max-mean-dlogp", flags->max_mean_dlogp,
                  "Largest mean of |trainer - engine| over all tokens, in nats")
      ->check(CLI::NonNegativeNumber)
      ->needs(probe);
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
  command
      ->add_option(
          "--require", flags->require,
          "Weights that SOURCE must hold: all; seen: those of the server's first update; any")
      ->check(CLI::IsMember({"all", "seen", "any"}))
      ->capture_default_str();
  command
      ->add_option("--retry-s", flags->retry_s,
                   "Seconds for which a call whose connection broke is made again; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command
      ->add_option("--timeout-s", flags->timeout_s,
                   "Seconds without a byte of progress after which a connection has broken")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  AddProbeFlags(*command, flags.get());
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo push models/abacus-dense --to http://127.0.0.1:30000 --weight-version 1");
  command->callback([flags, exit_code] {
    const Status status = RunPushCommand(*flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
