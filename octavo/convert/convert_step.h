#pragma once
// One step of a conversion, piece by piece: rows of a source weight into bytes of the tensors that
// the target stores. Pieces of a step may be done in any order, on any thread.

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "octavo/base/function_ref.h"
#include "octavo/base/status.h"
#include "octavo/base/tensor.h"
#include "octavo/convert/conversion_plan.h"
#include "octavo/convert/source.h"
#include "octavo/formats/quantize.h"

namespace octavo {

// What must be known of a whole weight, or of its set, before a piece of it is written.
struct StepContext {
  float amax = 0.0F;           // Of the sharing set.
  bool codes_survive = false;  // Of kGroupsToBlocks.
  bool direct = false;
};

// Takes bytes of outputs[output_idx] of the step, from `offset_bytes` in that tensor on.
using PutBytes =
    FunctionRef<Status(size_t output_idx, int64_t offset_bytes, std::span<const std::byte> bytes)>;

// Scratch of one worker. One thread each.
class StepWorker {
 public:
  // Does `rows` of the step, one of PiecesOf its source; the first piece also gives what belongs
  // to the whole. Returns the error of what was encoded; all zero for other actions.
  // Errors: kInvalidArgument naming the tensor for what cannot be stored; those of `put`.
  Result<QuantizationError> Run(const ConvertStep& step, const StepContext& context,
                                const RowRange& rows, PutBytes put);

  // The largest magnitude of the rows, as they would be encoded. NaN and infinity are found by Run.
  float Amax(const ConvertStep& step, const RowRange& rows, bool direct);

  // Of kGroupsToBlocks: whether every code of the rows survives the division by the power of two
  // between its group's scale and the largest of its tile.
  bool CodesSurvive(const ConvertStep& step, const RowRange& rows);

 private:
  Result<QuantizationError> Encode(const ConvertStep& step, const StepContext& context,
                                   const RowRange& rows, PutBytes put);
  Status Keep(const ConvertStep& step, const RowRange& rows, PutBytes put);
  Status Decode(const ConvertStep& step, const RowRange& rows, PutBytes put);
  Status CopyCodes(const ConvertStep& step, const RowRange& rows, PutBytes put);
  Status CopyScales(const ConvertStep& step, PutBytes put);
  Status BlocksToGroups(const ConvertStep& step, const RowRange& rows, PutBytes put);
  Status GroupsToBlocks(const ConvertStep& step, const RowRange& rows, PutBytes put);

  SourceRows reader_;
  std::vector<uint8_t> codes_;
  std::vector<float> scales_;  // Or bytes, in as many floats.
};

}  // namespace octavo
