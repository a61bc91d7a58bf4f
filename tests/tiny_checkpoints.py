"""Safetensors in and out, and small hostile checkpoints: what the converter's tests share."""

import json
import pathlib
import random
import struct

from octavo_testing import read_safetensors

DTYPE_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "F8_E4M3": 1, "F8_E8M0": 1, "U8": 1}


def write_safetensors(path, tensors):
    """`tensors`: {name: (dtype, shape, bytes)}. Without padding, so that they lie unaligned."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    pathlib.Path(path).write_bytes(len(text).to_bytes(8, "little") + text + body)


def read_checkpoint(folder):
    tensors = {}
    for path in sorted(pathlib.Path(folder).glob("*.safetensors")):
        tensors.update(read_safetensors(path))
    return tensors


def config(hidden, mlp, vocab, layers=1):
    return {"architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden,
            "num_hidden_layers": layers, "num_attention_heads": 2, "num_key_value_heads": 1,
            "head_dim": 64, "intermediate_size": mlp, "vocab_size": vocab,
            "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
            "hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": True,
            "torch_dtype": "bfloat16"}


def weight_shapes(hidden, mlp, vocab):
    layer = "model.layers.0."
    return {"model.embed_tokens.weight": [vocab, hidden],
            layer + "input_layernorm.weight": [hidden],
            layer + "self_attn.q_proj.weight": [128, hidden],
            layer + "self_attn.k_proj.weight": [64, hidden],
            layer + "self_attn.v_proj.weight": [64, hidden],
            layer + "self_attn.o_proj.weight": [hidden, 128],
            layer + "self_attn.q_norm.weight": [64],
            layer + "self_attn.k_norm.weight": [64],
            layer + "post_attention_layernorm.weight": [hidden],
            layer + "mlp.gate_proj.weight": [mlp, hidden],
            layer + "mlp.up_proj.weight": [mlp, hidden],
            layer + "mlp.down_proj.weight": [hidden, mlp],
            "model.norm.weight": [hidden]}


def bf16_bits(value):
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) & 0xFFFF


def hostile_values(name, shape, rng):
    """BF16 bits: zero blocks, one outlier, subnormals, negative zeros among ordinary weights."""
    count = 1
    for extent in shape:
        count *= extent
    bits = [bf16_bits(rng.gauss(0.0, 0.02)) for _ in range(count)]
    if len(shape) != 2:
        return bits
    cols = shape[1]
    if "v_proj" in name:
        return [0x8000 if place % 3 == 0 else 0 for place in range(count)]  # All +-0.
    for row in range(min(shape[0], 130)):
        for col in range(min(cols, 128)):
            place = row * cols + col
            if "gate_proj" in name and row < 128:
                bits[place] = 0x8000 if col % 5 == 0 else 0  # A block of zeros.
            elif "down_proj" in name:
                bits[place] = rng.randrange(1, 0x80) | rng.choice((0, 0x8000))  # Subnormals.
            elif "o_proj" in name and col < 32:
                bits[place] = 0x8000 if col == 7 else bits[place]
    if "up_proj" in name:
        bits[count // 2] = bf16_bits(-1000.0)  # One outlier.
    return bits


def write_tiny(folder, hidden, mlp, vocab=8, seed=1, num_files=2):
    """A BF16 checkpoint; gives {name: (shape, BF16 bits)}. gate and up lie in different files."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    rng = random.Random(seed)
    weights = {name: (shape, hostile_values(name, shape, rng))
               for name, shape in weight_shapes(hidden, mlp, vocab).items()}
    files = [{} for _ in range(num_files)]
    for place, (name, (shape, bits)) in enumerate(weights.items()):
        files[place % num_files][name] = ("BF16", shape, struct.pack(f"<{len(bits)}H", *bits))
    names = [f"model-{i + 1:05}-of-{num_files:05}.safetensors" for i in range(num_files)]
    for name, tensors in zip(names, files):
        write_safetensors(folder / name, tensors)
    index = {"metadata": {"total_size": sum(len(t[2]) for f in files for t in f.values())},
             "weight_map": {n: name for name, f in zip(names, files) for n in f}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    (folder / "config.json").write_text(json.dumps(config(hidden, mlp, vocab)))
    return weights


def write_tiny_moe(folder, stacked, prefix="model.", seed=5):
    """A Qwen3-MoE with three experts of width 160: 2-D weights an expert, or two 3-D ones."""
    folder = pathlib.Path(folder)
    folder.mkdir(parents=True)
    hidden, width, experts = 96, 160, 3
    rng = random.Random(seed)
    shapes = {name.replace("model.", prefix, 1): shape
              for name, shape in weight_shapes(hidden, width, 8).items() if ".mlp." not in name}
    mlp = prefix + "layers.0.mlp."
    shapes[mlp + "gate.weight"] = [experts, hidden]
    for expert in range(experts):
        for part, shape in (("gate", [width, hidden]), ("up", [width, hidden]),
                            ("down", [hidden, width])):
            shapes[f"{mlp}experts.{expert}.{part}_proj.weight"] = shape
    tensors = {}
    for name, shape in shapes.items():
        bits = hostile_values(name, shape, rng)
        tensors[name] = ("BF16", shape, struct.pack(f"<{len(bits)}H", *bits))
    if stacked:
        own = {name: tensors.pop(name)[2] for name in list(tensors) if ".experts." in name}
        data = [b"".join(own[f"{mlp}experts.{e}.{part}_proj.weight"] for e in range(experts)
                         for part in parts) for parts in (("gate", "up"), ("down",))]
        tensors[mlp + "experts.gate_up_proj"] = ("BF16", [experts, 2 * width, hidden], data[0])
        tensors[mlp + "experts.down_proj"] = ("BF16", [experts, hidden, width], data[1])
    write_safetensors(folder / "model.safetensors", tensors)
    moe = {**config(hidden, width, 8), "architectures": ["Qwen3MoeForCausalLM"],
           "model_type": "qwen3_moe", "num_experts": experts, "num_experts_per_tok": 2,
           "moe_intermediate_size": width, "norm_topk_prob": True, "decoder_sparse_step": 1,
           "mlp_only_layers": []}
    (folder / "config.json").write_text(json.dumps(moe))
