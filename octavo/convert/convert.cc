#include "octavo/convert/convert.h"

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/out_folder.h"
#include "octavo/convert/shard_run.h"
#include "octavo/convert/write_behind.h"
#include "octavo/formats/format.h"
#include "octavo/formats/quantize.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// One run: what its files share.
struct Run {
  const Checkpoint& checkpoint;
  const ConversionPlan& plan;
  const ConvertOptions& options;
  ThreadPool& pool;
  ShardRunner runner;
  Committer committer;
  ConvertReport report;
  int64_t bytes_done = 0;  // Of the files before the one at work.

  void Progress(std::string_view tensor, int64_t bytes_in_shard) {
    if (options.progress) {
      (*options.progress)({.tensor = tensor,
                           .bytes_done = bytes_done + bytes_in_shard,
                           .bytes_total = plan.bytes_in});
    }
  }
};

std::string PathIn(const std::string& dir, std::string_view name) {
  return (std::filesystem::path(dir) / name).string();
}

// The report's line before anything is measured.
ConvertedTensor LineOf(const ConvertStep& step) {
  ConvertedTensor line;
  line.name = step.name;
  line.bytes_in = step.bytes_in;
  for (const StepOutput& output : step.outputs) {
    line.bytes_out += NumElements(output.spec.shape) * DTypeBytes(output.spec.dtype);
  }
  line.note = step.note;
  if (step.row == nullptr) {
    line.format = DTypeName(step.outputs.front().spec.dtype);
    return line;
  }
  line.role = RoleName(step.row->role);
  line.format = WeightFormatName(step.row->format);
  line.rule = step.row->rule;
  return line;
}

int64_t BytesIn(const ShardPlan& shard) {
  int64_t bytes = 0;
  for (const ConvertStep& step : shard.steps) {
    bytes += step.bytes_in;
  }
  return bytes;
}

// The lines of a file that an earlier run finished: sizes as planned, nothing measured.
void ReportFinished(const ShardPlan& shard, Run& run) {
  for (const ConvertStep& step : shard.steps) {
    ConvertedTensor line = LineOf(step);
    line.note += line.note.empty() ? "written by an earlier run" : ", written by an earlier run";
    run.report.tensors.push_back(std::move(line));
  }
  ++run.report.num_files_resumed;
}

void Report(const ShardPlan& shard, const std::vector<QuantizationError>& errors, Run& run) {
  for (size_t i = 0; i < shard.steps.size(); ++i) {
    ConvertedTensor line = LineOf(shard.steps[i]);
    if (errors[i].num_values > 0) {
      line.error = errors[i];
    }
    run.report.tensors.push_back(std::move(line));
  }
}

Status ConvertShard(const ShardPlan& shard, Run& run) {
  ASSIGN_OR_RETURN(ShardWriter writer,
                   ShardWriter::Create(PathIn(run.options.out_dir, shard.file), shard.headers));
  const auto progress = [&](const ConvertStep& step, int64_t bytes) {
    run.Progress(step.name, bytes);
  };
  ASSIGN_OR_RETURN(const std::vector<QuantizationError> errors,
                   run.runner.Run(shard, writer, progress));
  Report(shard, errors, run);
  return run.committer.Submit(std::move(writer));
}

// Files that an earlier run of the same plan finished; none without --resume.
Result<std::vector<bool>> FinishedShards(const ConversionPlan& plan,
                                         const ConvertOptions& options) {
  std::vector<bool> finished;
  for (const ShardPlan& shard : plan.shards) {
    bool is_finished = false;
    if (options.resume) {
      ASSIGN_OR_RETURN(is_finished, IsFinished(shard, options.out_dir));
    }
    finished.push_back(is_finished);
  }
  return finished;
}

Status ConvertShards(Run& run) {
  const ConversionPlan& plan = run.plan;
  ASSIGN_OR_RETURN(const std::vector<bool> finished, FinishedShards(plan, run.options));
  RETURN_IF_ERROR(CheckFreeSpace(plan, finished, run.options.out_dir));
  for (size_t i = 0; i < plan.shards.size(); ++i) {
    const ShardPlan& shard = plan.shards[i];
    if (finished[i]) {
      ReportFinished(shard, run);
    } else {
      RETURN_IF_ERROR(ConvertShard(shard, run));
    }
    run.bytes_done += BytesIn(shard);
    run.Progress(shard.file, 0);
  }
  return run.committer.Wait();
}

// The index and what stands beside the weights; config.json completes the folder.
Status Finish(Run& run) {
  std::vector<ShardContents> contents;
  contents.reserve(run.plan.shards.size());
  for (const ShardPlan& shard : run.plan.shards) {
    contents.push_back({.file = shard.file, .tensors = shard.headers});
  }
  const std::string& out_dir = run.options.out_dir;
  RETURN_IF_ERROR(CopyExtraFiles(run.checkpoint, out_dir));
  RETURN_IF_ERROR(WriteIndex(out_dir, contents));
  if (!run.plan.hf_quant_config_json.empty()) {
    RETURN_IF_ERROR(
        WriteTextFile(PathIn(out_dir, kHfQuantConfigFile), run.plan.hf_quant_config_json));
  }
  RETURN_IF_ERROR(WriteTextFile(PathIn(out_dir, "config.json"), run.plan.config_json));
  return ReleaseOutFolder(out_dir);
}

}  // namespace

Result<ConvertReport> ConvertCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const PrecisionTable& table,
                                        const ConvertOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const ConversionPlan plan,
                   PlanConversion(checkpoint, spec, table,
                                  {.direct = options.direct, .source = options.source}));
  RETURN_IF_ERROR(ClaimOutFolder(checkpoint, plan, options.out_dir));
  ThreadPool pool(options.num_threads > 0 ? options.num_threads : NumUsableThreads());
  Run run = {.checkpoint = checkpoint,
             .plan = plan,
             .options = options,
             .pool = pool,
             .runner = ShardRunner(plan, pool),
             .committer = {},
             .report = {}};
  RETURN_IF_ERROR(ConvertShards(run));
  RETURN_IF_ERROR(Finish(run));
  run.report.bytes_in = plan.bytes_in;
  run.report.bytes_out = plan.bytes_out;
  run.report.passed_through = plan.passes_through;
  run.report.table_hash = table.Hash();
  run.report.warnings = plan.warnings;
  run.report.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return std::move(run.report);
}

}  // namespace octavo
