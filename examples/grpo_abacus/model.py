"""The trainer's model: Qwen3 in plain PyTorch, with the names of a Hugging Face checkpoint.

Parameters are FP32 masters. The forward pass computes in `compute`: BF16 rounds where the engine
rounds (residuals, norms, linear layers, SwiGLU; FP32 logits), FP32 rounds nowhere and is what the
reference logits of tests/data/model were made with.
"""

import dataclasses
import json
import math
import pathlib
import struct

import torch
import torch.nn.functional as F
from torch import nn

DTYPES = {"BF16": torch.bfloat16, "F32": torch.float32, "I32": torch.int32}


@dataclasses.dataclass(frozen=True)
class Config:
    """The members of config.json that this model reads."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    rope_theta: float

    @classmethod
    def read(cls, folder: pathlib.Path) -> "Config":
        members = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if members["model_type"] != "qwen3" or not members["tie_word_embeddings"]:
            raise ValueError(f"{folder}: expected a qwen3 model with tied embeddings")
        members = {**members, **members.get("rope_parameters", {})}
        return cls(**{field.name: members[field.name] for field in dataclasses.fields(cls)})


class Linear(nn.Linear):
    """y = x W^T without bias, the weight rounded to the type of x on its way in."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.weight.to(x.dtype))


class RmsNorm(nn.Module):
    """y = weight * round(x / sqrt(mean(x^2) + eps)), over the last dimension."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        wide = x.float()
        normed = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + self.eps)
        return self.weight.to(x.dtype) * normed.to(x.dtype)


def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Rotary embedding of x [batch, heads, tokens, head_dim], in FP32, rounded once."""
    low, high = x.float().chunk(2, dim=-1)
    return torch.cat((low * cos - high * sin, high * cos + low * sin), dim=-1).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.head_dim = config.head_dim
        heads = config.num_attention_heads * config.head_dim
        kv_heads = config.num_key_value_heads * config.head_dim
        self.q_proj = Linear(config.hidden_size, heads)
        self.k_proj = Linear(config.hidden_size, kv_heads)
        self.v_proj = Linear(config.hidden_size, kv_heads)
        self.o_proj = Linear(heads, config.hidden_size)
        self.q_norm = RmsNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RmsNorm(config.head_dim, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        batch, tokens, _ = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(batch, tokens, -1, self.head_dim)

        q = rotate(self.q_norm(heads(self.q_proj(x))).transpose(1, 2), cos, sin)
        k = rotate(self.k_norm(heads(self.k_proj(x))).transpose(1, 2), cos, sin)
        v = heads(self.v_proj(x)).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        return self.o_proj(y.transpose(1, 2).reshape(batch, tokens, -1))


class Mlp(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Layer(nn.Module):
    def __init__(self, config: Config):
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.input_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RmsNorm(config.hidden_size, config.rms_norm_eps)

    def forward(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Backbone(nn.Module):
    """What stands under `model.` in a checkpoint."""

    def __init__(self, config: Config):
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.norm = RmsNorm(config.hidden_size, config.rms_norm_eps)


class Qwen3(nn.Module):
    """Parameters have the names and shapes of the checkpoint; the head is the embedding."""

    def __init__(self, config: Config, compute: torch.dtype = torch.bfloat16):
        super().__init__()
        self.config = config
        self.compute = compute
        self.model = Backbone(config)

    def forward(self, ids: torch.Tensor, scored: torch.Tensor) -> torch.Tensor:
        """Logprobs of ids[b, t] given ids[b, :t], where scored[b, t]; FP32, in row-major order.

        Shapes: ids int64 [batch, tokens], scored bool [batch, tokens], false in column 0. Rows are
        padded on the right, with any id: what is causal does not see it.
        """
        embedding = self.model.embed_tokens.weight
        x = F.embedding(ids, embedding.to(self.compute))
        cos, sin = (table.to(ids.device) for table in self.rotary_tables(ids.shape[1]))
        for layer in self.model.layers:
            x = layer(x, cos, sin)
        x = self.model.norm(x)[:, :-1][scored[:, 1:]]
        logits = F.linear(x.float(), embedding.to(self.compute).float())
        return -F.cross_entropy(logits, ids[scored], reduction="none")

    def rotary_tables(self, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin [tokens, head_dim / 2], in FP32."""
        width = self.config.head_dim
        exponents = torch.arange(0, width, 2, dtype=torch.float32) / width
        angles = torch.outer(torch.arange(tokens, dtype=torch.float32),
                             torch.exp(-math.log(self.config.rope_theta) * exponents))
        return angles.cos(), angles.sin()


def read_safetensors(path: pathlib.Path) -> dict[str, torch.Tensor]:
    """All tensors of a file, copied; the three dtypes of DTYPES."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    data = bytearray(content[8 + length :])
    tensors = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        begin, end = entry["data_offsets"]
        flat = torch.frombuffer(data[begin:end], dtype=DTYPES[entry["dtype"]])
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def load(folder: pathlib.Path, compute: torch.dtype = torch.bfloat16) -> Qwen3:
    """The model of a folder with one shard."""
    model = Qwen3(Config.read(folder), compute)
    tensors = read_safetensors(folder / "model.safetensors")
    model.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return model
