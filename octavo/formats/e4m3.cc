#include "octavo/formats/e4m3.h"

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>

namespace octavo {

bool HasNaNCode(std::span<const uint8_t> codes) {
  // Eight at a time: adding 1 to the low seven bits of a byte sets its top bit for 0x7F alone.
  constexpr uint64_t kLowBits = 0x7F7F7F7F7F7F7F7FU;
  constexpr uint64_t kOnes = 0x0101010101010101U;
  uint64_t found = 0;
  size_t i = 0;
  for (; i + sizeof(uint64_t) <= codes.size(); i += sizeof(uint64_t)) {
    uint64_t word = 0;
    std::memcpy(&word, &codes[i], sizeof(word));
    found |= ((word & kLowBits) + kOnes) & ~kLowBits;
  }
  bool tail_found = false;
  for (; i < codes.size(); ++i) {
    tail_found = tail_found || IsE4m3NaN(codes[i]);
  }
  return found != 0 || tail_found;
}

}  // namespace octavo
