#pragma once
// One check of the arguments per op, shared by all backends. A wrong shape is our own bug, so these
// are CHECKs; what a backend does not have is its own kUnsupported.

#include "octavo/kernels/ops.h"

namespace octavo {

// `activation` is the backend's A: kBf16, or kF32 in the reference's fp32 recipe.
void CheckArgs(const EmbedArgs& args, DType activation);
void CheckArgs(const RmsNormArgs& args, DType activation);
void CheckArgs(const AddArgs& args, DType activation);
void CheckArgs(const LinearArgs& args, DType activation);
void CheckArgs(const RopeArgs& args, DType activation);
void CheckArgs(const SiluMulArgs& args, DType activation);
void CheckArgs(const GatherRowsArgs& args, DType activation);
void CheckArgs(const CopyArgs& args, DType activation);
void CheckArgs(const GroupedLinearArgs& args, DType activation);
void CheckArgs(const RouteArgs& args, DType activation);
void CheckArgs(const SortByExpertArgs& args);
void CheckArgs(const CombineArgs& args, DType activation);
void CheckArgs(const KvStoreArgs& args, DType activation);
void CheckArgs(const AttentionArgs& args, DType activation);
void CheckArgs(const SoftmaxStatsArgs& args);

// The check that every Backend::Pack starts with: sizes of spans, scales that are numbers, a form
// of input that goes with the format. Errors: kInvalidArgument, saying which and expected and
// actual; kUnsupported for a form that does not go with the format, and for mxfp8 scales outside
// 2^-117 .. 2^119 on groups that are not all zeros, whose values are not exact in BF16.
Status CheckCanonical(const CanonicalMatrix& matrix);

}  // namespace octavo
