"""octavo.quantize: the bytes of `octavo convert`, from a tensor in memory."""

from __future__ import annotations

from typing import Any, Optional

from octavo import _core
from octavo._tensors import as_view

Threads = _core.Threads


def quantize(tensor: Any, format: str, *, name: Optional[str] = None, layout: str = "default",
             shared_amax: Optional[float] = None, direct: bool = False,
             dtype: Optional[str] = None,
             threads: Optional[Threads] = None) -> dict[str, _core.Array]:
    """Quantizes a matrix, byte for byte as `octavo convert` and the server do.

    Args:
        tensor: BF16, F16 or F32 [rows, cols], at any strides (`octavo.as_view`). Never written;
            copied only where it is not contiguous.
        format: "fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8" or "nvfp4"; "bf16" takes
            any rank and rounds to BF16.
        name: Of the weight, such as "model.layers.0.mlp.up_proj.weight".
        layout: "default", or "compressed-tensors".
        shared_amax: fp8-tensor and nvfp4: the largest `amax` of all weights that share the scale
            (q/k/v, gate/up). Without it the tensor is alone.
        direct: Encode F32 and F16 as they are, not rounded to BF16 first.
        dtype: "BF16" for elements that are uint16 to Python.
        threads: `octavo.Threads(n)`, which calls may share; it changes time, never bytes.

    Returns:
        With `name`, what a checkpoint holds: {"X.weight": codes, "X.weight_scale_inv": scales}.
        Without it by kind: {"codes", "scales", "tensor_scale", ...}. Each has dtype, shape, kind,
        the buffer protocol and DLPack (`numpy.asarray(a)`, `torch.from_dlpack(a)`); all of them
        share one block of memory, which lives as long as one of them.

    Raises:
        InvalidArgumentError: another rank or dtype, a width that is no multiple of 32 (mxfp8) or 16
            (nvfp4), NaN or infinity (how many, and where the first is).
    """
    view = as_view(tensor, dtype)
    arrays = _core.quantize(view, format, layout, name or "weight", shared_amax, direct, threads)
    return {array.name if name else array.kind: array for array in arrays}


def amax(tensor: Any, format: str = "nvfp4", *, direct: bool = False, dtype: Optional[str] = None,
         threads: Optional[Threads] = None) -> float:
    """The largest magnitude of what `quantize` would encode: of BF16 values, unless `direct`."""
    return _core.amax(as_view(tensor, dtype), format, direct, threads)
