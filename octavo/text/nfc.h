#pragma once
// Unicode normalization form C, as HF `tokenizers` computes it.

#include <string>
#include <string_view>

namespace octavo {

// The NFC form of `text`, which must be UTF-8.
//
// HF's normalizer carries the tables of Unicode 9 (crate unicode-normalization-alignments 0.1).
// Marks assigned since then it takes for starters: it neither reorders nor composes them, and so
// do we, since a model has seen what HF made of its texts. The data come from utf8proc (2.8:
// Unicode 15) with those code points left out; nfc.cc lists them.
//
// Thread-safe. n log n in the length of the longest run of combining marks, linear otherwise.
std::string NormalizeNfc(std::string_view text);

// False when NormalizeNfc would surely change nothing: no code point from U+0300 on. Linear.
bool MayChangeUnderNfc(std::string_view text);

}  // namespace octavo
