#pragma once
// The folder that a conversion writes: who may write there, and which files an earlier run
// finished.

#include <string>
#include <string_view>
#include <vector>

#include "octavo/base/status.h"
#include "octavo/checkpoint/checkpoint.h"
#include "octavo/convert/conversion_plan.h"

namespace octavo {

// Name of the file that marks a folder as an unfinished run.
inline constexpr std::string_view kConvertStateFile = ".octavo-convert.json";

// Makes or claims `out_dir` for `plan`: writes the state file first and clears the temporary files
// of a killed run. Errors: kInvalidArgument for the source itself, a folder with anything else in
// it, and an unfinished run of another plan.
Status ClaimOutFolder(const Checkpoint& checkpoint, const ConversionPlan& plan,
                      const std::string& out_dir);

// Whether `out_dir` holds the finished file of `shard`: it is there, for files appear whole, and
// has exactly the shard's tensors. Errors: kCorrupt when it is there and is not that.
Result<bool> IsFinished(const ShardPlan& shard, const std::string& out_dir);

// Whether the disk of `out_dir` has room for the files that are not finished. Errors: kExhausted
// with what is needed and what is free.
Status CheckFreeSpace(const ConversionPlan& plan, const std::vector<bool>& finished,
                      const std::string& out_dir);

// Removes the state file: the conversion is complete.
Status ReleaseOutFolder(const std::string& out_dir);

}  // namespace octavo
