#pragma once
// The KV cache of one kv head in one page of 32 tokens, in panels (layout.h) of BF16:
//
//   K: two panels of 16 keys over head_dim (keys are the columns of QK^T)
//   V: panels of 16 dims over the 32 tokens (tokens are the depth of PV: one tile)

#include <cstdint>

#include "octavo/kernels/cpu/layout.h"

namespace octavo::cpu {

struct KvLayout {
  int64_t head_dim = 0;
  int64_t value_dim = 0;

  constexpr int64_t KeyDepth() const { return RoundUp(head_dim, kTileDepth); }
  constexpr int64_t KeyPanelElems() const { return KeyDepth() * kPanelCols; }
  constexpr int64_t NumValuePanels() const { return NumPanels(value_dim); }
  constexpr int64_t ValuesOffset() const { return 2 * KeyPanelElems(); }
  constexpr int64_t HeadElems() const { return ValuesOffset() + NumValuePanels() * kTileElems; }
  // Floats from row to row of PV: whole panels.
  constexpr int64_t OutputStride() const { return NumValuePanels() * kPanelCols; }
  // Where dim d of token t (0..31 within the page) lies.
  constexpr int64_t KeyElem(int64_t t, int64_t d) const {
    return (t / kPanelCols) * KeyPanelElems() + PanelElem(d, t % kPanelCols);
  }
  constexpr int64_t ValueElem(int64_t t, int64_t d) const {
    return ValuesOffset() + (d / kPanelCols) * kTileElems + PanelElem(t, d % kPanelCols);
  }
};

}  // namespace octavo::cpu
