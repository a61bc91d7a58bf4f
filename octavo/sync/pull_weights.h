#pragma once
// /pull_weights: brings a checkpoint folder of this host up to a version that a trainer published
// on a shared disk (weight_delta.h), for /update_weights_from_disk to read.
//
// A transaction: everything is read, patched, checked and written to disk beside the folder's files
// first; an error until then leaves the folder as it was. Then one file says what is to be renamed,
// and the renames follow. Whatever stops them - an error, a machine - the next pull finds that file
// and goes on where they stopped, and until then CheckNotSwitching refuses the folder to readers.
//
//   LOCAL/.weight_sync/state.json   {"version": "000007"}; absent while files are being renamed
//   LOCAL/.weight_sync/next/NAME    the new files, whole
//   LOCAL/.weight_sync/switch.json  {"version": "000007", "rename": [NAME], "keep": [NAME] | null}:
//                                   next/NAME to LOCAL/NAME, and every file but `keep` goes
//   LOCAL/.weight_sync/lock         held while a pull works: engines may share a folder
//
// Version 0 is `base_dir`. The folder and its state are those of slime's and miles' patch of SGLang
// (python/sglang/srt/weight_sync/local_checkpoint.py), except that theirs patches in place.

#include <cstdint>
#include <functional>
#include <string>

#include "octavo/base/status.h"

namespace octavo {

struct PullOptions {
  std::string local_dir;   // Made when it is absent. Other regular files in it are removed.
  std::string base_dir;    // The served checkpoint. It is never written.
  std::string source_dir;  // Of the folders weight_vNNNNNN; not read for version 0.
  int64_t target_version = 0;
  double lock_timeout_s = 600.0;  // For another engine that pulls into the same folder.
  // For tests: asked before each file takes its place; an error stops the pull there, as a crash
  // would.
  std::function<Status(const std::string& name)> before_rename = {};
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

// Errors: kUnavailable for a folder whose files are of two versions, because a pull stopped between
// two renames or is at them now. Any folder may be asked about.
Status CheckNotSwitching(const std::string& dir);

}  // namespace octavo
