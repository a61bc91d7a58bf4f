#!/usr/bin/env python3
"""Writes a random Qwen3-shaped BF16 checkpoint of a given size, for benchmarks and memory tests.

    python3 scripts/make_checkpoint.py out/random-8gb --gb 8

Values look like trained weights: magnitudes around 0.02, random signs and mantissas. They depend on
--seed alone. The tensors are dealt out over files of at most --shard-gb in the order of the layers,
so that fused weights (gate and up) now and then lie in two files. Standard library alone; no
tokenizer is written.
"""

import argparse
import json
import random
import sys
from pathlib import Path

# The upper byte of a BF16 is its sign and all exponent bits but the last: 0x3C and 0x3D hold
# magnitudes from 2^-7 to 2^-3, 0x3B those from 2^-9. The lower byte is uniform.
UPPER_BYTES = [(0x3A, 6), (0x3B, 40), (0x3C, 80), (0x3D, 2)]
TABLE_BYTES = 32 << 20


def value_table(seed: int) -> bytes:
    """Random BF16 values, from which every tensor is cut."""
    rng = random.Random(seed)
    upper = [byte | sign for byte, count in UPPER_BYTES for sign in (0x00, 0x80) for _ in range(count)]
    upper = bytes(upper[i % len(upper)] for i in range(256))
    table = bytearray(TABLE_BYTES)
    table[0::2] = rng.randbytes(TABLE_BYTES // 2)
    table[1::2] = rng.randbytes(TABLE_BYTES // 2).translate(upper)
    return bytes(table)


def shape_of(gigabytes: float) -> dict:
    """Dimensions whose layers are small beside the whole."""
    if gigabytes >= 2:
        return {"hidden": 4096, "mlp": 12288, "heads": 32, "kv_heads": 8, "head_dim": 128, "vocab": 32768}
    if gigabytes >= 0.2:
        return {"hidden": 1024, "mlp": 3072, "heads": 16, "kv_heads": 8, "head_dim": 128, "vocab": 8192}
    return {"hidden": 256, "mlp": 640, "heads": 4, "kv_heads": 2, "head_dim": 64, "vocab": 512}


def layer_tensors(shape: dict, layer: int) -> list:
    hidden, mlp, head_dim = shape["hidden"], shape["mlp"], shape["head_dim"]
    q, kv = shape["heads"] * head_dim, shape["kv_heads"] * head_dim
    prefix = f"model.layers.{layer}."
    return [
        (prefix + "input_layernorm.weight", [hidden]),
        (prefix + "self_attn.q_proj.weight", [q, hidden]),
        (prefix + "self_attn.k_proj.weight", [kv, hidden]),
        (prefix + "self_attn.v_proj.weight", [kv, hidden]),
        (prefix + "self_attn.q_norm.weight", [head_dim]),
        (prefix + "self_attn.k_norm.weight", [head_dim]),
        (prefix + "self_attn.o_proj.weight", [hidden, q]),
        (prefix + "post_attention_layernorm.weight", [hidden]),
        (prefix + "mlp.gate_proj.weight", [mlp, hidden]),
        (prefix + "mlp.up_proj.weight", [mlp, hidden]),
        (prefix + "mlp.down_proj.weight", [hidden, mlp]),
    ]


def num_bytes(shape: list) -> int:
    count = 2
    for extent in shape:
        count *= extent
    return count


def all_tensors(shape: dict, target_bytes: int) -> tuple:
    """(tensors in order, number of layers) of at least `target_bytes`."""
    tensors = [("model.embed_tokens.weight", [shape["vocab"], shape["hidden"]])]
    total = num_bytes(tensors[0][1])
    layer = 0
    while total < target_bytes or layer == 0:
        more = layer_tensors(shape, layer)
        total += sum(num_bytes(extents) for _, extents in more)
        tensors += more
        layer += 1
    tensors.append(("model.norm.weight", [shape["hidden"]]))
    return tensors, layer


def deal_out(tensors: list, shard_bytes: int) -> list:
    shards, used = [[]], 0
    for name, extents in tensors:
        if shards[-1] and used + num_bytes(extents) > shard_bytes:
            shards.append([])
            used = 0
        shards[-1].append((name, extents))
        used += num_bytes(extents)
    return shards


def write_shard(path: Path, tensors: list, table: bytes, rng: random.Random) -> None:
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, extents in tensors:
        begin, end = end, end + num_bytes(extents)
        header[name] = {"dtype": "BF16", "shape": extents, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    view = memoryview(table)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for _, extents in tensors:
            left = num_bytes(extents)
            while left > 0:
                begin = 2 * rng.randrange(TABLE_BYTES // 4)
                piece = min(left, TABLE_BYTES - begin)
                file.write(view[begin : begin + piece])
                left -= piece


def config_of(shape: dict, layers: int) -> dict:
    return {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": shape["hidden"],
        "num_hidden_layers": layers,
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "intermediate_size": shape["mlp"],
        "vocab_size": shape["vocab"],
        "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-06,
        "rope_theta": 1000000.0,
        "hidden_act": "silu",
        "attention_bias": False,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
    }


def make_checkpoint(out: Path, gigabytes: float, shard_gigabytes: float, seed: int) -> int:
    """Writes the checkpoint; gives the bytes of its tensors."""
    out.mkdir(parents=True, exist_ok=False)
    shape = shape_of(gigabytes)
    tensors, layers = all_tensors(shape, int(gigabytes * 1e9))
    shards = deal_out(tensors, int(shard_gigabytes * 1e9))
    table, rng = value_table(seed), random.Random(seed + 1)
    weight_map = {}
    for idx, shard in enumerate(shards):
        name = f"model-{idx + 1:05}-of-{len(shards):05}.safetensors"
        write_shard(out / name, shard, table, rng)
        weight_map.update({tensor: name for tensor, _ in shard})
    total = sum(num_bytes(extents) for _, extents in tensors)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (out / "model.safetensors.index.json").write_text(json.dumps(index, indent=1, sort_keys=True))
    (out / "config.json").write_text(json.dumps(config_of(shape, layers), indent=2) + "\n")
    return total


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--gb", type=float, default=8.0, help="at least so many 10^9 bytes of tensors")
    parser.add_argument("--shard-gb", type=float, default=5.0, help="at most so many in a file")
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    print(f"{make_checkpoint(args.out, args.gb, args.shard_gb, args.seed)} bytes in {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
