#pragma once
// The KV cache of one kv head in one page of 32 tokens, in panels (layout.h):
//
//   K: two panels of 16 keys over head_dim (keys are the columns of QK^T)
//   V: panels of 16 dims over the 32 tokens (tokens are the depth of PV: one tile)
//
// as BF16 pairs, or as E4M3 in the byte order of FP8 panels, followed by the scale codes (E8M0) of
// the 32 tokens for K and then for V.

#include <cstdint>

#include "octavo/base/tensor.h"
#include "octavo/kernels/cpu/layout.h"
#include "octavo/kernels/ops.h"

namespace octavo::cpu {

struct KvLayout {
  int64_t head_dim = 0;
  int64_t value_dim = 0;
  bool is_fp8 = false;

  static constexpr KvLayout Of(const KvShape& shape) {
    return {shape.head_dim, shape.ValueDim(), shape.dtype == DType::kF8E4m3};
  }

  // In elements: BF16, or bytes of FP8.
  constexpr int64_t KeyDepth() const { return RoundUp(head_dim, kTileDepth); }
  constexpr int64_t KeyPanelElems() const { return KeyDepth() * kPanelCols; }
  constexpr int64_t NumValuePanels() const { return NumPanels(value_dim); }
  constexpr int64_t KeyElems() const { return kPageTokens * KeyDepth(); }
  constexpr int64_t ValueElems() const { return NumValuePanels() * kTileElems; }
  // Where dim d of token t (0..31 within the page) lies, from the first element of K or V.
  constexpr int64_t KeyElem(int64_t t, int64_t d) const {
    const int64_t in_panel =
        is_fp8 ? Fp8PanelByte(d, t % kPanelCols) : PanelElem(d, t % kPanelCols);
    return (t / kPanelCols) * KeyPanelElems() + in_panel;
  }
  constexpr int64_t ValueElem(int64_t t, int64_t d) const {
    const int64_t in_panel =
        is_fp8 ? Fp8PanelByte(t, d % kPanelCols) : PanelElem(t, d % kPanelCols);
    return (d / kPanelCols) * kTileElems + in_panel;
  }

  // In bytes, from the head's first.
  constexpr int64_t ElemBytes() const { return is_fp8 ? 1 : 2; }
  constexpr int64_t ValuesAt() const { return KeyElems() * ElemBytes(); }
  constexpr int64_t KeyScalesAt() const { return ValuesAt() + ValueElems() * ElemBytes(); }
  constexpr int64_t ValueScalesAt() const { return KeyScalesAt() + kPageTokens; }
  constexpr int64_t HeadBytes() const { return KeyScalesAt() + (is_fp8 ? 2 * kPageTokens : 0); }

  // Floats from row to row of PV: whole panels.
  constexpr int64_t OutputStride() const { return NumValuePanels() * kPanelCols; }
};

}  // namespace octavo::cpu
