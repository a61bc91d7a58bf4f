#include "octavo/model/rope_table.h"

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/buffer.h"
#include "octavo/base/check.h"
#include "octavo/base/status.h"

namespace octavo {

Result<RopeTable> RopeTable::Make(double theta, int64_t head_dim, int64_t num_positions) {
  CHECK(head_dim % 2 == 0);
  const int64_t num_pairs = head_dim / 2;
  RopeTable table;
  const int64_t num_bytes = num_positions * num_pairs * int64_t{sizeof(float)};
  ASSIGN_OR_RETURN(table.cos_, Buffer::AllocateHost(num_bytes));
  ASSIGN_OR_RETURN(table.sin_, Buffer::AllocateHost(num_bytes));

  std::vector<double> frequency(static_cast<size_t>(num_pairs));
  for (int64_t i = 0; i < num_pairs; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(head_dim);
    frequency[static_cast<size_t>(i)] = std::pow(theta, exponent);
  }
  const std::span<float> cos = table.cos_.As<float>();
  const std::span<float> sin = table.sin_.As<float>();
  size_t element = 0;
  for (int64_t position = 0; position < num_positions; ++position) {
    for (const double f : frequency) {
      const double angle = static_cast<double>(position) * f;
      cos[element] = static_cast<float>(std::cos(angle));
      sin[element] = static_cast<float>(std::sin(angle));
      ++element;
    }
  }
  return table;
}

}  // namespace octavo
