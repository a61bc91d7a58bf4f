#pragma once
// How PyTorch spells element types, in pickles and in the calls of trainers.

#include <optional>
#include <string_view>

#include "octavo/base/tensor.h"

namespace octavo {

// "bfloat16", "float8_e4m3fn", ..., with or without "torch." in front; nullopt for a type that no
// tensor of ours has (such as float8_e4m3fnuz, complex64). Source: torch/__init__.py, dtypes.
std::optional<DType> DTypeOfTorch(std::string_view name);

// "BFloat16Storage", ...: the typed storages of torch.save's old format. "UntypedStorage" is kU8.
std::optional<DType> DTypeOfTorchStorage(std::string_view name);

}  // namespace octavo
