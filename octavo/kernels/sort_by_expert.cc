#include "octavo/kernels/sort_by_expert.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "octavo/kernels/check_args.h"
#include "octavo/kernels/ops.h"

namespace octavo {

void SortByExpert(const SortByExpertArgs& args) {
  CheckArgs(args);
  const size_t num_slots = args.experts.size();
  std::ranges::fill(args.offsets, 0);
  for (const int32_t expert : args.experts) {
    ++args.offsets[static_cast<size_t>(expert) + 1];
  }
  for (size_t e = 1; e < args.offsets.size(); ++e) {
    args.offsets[e] += args.offsets[e - 1];
  }
  // offsets[e] runs from the first row of e to that of e + 1, and is then moved back by one place.
  for (size_t slot = 0; slot < num_slots; ++slot) {
    int32_t& next = args.offsets[static_cast<size_t>(args.experts[slot])];
    args.row_of_slot[slot] = next;
    args.source_rows[static_cast<size_t>(next)] =
        static_cast<int32_t>(static_cast<int64_t>(slot) / args.top_k);
    ++next;
  }
  for (size_t e = args.offsets.size() - 1; e > 0; --e) {
    args.offsets[e] = args.offsets[e - 1];
  }
  args.offsets[0] = 0;
}

}  // namespace octavo
