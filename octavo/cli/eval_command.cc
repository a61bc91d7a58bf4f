#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/cli/cli.h"
#include "octavo/cli/commands.h"
#include "octavo/client/generate_client.h"
#include "octavo/client/http_client.h"
#include "octavo/measure/eval.h"
#include "octavo/measure/generator.h"
#include "octavo/measure/problems.h"
#include "octavo/measure/progress.h"
#include "octavo/sync/serving.h"
#include "octavo/text/tokenizer.h"

namespace octavo {
namespace {

struct EvalFlags {
  ServingFlags serving;
  std::string url;
  std::string api_key;
  std::string data;
  EvalOptions eval;
  bool json = false;
};

// The generator of a run with whatever it stands on.
struct Source {
  std::unique_ptr<Serving> serving;
  std::unique_ptr<Tokenizer> tokenizer;
  std::unique_ptr<TextGenerator> generator;
  std::string model_path;
  std::string recipe;  // Empty for a server that does not say.
  bool is_emulated = false;
};

Result<Source> OpenUrl(const EvalFlags& flags) {
  ASSIGN_OR_RETURN(const HttpUrl url, ParseServer(flags.url, flags.api_key));
  HttpClient client(url);
  ASSIGN_OR_RETURN(const ModelInfo info, GetModelInfo(client));
  Source source;
  source.model_path = info.model_path;
  source.recipe = info.recipe;
  source.is_emulated = info.is_emulated;
  source.generator = MakeUrlGenerator(url, {});
  return source;
}

Result<Source> OpenModel(const ServingFlags& flags) {
  Source source;
  ASSIGN_OR_RETURN(const ServingOptions options, ParseServing(flags));
  ASSIGN_OR_RETURN(Tokenizer tokenizer, Tokenizer::LoadFolder(flags.model));
  source.tokenizer = std::make_unique<Tokenizer>(std::move(tokenizer));
  ASSIGN_OR_RETURN(source.serving, StartServing(options));
  source.model_path = flags.model;
  source.recipe = source.serving->recipe;
  source.is_emulated = source.serving->is_emulated;
  source.generator = MakeEngineGenerator(source.serving->engine.get(), source.tokenizer.get());
  return source;
}

Status RunEvalCommand(const CLI::App& command, EvalFlags flags) {
  if (flags.url.empty() == flags.serving.model.empty()) {
    return InvalidArgument("octavo eval: expected either MODEL or --url");
  }
  const std::string of_model = GivenFlag(command, {kPolicyGroup, kEngineGroup});
  if (!flags.url.empty() && !of_model.empty()) {
    return InvalidArgument("{}: expected only beside MODEL; the server of --url has its own",
                           of_model);
  }
  ASSIGN_OR_RETURN(const std::vector<Problem> problems, ReadProblems(flags.data));
  ASSIGN_OR_RETURN(const Source source,
                   flags.url.empty() ? OpenModel(flags.serving) : OpenUrl(flags));
  const std::string chat_stop = ChatStop(source.model_path);
  if (!chat_stop.empty()) {
    flags.eval.extra_stop.push_back(chat_stop);
  }
  auto bar = std::make_unique<ProgressBar>("questions");
  flags.eval.on_progress = [&](int64_t done, int64_t total) { bar->Update(done, total); };
  Result<EvalReport> report = RunEval(problems, *source.generator, flags.eval);
  bar.reset();
  if (!report) {
    return report.error();
  }
  report->recipe = source.recipe;
  report->is_emulated = source.is_emulated;
  if (source.serving != nullptr) {
    report->nvfp4_inputs = source.serving->engine->Stats().nvfp4_inputs_total;
  }
  PrintLine(flags.json ? EvalReportJson(*report) : EvalReportText(*report));
  return OkStatus();
}

}  // namespace

void AddEvalCommand(CLI::App& app, int* exit_code) {
  CLI::App* command = app.add_subcommand(
      "eval", "Accuracy over word problems in GSM8K's format, on a server or in this process");
  const auto flags = std::make_shared<EvalFlags>();
  AddServingFlags(*command, &flags->serving, false);
  CLI::Option* url = command->add_option("--url", flags->url, "A running server instead of MODEL");
  AddApiKeyFlag(*command, &flags->api_key)->needs(url);
  command->add_option("--data", flags->data, "JSON lines with question and answer")->required();
  command->add_option("--num-shots", flags->eval.num_shots, "Solved problems before each question")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str();
  command->add_option("--num-questions", flags->eval.num_questions, "Questions to ask; 0: all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--parallel", flags->eval.parallel, "Requests in flight")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--max-new-tokens", flags->eval.max_new_tokens, "Tokens of one reply")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--temperature", flags->eval.temperature, "0: greedy")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--top-p", flags->eval.top_p, "Nucleus of the sampler")
      ->check(CLI::Range(0.0, 1.0));
  command->add_flag("--json", flags->json, "Print one JSON object");
  AddExamples(*command,
              "  octavo eval models/abacus-dense --data data/abacus-test.jsonl --num-shots 0\n"
              "  octavo eval models/abacus-dense --format fp8 --keep-last 2 --data "
              "data/abacus-test.jsonl --num-shots 0\n"
              "  octavo eval models/abacus-moe --format nvfp4 --nvfp4-input-scale pow2 --data "
              "data/abacus-test.jsonl --num-shots 0\n"
              "  octavo eval --url http://127.0.0.1:30000 --data data/abacus-test.jsonl "
              "--num-shots 0 --parallel 64");
  command->callback([command, flags, exit_code] {
    const Status status = RunEvalCommand(*command, *flags);
    *exit_code = status.ok() ? kExitOk : ReportError(status);
  });
}

}  // namespace octavo
