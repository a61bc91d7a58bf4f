"""Sends the trainer's weights to an engine: one transaction of the native update (docs/api.md).

begin, one bucket that is a safetensors file in memory, seal, commit. What the engine serves changes
as a whole or not at all; an exception on the way drops what was staged.
"""

import json
import struct
from collections.abc import Iterable

import torch

from rollout import Client


def bucket_of(tensors: Iterable[tuple[str, torch.Tensor]]) -> bytes:
    """A safetensors file of (name, tensor), in BF16.

    Masters are rounded here, to nearest even: the forward pass sees rounded weights, so they are
    the model to quantize. The masters are not touched.
    """
    header, parts, offset = {}, [], 0
    for name, tensor in tensors:
        rounded = tensor.detach().to(torch.bfloat16).cpu().contiguous()
        data = rounded.view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": "BF16", "shape": list(tensor.shape),
                        "data_offsets": [offset, offset + len(data)]}
        parts.append(data)
        offset += len(data)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    return b"".join([struct.pack("<Q", len(head)), head, *parts])


def push(client: Client, bucket: bytes, version: str) -> dict:
    """Makes the weights of a bucket live as `version`; the engine's report of the commit."""
    update = client.call("POST", "/octavo/v1/update/begin", {"weight_version": version})
    update_id = update["update_id"]
    try:
        client.call("POST", f"/octavo/v1/update/put?update_id={update_id}&sequence=0", bucket)
        client.call("POST", "/octavo/v1/update/seal", {"update_id": update_id})
        return client.call("POST", "/octavo/v1/update/commit", {"update_id": update_id})
    except BaseException:
        client.call("POST", "/octavo/v1/update/abort", {"update_id": update_id})
        raise
