#pragma once
// SortByExpertArgs of ops.h on the host: a counting sort, shared by the backends whose memory the
// host reads.

#include "octavo/kernels/ops.h"

namespace octavo {

void SortByExpert(const SortByExpertArgs& args);

}  // namespace octavo
