"""What the tests of weight updates share: variants of a model, what offline conversion and cold servers
say of them, and every transport as the list of calls that a trainer makes."""

import contextlib
import dataclasses
import json
import pathlib
import pickle
import random
import shutil
import struct
import sys
import threading
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from group_testing import Trainer
from octavo_testing import ROOT, Server, bucket, read_safetensors, run
from tiny_checkpoints import config, read_checkpoint, weight_shapes, write_safetensors
from test_pull_weights import publish
from torch_pickles import by_value, dump, encoded, metadata

# Policy flags of convert and serve, and what serve takes beside them.
FORMATS = {
    "bf16": ([], []),
    "fp8": (["--format", "fp8"], []),
    "fp8-ue8m0": (["--format", "fp8-ue8m0"], []),
    "fp8-channel": (["--format", "fp8-channel"], []),
    "fp8-tensor": (["--format", "fp8-tensor"], []),
    "mxfp8": (["--format", "mxfp8"], []),
    "nvfp4-token": (["--format", "nvfp4", "--scope", "all"], []),
    "nvfp4-pow2": (["--format", "nvfp4", "--scope", "all"], ["--nvfp4-input-scale", "pow2"]),
    "nvfp4-static": (["--format", "nvfp4", "--scope", "all"], ["--nvfp4-input-scale", "static"]),
    "nvfp4-compressed": (["--format", "nvfp4", "--scope", "all", "--layout",
                          "compressed-tensors"], []),
}
TORCH = {"BF16": "bfloat16", "F16": "float16", "F32": "float32", "F8_E4M3": "float8_e4m3fn",
         "F8_E8M0": "float8_e8m0fnu", "U8": "uint8"}
GROUP = "weight_update_group"
LIGHT = ("--threads", "1", "--max-total-tokens", "8192", "--max-running-requests", "16",
         "--log-level", "warning")


# --- Weights ---

def noise(rng, count, mask):
    """`count` little-endian words of 16 random bits, of which those of `mask` are kept."""
    kept = int.from_bytes(struct.pack("<H", mask) * count, "little")
    return int.from_bytes(rng.randbytes(2 * count), "little") & kept


def perturbed(tensors, seed):
    """The same tensors with the low bits of every BF16 value turned at random: other weights, and
    other codes and scales in every format, of a model that still knows its language."""
    rng = random.Random(seed)
    out = {}
    for name, (dtype, shape, data) in tensors.items():
        flipped = int.from_bytes(data, "little") ^ noise(rng, len(data) // 2, 0x0007)
        out[name] = (dtype, shape, flipped.to_bytes(len(data), "little"))
    return out


def tiny_tensors(seed, layers=2):
    """Random BF16 weights of a Qwen3 whose widths are no multiples of 128."""
    rng = random.Random(seed)
    shapes = weight_shapes(96, 160, 64)
    for layer in range(1, layers):
        shapes.update({name.replace("layers.0.", f"layers.{layer}."): shape
                       for name, shape in shapes.items() if "layers.0." in name})
    tensors = {}
    for name, shape in shapes.items():
        count = shape[0] if len(shape) == 1 else shape[0] * shape[1]
        # Norms lie in [1, 1.25), other weights are +-[2^-7, 2^-3).
        mask, base = (0x001F, 0x3F80) if len(shape) == 1 else (0x81FF, 0x3C00)
        bits = noise(rng, count, mask) | int.from_bytes(struct.pack("<H", base) * count, "little")
        tensors[name] = ("BF16", shape, bits.to_bytes(2 * count, "little"))
    return tensors


def write_tiny(path, tensors, layers=2):
    """A checkpoint of tiny_tensors."""
    path.mkdir(parents=True)
    write_safetensors(path / "model.safetensors", tensors)
    settings = {**config(96, 160, 64, layers), "max_position_embeddings": 512}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def write_variant(path, source, tensors):
    """A checkpoint with the other files of `source`."""
    shutil.copytree(source, path, ignore=shutil.ignore_patterns("*.safetensors*"))
    write_safetensors(path / "model.safetensors", tensors)
    return path


class Variant:
    """A set of weights: its folder in BF16, and in a format as `octavo convert` writes it."""

    def __init__(self, path, policy, converted):
        self.path = path
        self.tensors = read_checkpoint(path)
        self.converted = path
        if policy:
            run("convert", path, converted, *policy)
            self.converted = converted
        self.digest = octavo_testing.run_json("digest", self.converted)["digest"]

    def stored(self):
        return read_checkpoint(self.converted)


# --- Buckets ---

def cut(tensors, rng, size=None, order=None):
    """Tensors in buckets of `size` tensors each, in random order unless one is given."""
    names = list(order if order is not None else tensors)
    if order is None:
        rng.shuffle(names)
    size = size or rng.choice([1, 2, 7, 20, len(names)])
    return [{name: tensors[name] for name in names[start:start + size]}
            for start in range(0, len(names), size)]


def scales_apart(tensors, rng, size=None):
    """Codes and scales of one weight in different buckets, all of one kind first."""
    names = sorted(tensors, key=lambda name: (name.endswith(".weight"), rng.random()))
    if rng.random() < 0.5:
        names.reverse()
    return cut(tensors, rng, size, names)


# --- Transports ---

@dataclasses.dataclass
class Call:
    """One call of a trainer. With `tensors` it brings a bucket, whose body `encode` makes; what is
    broadcast beside it is in `broadcasts`."""

    path: str
    body: object = None
    method: str = "POST"
    tensors: dict = None
    encode: object = None
    broadcasts: object = None
    may_fail: bool = False  # As a flush may, until nobody holds pages.

    def payload(self):
        return self.encode(self.tensors) if self.encode else self.body


def named(tensors):
    """A list of (name, tensor), by value."""
    return dump([(name, by_value(tensor)) for name, tensor in tensors.items()])


def flattened(tensors):
    flat = b"".join(tensor[2] for tensor in tensors.values())
    return encoded(pickle.dumps({"flattened_tensor": by_value(("U8", [len(flat)], flat)),
                                 "metadata": metadata(tensors)}, 4))


def summed(tensors):
    """A safetensors buffer that has the checksum of each tensor in its metadata."""
    buffer = bucket(tensors)
    (length,) = struct.unpack("<Q", buffer[:8])
    header = json.loads(buffer[8:8 + length])
    header["__metadata__"] = {f"adler32:{name}": f"{zlib.adler32(tensor[2]):08x}"
                              for name, tensor in tensors.items()}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + buffer[8 + length:]


def native(buckets, version, staging="shadow", in_flight="retract"):
    """Our own calls; {id} becomes that of the update."""
    update = "/octavo/v1/update/"
    calls = [Call(update + "begin", {"weight_version": version, "staging": staging})]
    calls += [Call(update + f"put?update_id={{id}}&sequence={i}", tensors=tensors, encode=summed)
              for i, tensors in enumerate(buckets)]
    calls += [Call(update + "seal", {"update_id": "{id}"}),
              Call(update + "commit", {"update_id": "{id}", "in_flight": in_flight})]
    if staging == "in_place":
        calls = [Call("/pause_generation", {"mode": "retract"}), *calls,
                 Call("/continue_generation", {})]
    return calls


def in_place(buckets, version):
    return native(buckets, version, staging="in_place")


def distributed(buckets, version, flat=False, **fields):
    """Buckets over the group: the call, and the broadcasts of rank 0 beside it."""
    def encode(tensors):
        return {"names": list(tensors), "dtypes": [TORCH[t[0]] for t in tensors.values()],
                "shapes": [t[1] for t in tensors.values()], "group_name": GROUP,
                "load_format": "flattened_bucket" if flat else None, "flush_cache": False,
                "weight_version": version, **fields}

    def broadcasts(tensors):
        pieces = [tensor[2] for tensor in tensors.values()]
        return [b"".join(pieces)] if flat else pieces

    return [Call("/update_weights_from_distributed", tensors=tensors, encode=encode,
                 broadcasts=broadcasts) for tensors in buckets]


def from_tensor(buckets, version, load_format="flattened_bucket", **fields):
    make = flattened if load_format else named
    return [Call("/update_weights_from_tensor", tensors=tensors, encode=lambda part: {
        "serialized_named_tensors": [make(part)], "load_format": load_format,
        "flush_cache": False, "weight_version": version, **fields}) for tensors in buckets]


PAUSE, RETRACT, FREEZE = (Call("/pause_generation", {"mode": mode} if mode else {})
                          for mode in (None, "retract", "in_place"))
FLUSH = Call("/flush_cache?timeout=10", method="GET")
CONTINUE = Call("/continue_generation", {})


def slime_group(buckets, version):
    return [PAUSE, FLUSH, Call("/post_process_weights", {"restore_weights_before_load": True}),
            *distributed(buckets, version),
            Call("/post_process_weights", {"post_process_quantization": True}), CONTINUE]


def slime_tensor(buckets, version):
    return [PAUSE, FLUSH, *from_tensor(buckets, version), CONTINUE]


def miles_group(buckets, version):
    return [RETRACT, FLUSH, Call("/begin_weight_update", {"selector": "all"}),
            *distributed(buckets, None, flat=True, selector="all"),
            Call("/update_weight_version",
                 {"new_version": version, "abort_all_requests": False}),
            Call("/end_weight_update", {}), CONTINUE]


def miles_tensor(buckets, version):
    return [RETRACT, FLUSH, Call("/begin_weight_update", {"selector": "all"}),
            *from_tensor(buckets, version, selector="all"), Call("/end_weight_update", {}),
            CONTINUE]


def areal_group(buckets, _):
    """No version: the server counts."""
    return [PAUSE, FREEZE, *distributed(buckets, None, flush_cache=True, abort_all_requests=True),
            CONTINUE]


def verl(buckets, version):
    """A list of tensors by value, while memory is released; the version is the server's."""
    del version
    return [RETRACT, Call("/release_memory_occupation", {"tags": ["kv_cache", "weights"]}),
            Call("/resume_memory_occupation", {"tags": ["weights"]}),
            *from_tensor(buckets, None, load_format=None, flush_cache=True), FLUSH,
            Call("/resume_memory_occupation", {"tags": ["kv_cache"]}), CONTINUE]


def nemo_rl(buckets, version):
    return [RETRACT, FLUSH, Call("/release_memory_occupation", {"tags": ["kv_cache"]}),
            Call("/resume_memory_occupation", {"tags": ["weights"]}),
            *from_tensor(buckets, version), FLUSH,
            Call("/resume_memory_occupation", {"tags": ["kv_cache"]}), CONTINUE]


def disk(path, version):
    return [Call("/update_weights_from_disk", {"model_path": str(path),
                                               "weight_version": version})]


def slime_disk(path, version):
    return [PAUSE, FLUSH, *disk(path, version), CONTINUE]


def areal_disk(path, _):
    return [PAUSE, FREEZE,
            Call("/update_weights_from_disk", {"model_path": str(path),
                                               "abort_all_requests": True}), CONTINUE]


BUCKETS = {f.__name__: f for f in (native, in_place, slime_group, slime_tensor, miles_group,
                                   miles_tensor, areal_group, verl, nemo_rl)}
FOLDERS = {f.__name__: f for f in (disk, slime_disk, areal_disk)}
GROUPS = {"slime_group", "miles_group", "areal_group"}


class Deltas:
    """A shared folder of published differences, and the folder of a host that follows them."""

    def __init__(self, root, served, keep=False):
        self.keep = keep  # All versions, for hosts that have missed some.
        self.source, self.local = root / "published", root / "local"
        self.source.mkdir()
        self.live, self.number = read_checkpoint(served), 0

    def calls(self, tensors, version):
        """Publishes, then what slime does: pull while serving, pause, load, continue."""
        if not self.keep:
            shutil.rmtree(self.source / f"weight_v{self.number - 1:06}", ignore_errors=True)
        self.number += 1
        publish(self.source, self.number, self.live, tensors)
        self.live = tensors
        return [Call("/pull_weights", {"local_checkpoint_dir": str(self.local),
                                       "source_dir": str(self.source),
                                       "target_version": self.number}),
                *slime_disk(self.local, version)]


class UpdateFailed(Exception):
    pass


class Sender:
    """A trainer: makes its calls one after the other, and broadcasts beside those that want it."""

    def __init__(self, server):
        self.server = server
        self.trainer = None
        self.update_id = "none"

    def join(self):
        """Rank 0 of a new group, with the server as rank 1."""
        if self.trainer is not None:
            self.trainer.close()
        self.server.call("POST", "/destroy_weights_update_group", {"group_name": GROUP})
        self.trainer = Trainer(GROUP)
        status, reply = self.server.call("POST", "/init_weights_update_group", {
            "master_address": "127.0.0.1", "master_port": str(self.trainer.store.port),
            "rank_offset": 1, "world_size": 2, "group_name": GROUP, "backend": "loopback"})
        if status != 200:
            raise UpdateFailed("/init_weights_update_group", status, reply)

    def request(self, call):
        """(path, bytes) with the id of the open update in its places."""
        body = call.payload()
        if isinstance(body, dict):
            body = json.dumps(body).replace("{id}", self.update_id).encode()
        return call.path.replace("{id}", self.update_id), body

    def broadcasting(self, call):
        """A thread that sends what the call announces; started. None where it announces nothing."""
        if call.broadcasts is None:
            return None
        pieces = call.broadcasts(call.tensors)

        def send():
            with contextlib.suppress(OSError):
                for piece in pieces:
                    self.trainer.send(piece)

        thread = threading.Thread(target=send, daemon=True)
        thread.start()
        return thread

    def make(self, call):
        """(status, reply) of one call."""
        path, body = self.request(call)
        thread = self.broadcasting(call)
        status, reply = self.server.call(call.method, path, body)
        if thread is not None:
            thread.join(60)
        if isinstance(reply, dict) and "update_id" in reply:
            self.update_id = reply["update_id"]
        return status, reply

    def run(self, calls):
        """All calls; UpdateFailed with the first that is not answered with success."""
        for call in calls:
            status, reply = self.make(call)
            if status != 200 or (isinstance(reply, dict) and reply.get("success") is False):
                raise UpdateFailed(call.path, status, reply)
        return reply

    def close(self):
        if self.trainer is not None:
            self.trainer.close()


# --- What a cold server says ---

def probe(server, ids=tuple(range(5, 25)), tokens=16):
    """(version, ids, logprobs) of a greedy request."""
    reply = server.generate(input_ids=list(ids), return_logprob=True, sampling_params={
        "temperature": 0, "max_new_tokens": tokens, "ignore_eos": True})
    meta = reply["meta_info"]
    return (meta["weight_version"], reply["output_ids"],
            [entry[0] for entry in meta["output_token_logprobs"]])


def cold_probe(variant, serve_flags, **kwargs):
    with Server(variant.converted, *serve_flags, *LIGHT) as server:
        return probe(server, **kwargs)[1:]


def read_model(path):
    return read_checkpoint(ROOT / path)
