#!/usr/bin/env python3
"""The digest of a checkpoint folder, from its safetensors files by the definition alone.

A second implementation beside octavo/convert/digest.cc, sharing nothing with it; docs/formats.md
defines the digest. Needs the PyPI module xxhash (pip install xxhash).

    tensor  XXH3-128 over the canonical (big-endian) XXH3-128 values of its 64 KiB chunks
    model   XXH3-128 over the lines "NAME DTYPE D0,D1,... HEX\\n", sorted by name as bytes

Usage: digest.py FOLDER [--json]
"""

import argparse
import json
import pathlib
import struct
import sys

try:
    import xxhash
except ModuleNotFoundError:
    sys.exit("digest.py: needs the PyPI module xxhash: pip install xxhash")

CHUNK_BYTES = 64 * 1024
INDEX_FILE = "model.safetensors.index.json"


def weight_files(folder: pathlib.Path) -> list[pathlib.Path]:
    """The files that hold the weights: those that the index names, or all there are."""
    index = folder / INDEX_FILE
    if index.exists():
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    else:
        names = {path.name for path in folder.glob("*.safetensors")}
        if any(name.startswith("model") for name in names):
            names = {name for name in names if not name.startswith("consolidated")}
    return [folder / name for name in sorted(names)]


def tensor_digest(file, begin: int, end: int) -> str:
    """Hexadecimal digest of the bytes [begin, end) of an open file."""
    outer = xxhash.xxh3_128(seed=0)
    file.seek(begin)
    left = end - begin
    while left > 0:
        chunk = file.read(min(left, CHUNK_BYTES))
        if not chunk:
            raise ValueError(f"{file.name}: ends inside a tensor")
        outer.update(xxhash.xxh3_128_digest(chunk, seed=0))
        left -= len(chunk)
    return outer.hexdigest()


def file_lines(path: pathlib.Path) -> list[tuple[bytes, str, str, str]]:
    """(name, dtype, extents, digest) of every tensor of one safetensors file."""
    lines = []
    with open(path, "rb") as file:
        (header_bytes,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(header_bytes))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            begin, end = (8 + header_bytes + offset for offset in entry["data_offsets"])
            extents = ",".join(str(extent) for extent in entry["shape"])
            digest = tensor_digest(file, begin, end)
            lines.append((name.encode("utf-8"), entry["dtype"], extents, digest))
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description="Digest of a checkpoint folder.")
    parser.add_argument("folder", type=pathlib.Path)
    parser.add_argument("--json", action="store_true", help="one JSON object with all tensors")
    args = parser.parse_args()

    lines = []
    for path in weight_files(args.folder):
        lines += file_lines(path)
    if not lines:
        print(f"{args.folder}: no safetensors files", file=sys.stderr)
        return 2
    lines.sort()
    model = xxhash.xxh3_128(seed=0)
    for name, dtype, extents, digest in lines:
        model.update(name + f" {dtype} {extents} {digest}\n".encode("ascii"))
    if args.json:
        tensors = {name.decode("utf-8"): digest for name, _, _, digest in lines}
        print(json.dumps({"digest": model.hexdigest(), "tensors": tensors}, indent=2))
    else:
        print(model.hexdigest())
    return 0


if __name__ == "__main__":
    sys.exit(main())
