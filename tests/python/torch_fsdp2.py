"""One of two processes of torch_package.py: a model of the checkpoint's tensors in F32, sharded by
FSDP2 over gloo, whose weights go to a server in BF16.

Usage: torch_fsdp2.py FOLDER URL send|fail|refused STORE RANK"""

import hashlib
import pathlib
import sys

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))
import tiny_checkpoints as tiny  # noqa: E402

import octavo  # noqa: E402


class Leaf(torch.nn.Module):
    def __init__(self, tensors):
        super().__init__()
        for name, tensor in tensors.items():
            setattr(self, name, torch.nn.Parameter(tensor))


def build(tensors):
    """A module whose parameters have the checkpoint's names; a layer is sharded by itself."""
    tree = {}
    for name, tensor in tensors.items():
        *path, last = name.split(".")
        node = tree
        for part in path:
            node = node.setdefault(part, {})
        node[last] = tensor

    def make(node):
        module = Leaf({key: value for key, value in node.items() if not isinstance(value, dict)})
        for key, value in node.items():
            if isinstance(value, dict):
                module.add_module(key, make(value))
        return module

    return make(tree)


def shard_hash(model):
    digest = hashlib.sha256()
    for parameter in model.parameters():
        digest.update(parameter.to_local().detach().numpy().tobytes())
    return digest.hexdigest()


def send(model, url, how, rank):
    """What a trainer does; `how` says where rank 0 fails."""
    with octavo.fsdp2_tensors(model, bucket_bytes=20000) as tensors:
        if rank == 0:
            client = octavo.Client("http://127.0.0.1:1" if how == "refused" else url)
            with client.update(version=41) as update:
                for number, (name, tensor) in enumerate(tensors):
                    assert tensor.dtype == torch.bfloat16, tensor.dtype
                    update.put(name, tensor)
                    if how == "fail" and number == 5:
                        raise RuntimeError("on purpose")


def main():
    folder, url, how, store, rank = sys.argv[1:]
    rank = int(rank)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    tensors = {}
    for name, (_, shape, data) in tiny.read_checkpoint(folder).items():
        bf16 = torch.frombuffer(bytearray(data), dtype=torch.bfloat16).reshape(shape)
        tensors[name] = bf16.float()
    model = build(tensors)
    for layer in model.model.layers.children():
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    before = shard_hash(model)
    try:
        send(model, url, how, rank)
        assert how == "send", "expected a failure"
    except (RuntimeError, octavo.UnavailableError) as error:
        assert how != "send", error
        expected = ("rank 0 stopped" if rank == 1 else
                    "on purpose" if how == "fail" else "127.0.0.1")
        assert expected in str(error), error
    assert shard_hash(model) == before
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
