"""Tensors of other libraries as views, without importing those libraries."""

from __future__ import annotations

import sys
from typing import Any, Optional

from octavo import _core

# Types that buffers and DLPack have no name for, by the names that torch and ml_dtypes give them,
# and what safetensors calls them.
_NAMELESS = {
    "bfloat16": ("uint16", "BF16"),
    "float8_e4m3fn": ("uint8", "F8_E4M3"),
    "float8_e5m2": ("uint8", "F8_E5M2"),
    "float8_e8m0fnu": ("uint8", "F8_E8M0"),
}


def _is_torch(tensor: Any) -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and isinstance(tensor, torch.Tensor)


def _prepare_torch(tensor: Any) -> tuple[Any, Optional[str]]:
    if hasattr(tensor, "full_tensor"):
        raise TypeError("expected a whole tensor, got one that is sharded over processes; gather it "
                        "with octavo.fsdp2_tensors")
    tensor = tensor.detach()
    if tensor.device.type != "cpu":
        tensor = tensor.cpu()
    name = str(tensor.dtype).rpartition(".")[2]
    if name.startswith("float8"):  # Older versions cannot export them.
        unsigned, dtype = _NAMELESS.get(name, (None, None))
        if unsigned is None:
            raise TypeError(f"expected a dtype of safetensors, got {tensor.dtype}")
        return tensor.view(getattr(sys.modules["torch"], unsigned)), dtype
    return tensor, None


def _prepare_array(tensor: Any) -> tuple[Any, Optional[str]]:
    name = getattr(getattr(tensor, "dtype", None), "name", "")
    if name in _NAMELESS:  # ml_dtypes in NumPy.
        unsigned, dtype = _NAMELESS[name]
        return tensor.view(unsigned), dtype
    return tensor, None


def as_view(tensor: Any, dtype: Optional[str] = None) -> _core.View:
    """The memory of `tensor` as a view, at its own strides; it is never written.

    Args:
        tensor: Anything with `__dlpack__` (PyTorch, BF16 included; NumPy; JAX) or the buffer
            protocol. One on a device is copied to the host; everything else is not copied.
        dtype: What its elements are, in the spelling of safetensors ("BF16", "F8_E4M3"), where its
            own type only says how wide they are.

    Raises:
        TypeError: for another object, a dtype that safetensors has not, or a sharded tensor.
    """
    own_dtype = None
    if isinstance(tensor, _core.View):
        view = tensor
    elif isinstance(tensor, _core.Array):
        view = tensor.view()
    else:
        prepare = _prepare_torch if _is_torch(tensor) else _prepare_array
        tensor, own_dtype = prepare(tensor)
        view = _import(tensor)
    dtype = dtype or own_dtype
    return view if dtype is None else view.with_dtype(dtype)


def _import(tensor: Any) -> _core.View:
    if hasattr(tensor, "__dlpack__"):
        try:
            return _core.View.from_dlpack(tensor.__dlpack__())
        except BufferError:  # NumPy does not export read-only arrays; their buffers are readable.
            if _is_torch(tensor):
                raise
    try:
        return _core.View.from_buffer(tensor)
    except TypeError as error:
        raise TypeError(f"expected an object with __dlpack__ or the buffer protocol, got "
                        f"{type(tensor).__name__}: {error}") from None
