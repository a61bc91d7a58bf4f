#pragma once
// /pull_weights: brings a checkpoint folder of this host up to a version that a trainer published
// on a shared disk (weight_delta.h), for /update_weights_from_disk to read.
//
// A transaction: everything is read, patched and checked in memory and temporary files first; then
// the files are renamed. An error leaves the folder as it was.
//
//   LOCAL/.weight_sync/state.json  {"version": "000007"}; absent while files are being renamed, so
//                                  that a machine that stops there begins anew from a whole version
//   LOCAL/.weight_sync/lock        held while a pull works: engines may share a folder
//
// Version 0 is `base_dir`. The folder and its state are those of slime's and miles' patch of SGLang
// (python/sglang/srt/weight_sync/local_checkpoint.py), except that theirs patches in place.

#include <cstdint>
#include <string>

#include "octavo/base/status.h"

namespace octavo {

struct PullOptions {
  std::string local_dir;   // Made when it is absent. Other regular files in it are removed.
  std::string base_dir;    // The served checkpoint. It is never written.
  std::string source_dir;  // Of the folders weight_vNNNNNN; not read for version 0.
  int64_t target_version = 0;
  double lock_timeout_s = 600.0;  // For another engine that pulls into the same folder.
};

struct PullReport {
  int64_t from_version = -1;  // What the folder held; -1: nothing known.
  int64_t seed_version = -1;  // The whole version that was copied; -1: none, only deltas.
  int64_t num_deltas = 0;
  int64_t num_tensors = 0;    // That changed.
  int64_t bytes_written = 0;  // Of the files that are new.
};

// The newest whole version up to the target is copied when the folder has none, a later one than
// the target, or an earlier one than that; then every delta is applied in order. A folder at the
// target is left alone.
// Errors: kInvalidArgument (a version below 0, folders that are one another); those of
// WeightDelta; kCorrupt naming the version: a base that is not the version before, a weight that
// the checkpoint lacks; kUnavailable when another engine holds the lock; those of the file system.
Result<PullReport> PullWeights(const PullOptions& options);

}  // namespace octavo
