#pragma once
// Test data that is kept compressed.

#include <gtest/gtest.h>
#include <zlib.h>

#include <array>
#include <string>

namespace octavo {

// What a gzip file holds; a failed expectation, and nothing, when it cannot be read.
inline std::string ReadGzip(const std::string& path) {
  std::string bytes;
  const gzFile file = gzopen(path.c_str(), "rb");
  EXPECT_NE(file, nullptr) << path;
  if (file == nullptr) return bytes;
  std::array<char, 1 << 16> piece;
  int num_bytes = 0;
  while ((num_bytes = gzread(file, piece.data(), piece.size())) > 0) {
    bytes.append(piece.data(), static_cast<size_t>(num_bytes));
  }
  EXPECT_EQ(num_bytes, 0) << path;
  EXPECT_EQ(gzclose(file), Z_OK) << path;
  return bytes;
}

}  // namespace octavo
