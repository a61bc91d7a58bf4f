#include "octavo/base/gzip.h"

#include <zlib.h>

#include <array>
#include <cstddef>
#include <string>

#include "octavo/base/status.h"

namespace octavo {

Result<std::string> ReadTextOrGzip(const std::string& path) {
  const gzFile file = gzopen(path.c_str(), "rb");
  if (file == nullptr) {
    return NotFound("{}: no such file, or it cannot be read", path);
  }
  std::string bytes;
  std::array<char, std::size_t{1} << 16> piece = {};
  int num_bytes = 0;
  while ((num_bytes = gzread(file, piece.data(), piece.size())) > 0) {
    bytes.append(piece.data(), static_cast<std::size_t>(num_bytes));
  }
  int code = Z_OK;
  const std::string reason = num_bytes < 0 ? gzerror(file, &code) : "";
  // A file that ends within a stream is only told of here.
  if (const int closed = gzclose(file); num_bytes < 0 || closed != Z_OK) {
    return Corrupt("{}: expected a whole gzip file: {}", path, reason.empty() ? "cut off" : reason);
  }
  return bytes;
}

}  // namespace octavo
