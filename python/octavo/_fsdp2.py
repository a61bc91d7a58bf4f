"""octavo.fsdp2_tensors: the whole tensors of a model that FSDP2 has sharded.

torch is imported by nobody but the caller: a model without it cannot be given.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Optional

# Parts of names that torch's wrappers put in.
_WRAPPERS = ("_orig_mod.", "_checkpoint_wrapped_module.", "_fsdp_wrapped_module.")
# DeepSeek's router bias is computed with in F32, whatever the model's dtype is.
KEEP_DTYPE = ("e_score_correction_bias",)


class fsdp2_tensors:  # pylint: disable=invalid-name
    """Iterates over (HF name, whole tensor) on rank 0, and over nothing on the others.

    Every rank must take part, for gathering a tensor takes all of them:

        with octavo.fsdp2_tensors(model) as tensors:
            if rank == 0:
                with client.update(version) as update:
                    update.put_all(tensors)

    Leaving the block is what gathers on the other ranks. Shards are rounded to `dtype` before they
    are gathered, which is what the forward pass computes with, and halves the traffic. The model's
    own tensors are never written. A bucket is gathered by all ranks, and then all wait until rank 0
    has sent it: nobody sits in a gather meanwhile. If rank 0 gives up, or cannot even begin, the
    others raise RuntimeError instead of waiting for it.

    It takes any torch module: without torch.distributed, or with unsharded tensors, there is
    nothing to gather. Buffers that the state dict has are tensors like parameters.

    Args:
        model: After `fully_shard`, or plain; wrapped by torch.compile or activation checkpointing.
        dtype: Of floating-point tensors; None: torch.bfloat16.
        bucket_bytes: Whole tensors that are held at once, on every rank.
        keep_dtype: Last parts of the names of tensors that stay as they are.
        group: Process group of the model; None: the default one.
    """

    def __init__(self, model: Any, *, dtype: Any = None, bucket_bytes: int = 256 << 20,
                 keep_dtype: tuple[str, ...] = KEEP_DTYPE, group: Any = None):
        torch = sys.modules["torch"]
        self._dtype = torch.bfloat16 if dtype is None else dtype
        self._keep_dtype = keep_dtype
        self._bucket_bytes = bucket_bytes
        self._peers = _Peers(torch, group)
        self._sources = [(_hf_name(name), tensor.detach())
                         for name, tensor in model.state_dict(keep_vars=True).items()
                         if isinstance(tensor, torch.Tensor)]
        self._buckets = self._generate()
        self._is_over = False  # Nobody waits for rank 0's word any more.

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        return self

    def __next__(self) -> tuple[str, Any]:
        try:
            return next(self._buckets)
        except BaseException:  # The end among them.
            self._is_over = True
            raise

    def close(self) -> None:
        """Gives up; of rank 0: tells the others. Nothing at the end."""
        self._buckets.close()
        if not self._is_over:
            self._is_over = True
            if self._peers.is_first:
                self._peers.agree(False)

    def __enter__(self) -> fsdp2_tensors:
        return self

    def __exit__(self, kind: Optional[type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        if kind is None and not self._peers.is_first:
            for _ in self:
                pass
        self.close()

    def _generate(self) -> Iterator[tuple[str, Any]]:
        start = 0
        while start < len(self._sources):
            self._peers.agree(True)
            bucket: list[tuple[str, Any]] = []
            held = 0
            while start < len(self._sources) and (held == 0 or held < self._bucket_bytes):
                name, tensor = self._sources[start]
                whole = self._gather(name, tensor)
                held += max(whole.numel() * whole.element_size(), 1)
                if self._peers.is_first:
                    bucket.append((name, whole))
                start += 1
            yield from bucket
        self._peers.agree(True)  # The last bucket has been sent, too.

    def _gather(self, name: str, tensor: Any) -> Any:
        """The whole tensor; all ranks must call it in the same order."""
        if tensor.is_floating_point() and not name.endswith(self._keep_dtype):
            tensor = tensor.to(self._dtype)
        return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def _hf_name(name: str) -> str:
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


class _Peers:
    """The other ranks, when there are any."""

    def __init__(self, torch: Any, group: Any):
        self._torch = torch
        self._group = group
        distributed = torch.distributed
        is_alone = not distributed.is_available() or not distributed.is_initialized()
        self._distributed = None if is_alone else distributed
        self.is_first = is_alone or distributed.get_rank(group) == 0

    def agree(self, goes_on: bool) -> None:
        """Waits for rank 0 and learns whether it goes on. Raises RuntimeError when it does not."""
        distributed = self._distributed
        if distributed is None or distributed.get_world_size(self._group) == 1:
            return
        backend = str(distributed.get_backend(self._group))
        device = "cuda" if "nccl" in backend and "gloo" not in backend else "cpu"
        word = self._torch.tensor([1 if goes_on else 0], device=device)
        first: Optional[int] = (0 if self._group is None
                                else distributed.get_global_rank(self._group, 0))
        distributed.broadcast(word, src=first, group=self._group)
        if not self.is_first and word.item() == 0:
            raise RuntimeError("rank 0 stopped sending the weights; the update was given up")
