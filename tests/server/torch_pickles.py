"""Pickles of tensors as PyTorch makes them, without torch: its functions and classes are stood in
for by names alone, which is all that a pickle holds of them."""

import base64
import io
import os
import pickle
import struct
import sys
import types

MAGIC = 0x1950A86A20F9469CFC6C
DTYPES = {"BF16": "bfloat16", "F32": "float32", "F8_E4M3": "float8_e4m3fn", "U8": "uint8"}
REDUCTIONS = "torch.multiprocessing.reductions"


def stand_in(module, name):
    """A thing that pickles as module.name."""
    parts = module.split(".")
    for i in range(1, len(parts) + 1):
        path = ".".join(parts[:i])
        sys.modules.setdefault(path, types.ModuleType(path)).__path__ = []
    thing = type(name, (), {})
    thing.__module__, thing.__qualname__ = module, name
    setattr(sys.modules[module], name, thing)
    return thing


class Call:
    """Pickles as a call of a stand-in."""

    def __init__(self, function, *args, state=None):
        self.parts = (function, args) if state is None else (function, args, state)

    def __reduce__(self):
        return self.parts


class PersistentId:
    """Pickles as the persistent id of a storage."""

    def __init__(self, value):
        self.value = value


class StoragePickler(pickle.Pickler):
    def persistent_id(self, obj):
        return obj.value if isinstance(obj, PersistentId) else None


SIZE = stand_in("torch", "Size")
TENSOR = stand_in("torch", "Tensor")
UNTYPED = stand_in("torch.storage", "UntypedStorage")
LOAD = stand_in("torch.storage", "_load_from_bytes")
REBUILD = stand_in("torch._utils", "_rebuild_tensor_v3")
REBUILD_SHARED = stand_in(REDUCTIONS, "rebuild_tensor")
REBUILD_TYPED = stand_in(REDUCTIONS, "rebuild_typed_storage")
REBUILD_NAMED = stand_in(REDUCTIONS, "rebuild_storage_filename")
METADATA = stand_in("sglang.srt.weight_sync.tensor_bucket", "FlattenedTensorMetadata")
SERIALIZED = stand_in("sglang.srt.model_executor.model_runner", "LocalSerializedTensor")
TORCH_DTYPES = {name: stand_in("torch", name) for name in DTYPES.values()}


def size(shape):
    return Call(SIZE, tuple(shape))


def strides(shape):
    steps = []
    for extent in reversed(shape):
        steps.insert(0, steps[0] * last if steps else 1)
        last = extent
    return tuple(steps)


def stored(data):
    """A storage by value: what torch.save wrote before zip files."""
    out = io.BytesIO()
    for part in (MAGIC, 1001, {"protocol_version": 1001, "little_endian": True}):
        pickle.dump(part, out, 2)
    StoragePickler(out, 2).dump(PersistentId(("storage", UNTYPED, "1", "cpu", len(data), None)))
    pickle.dump(["1"], out, 2)
    return Call(LOAD, out.getvalue() + struct.pack("<q", len(data)) + data)


class Memory:
    """What torch shares by name: two holds, the sender's and the receiver's, and the bytes."""

    count = 0

    def __init__(self, data):
        Memory.count += 1
        self.name = f"/torch_{os.getpid()}_9_{Memory.count}"
        self.path = "/dev/shm" + self.name
        self.size = len(data)
        with open(self.path, "xb") as file:
            file.write(struct.pack("<i", 2) + bytes(60) + data)

    def holds(self):
        with open(self.path, "rb") as file:
            return struct.unpack("<i", file.read(4))[0]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        os.unlink(self.path)

    def storage(self):
        return Call(REBUILD_NAMED, UNTYPED, b"/tmp/manager.sock", self.name.encode(), self.size)


def by_value(tensor):
    """A tensor (dtype, shape, bytes) whose bytes lie in the pickle."""
    dtype, shape, data = tensor
    return Call(REBUILD, stored(data), 0, tuple(shape), strides(shape), False, {},
                TORCH_DTYPES[DTYPES[dtype]])


def shared(dtype, shape, memory):
    """A tensor whose bytes are a Memory."""
    storage = Call(REBUILD_TYPED, memory.storage(), TORCH_DTYPES[DTYPES[dtype]])
    return Call(REBUILD_SHARED, TENSOR, storage, (0, size(shape), strides(shape), False))


def metadata(tensors):
    """Of name -> (dtype, shape, bytes), back to back."""
    pieces, at = [], 0
    for name, (dtype, shape, data) in tensors.items():
        end = at + len(data)
        pieces.append(Call(METADATA, state={
            "name": name, "shape": size(shape), "dtype": TORCH_DTYPES[DTYPES[dtype]],
            "start_idx": at, "end_idx": end, "numel": len(data)}))
        at = end
    return pieces


def encoded(pickled):
    """As serialized_named_tensors wants it."""
    return base64.b64encode(pickled).decode()


def dump(value, protocol=4):
    """The same of a value that is not pickled yet."""
    return encoded(pickle.dumps(value, protocol))
