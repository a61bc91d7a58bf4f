#include "octavo/convert/convert.h"

#include <fmt/core.h>

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "octavo/base/check.h"
#include "octavo/base/file.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/base/thread_pool.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/checkpoint/writer.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/measure.h"
#include "octavo/convert/out_folder.h"
#include "octavo/convert/transform.h"
#include "octavo/formats/format.h"
#include "octavo/formats/fp8_block.h"
#include "octavo/model/spec/model_spec.h"
#include "octavo/policy/precision_table.h"

namespace octavo {
namespace {

// One run: what its steps share.
struct Run {
  const Checkpoint& checkpoint;
  const ConversionPlan& plan;
  const ConvertOptions& options;
  ThreadPool pool;
  ConvertReport report;
  int64_t bytes_done = 0;

  void Advance(const StoredTensor& tensor) {
    bytes_done += tensor.view.NumBytes();
    if (options.progress) {
      (*options.progress)(
          {.tensor = tensor.name, .bytes_done = bytes_done, .bytes_total = plan.bytes_in});
    }
  }
};

std::string PathIn(const std::string& dir, std::string_view name) {
  return (std::filesystem::path(dir) / name).string();
}

// The report's line before anything is measured.
ConvertedTensor LineOf(const ConvertStep& step) {
  ConvertedTensor line;
  line.name = step.source->name;
  line.bytes_in = step.source->view.NumBytes();
  line.bytes_out = line.bytes_in;
  if (step.row == nullptr) {
    line.format = DTypeName(step.source->view.dtype);
    return line;
  }
  line.format = WeightFormatName(step.row->format);
  if (step.action == ConvertAction::kKeep && step.source->view.dtype != DType::kBf16) {
    line.note = fmt::format("kept as {}", DTypeName(step.source->view.dtype));
  }
  return line;
}

Status Transform(const ConvertStep& step, Run& run, ShardWriter& writer, ConvertedTensor& line) {
  ASSIGN_OR_RETURN(const std::vector<OwnedTensor> stored,
                   TransformWeight(*step.row, step.source->view, {.pool = &run.pool}));
  line.bytes_out = 0;
  for (const OwnedTensor& tensor : stored) {
    RETURN_IF_ERROR(writer.Append(tensor.View()));
    line.bytes_out += tensor.bytes.num_bytes();
  }
  const Fp8BlockError error =
      MeasureStored(step.source->view, stored[0].View(), stored[1].View(), &run.pool);
  line.relative_rms_error = error.RelativeRms();
  line.num_saturated = error.num_saturated;
  line.num_zero_blocks = error.num_zero_blocks;
  return OkStatus();
}

// Checks a weight that is copied: the transform refuses what must not be stored.
Status CheckCopied(const ConvertStep& step, Run& run) {
  if (step.action == ConvertAction::kKeep) {
    return CheckWeight(*step.row, step.source->view, &run.pool);
  }
  std::vector<ConstTensorView> stored;
  for (const StoredTensorSpec& spec : StoredTensorsOf(*step.row)) {
    const StoredTensor* part = run.checkpoint.Find(spec.name);
    CHECK(part != nullptr);  // PlanConversion saw it.
    stored.push_back(part->view);
  }
  return AdoptStored(*step.row, stored).error();
}

Status RunStep(const ConvertStep& step, Run& run, ShardWriter& writer) {
  ConvertedTensor line = LineOf(step);
  if (step.action == ConvertAction::kTransform) {
    RETURN_IF_ERROR(Transform(step, run, writer, line));
  } else {
    if (step.row != nullptr) {
      RETURN_IF_ERROR(CheckCopied(step, run));
    }
    RETURN_IF_ERROR(writer.Append(step.source->view));
  }
  run.report.tensors.push_back(std::move(line));
  run.Advance(*step.source);
  return OkStatus();
}

// The lines of a file that an earlier run finished: sizes as planned, nothing measured.
void ReportFinished(const ShardPlan& shard, Run& run) {
  for (const ConvertStep& step : shard.steps) {
    ConvertedTensor line = LineOf(step);
    if (step.action == ConvertAction::kTransform) {
      line.bytes_out = 0;
      for (const StoredTensorSpec& spec : StoredTensorsOf(*step.row)) {
        line.bytes_out += NumElements(spec.shape) * DTypeBytes(spec.dtype);
      }
    }
    line.note += line.note.empty() ? "written by an earlier run" : ", written by an earlier run";
    run.report.tensors.push_back(std::move(line));
    run.Advance(*step.source);
  }
  ++run.report.num_files_resumed;
}

Status ConvertShard(const ShardPlan& shard, Run& run) {
  if (run.options.resume) {
    ASSIGN_OR_RETURN(const bool finished, IsFinished(shard, run.options.out_dir));
    if (finished) {
      ReportFinished(shard, run);
      return OkStatus();
    }
  }
  ASSIGN_OR_RETURN(ShardWriter writer,
                   ShardWriter::Create(PathIn(run.options.out_dir, shard.file), shard.headers));
  for (const ConvertStep& step : shard.steps) {
    RETURN_IF_ERROR(RunStep(step, run, writer));
  }
  return writer.Commit();
}

// The index and what stands beside the weights; config.json completes the folder.
Status Finish(Run& run) {
  std::vector<ShardContents> contents;
  contents.reserve(run.plan.shards.size());
  for (const ShardPlan& shard : run.plan.shards) {
    contents.push_back({.file = shard.file, .tensors = shard.headers});
  }
  RETURN_IF_ERROR(CopyExtraFiles(run.checkpoint, run.options.out_dir));
  RETURN_IF_ERROR(WriteIndex(run.options.out_dir, contents));
  RETURN_IF_ERROR(WriteTextFile(PathIn(run.options.out_dir, "config.json"), run.plan.config_json));
  return ReleaseOutFolder(run.options.out_dir);
}

void NoteUnknown(const ConversionPlan& plan, ConvertReport& report) {
  for (ConvertedTensor& line : report.tensors) {
    if (std::ranges::binary_search(plan.unknown, line.name)) {
      line.note = "not in the model's weight table: kept as it is";
    }
  }
}

}  // namespace

Result<ConvertReport> ConvertCheckpoint(const Checkpoint& checkpoint, const ModelSpec& spec,
                                        const PrecisionTable& table,
                                        const ConvertOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  ASSIGN_OR_RETURN(const ConversionPlan plan, PlanConversion(checkpoint, spec, table));
  RETURN_IF_ERROR(ClaimOutFolder(checkpoint, plan, options.out_dir));
  const int num_threads = options.num_threads > 0 ? options.num_threads : NumUsableThreads();
  Run run = {.checkpoint = checkpoint,
             .plan = plan,
             .options = options,
             .pool = ThreadPool(num_threads),
             .report = {}};
  for (const ShardPlan& shard : plan.shards) {
    RETURN_IF_ERROR(ConvertShard(shard, run));
  }
  RETURN_IF_ERROR(Finish(run));
  NoteUnknown(plan, run.report);
  run.report.bytes_in = plan.bytes_in;
  run.report.bytes_out = plan.bytes_out;
  run.report.passed_through = plan.passes_through;
  run.report.table_hash = table.Hash();
  run.report.seconds =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return std::move(run.report);
}

std::string ConvertReportJson(const ConvertReport& report) {
  nlohmann::ordered_json tensors = nlohmann::ordered_json::array();
  for (const ConvertedTensor& tensor : report.tensors) {
    nlohmann::ordered_json line = {{"name", tensor.name},
                                   {"format", tensor.format},
                                   {"bytes_in", tensor.bytes_in},
                                   {"bytes", tensor.bytes_out},
                                   {"relative_rms_error", nullptr},
                                   {"saturated", tensor.num_saturated},
                                   {"zero_blocks", tensor.num_zero_blocks},
                                   {"note", tensor.note}};
    if (tensor.relative_rms_error) {
      line["relative_rms_error"] = *tensor.relative_rms_error;
    }
    tensors.push_back(std::move(line));
  }
  const nlohmann::ordered_json json = {{"seconds", report.seconds},
                                       {"bytes_in", report.bytes_in},
                                       {"bytes_out", report.bytes_out},
                                       {"table_hash", report.table_hash},
                                       {"passed_through", report.passed_through},
                                       {"files_resumed", report.num_files_resumed},
                                       {"tensors", std::move(tensors)}};
  return json.dump(2, ' ', false, nlohmann::ordered_json::error_handler_t::replace);
}

}  // namespace octavo
