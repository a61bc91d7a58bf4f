#!/usr/bin/env python3
"""Makes tests/data/model/tiny: random checkpoints of every architecture, and HF's logits for them.

    VENV/bin/python scripts/make_tiny_models.py [NAME...]

VENV has torch 2.15 (CPU is enough), transformers 5.23, safetensors and numpy. It is seeded.

    NAME/config.json           As transformers 5 writes it, or as 4.51 did, in full or in part.
    NAME/model.safetensors     BF16; a router's bias in F32 where CASES says so.
    NAME/expected.golden       0.ids, 0.logits, 1.ids, 1.logits: prompts and logits after each token;
                               0.experts int32 [T, layers, top k] of a mixture: where tokens went,
                               ascending, 0 in dense layers. In the safetensors format; not in its
                               name, which would make the file a shard of the checkpoint.

Logits are those of HF's eager FP32 forward pass of the folder as it is read back from disk, so that
both styles of config.json mean to HF what they mean here. Weights are N(0, 1.5 / sqrt(inputs)), so
that softmaxes are neither flat nor one-hot and every option moves the logits by far more than the
test's tolerance. Prompts are longer than the contexts that the rotary scalings start from.
"""

import dataclasses
import json
import pathlib
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3MLP

OUT = pathlib.Path(__file__).parent.parent / "tests" / "data" / "model" / "tiny"

BASE = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 128,
    "attn_implementation": "eager",
}
GQA = {**BASE, "head_dim": 16}
MOE = {**GQA, "num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
MLA = {
    **BASE,
    "num_key_value_heads": 2,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 10,
}
# A few kB each: widths that no head divides, and only the members that HF cannot do without.
SMALL = {
    "vocab_size": 16,
    "hidden_size": 8,
    "intermediate_size": 6,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "rms_norm_eps": 1e-6,
}
SMALL_MLA = {
    **SMALL,
    "num_hidden_layers": 2,
    "num_key_value_heads": 2,
    "kv_lora_rank": 6,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 4,
    "topk_group": 1,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}


def rope(theta: float, **scaling) -> dict:
    return {"rope_parameters": {"rope_theta": theta, "rope_type": "default", **scaling}}


@dataclasses.dataclass(frozen=True)
class Case:
    family: str
    members: dict  # Of the config.
    version: int = 5  # Of the transformers whose config.json it has.
    partial: bool = False  # Only `members` and what names the model.
    f32_bias: bool = False  # The router's.
    embedding: float = 1.0  # Deviation of the embedding.
    prompt_lengths: tuple[int, ...] = (40, 11)


def small(family: str, members: dict, **rest) -> Case:
    return Case(family, members, version=4, partial=True, prompt_lengths=(22, 3), **rest)


CASES = {
    "qwen3-tied": Case("Qwen3", {**GQA, **rope(1e6), "tie_word_embeddings": True}),
    "qwen3-bias-yarn": Case(
        "Qwen3",
        {**GQA, **rope(1e4, **YARN), "attention_bias": True, "num_key_value_heads": 2},
        version=4,
    ),
    "qwen3moe-norm": Case("Qwen3Moe", {**MOE, **rope(1e4), "norm_topk_prob": True}),
    "qwen3moe-step2": Case(
        "Qwen3Moe",
        {
            **MOE,
            **rope(1e4),
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "tie_word_embeddings": True,
        },
        version=4,
    ),
    "qwen3moe-listed": Case(
        "Qwen3Moe",
        {**MOE, **rope(1e4), "norm_topk_prob": False, "mlp_only_layers": [1]},
    ),
    # Interleaved rotary pairs, no latent of q, one dense layer, one shared expert.
    "deepseek-plain": Case(
        "DeepseekV3",
        {
            **MLA,
            **rope(1e4),
            "q_lora_rank": None,
            "rope_interleave": True,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "n_group": 1,
            "topk_group": 1,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
        },
        version=4,
    ),
    # YaRN as DeepSeek's own: equal mscales, so that cos and sin stay as they are.
    "deepseek-yarn": Case(
        "DeepseekV3",
        {
            **MLA,
            **rope(1e4, **YARN, mscale=1.0, mscale_all_dim=1.0, beta_fast=32.0, beta_slow=1.0),
            "q_lora_rank": 20,
            "rope_interleave": True,
            "first_k_dense_replace": 1,
            "n_shared_experts": 2,
            "n_group": 4,
            "topk_group": 2,
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            "tie_word_embeddings": True,
        },
        f32_bias=True,
    ),
    # Half-split pairs, mscales that differ, biases, no dense layer, weights as they are.
    "deepseek-split": Case(
        "DeepseekV3",
        {
            **MLA,
            **rope(1e4, **YARN, mscale=0.707, mscale_all_dim=1.3),
            "q_lora_rank": 20,
            "rope_interleave": False,
            "first_k_dense_replace": 0,
            "n_shared_experts": 1,
            "n_group": 2,
            "topk_group": 1,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.25,
            "attention_bias": True,
        },
        version=4,
        f32_bias=True,
    ),
    "llama-tied": Case(
        "Llama",
        {**GQA, **rope(5e5, **LLAMA3), "tie_word_embeddings": True},
        version=4,
    ),
    "llama-bias": Case("Llama", {**GQA, **rope(1e3, **LLAMA3), "attention_bias": True}),
    "qwen2": Case("Qwen2", {**GQA, **rope(1e6)}, version=4),
    "qwen2-tied": Case("Qwen2", {**GQA, **rope(1e4), "tie_word_embeddings": True}),
    # Heads that do not add up to the hidden size; every optional member of YaRN.
    "qwen3-heads": small(
        "Qwen3",
        {
            **SMALL,
            **rope(1e2, **YARN, attention_factor=1.3, beta_fast=1.5, beta_slow=0.5, truncate=False),
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "use_sliding_window": False,
            "sliding_window": 8,
        },
    ),
    # The same in a mixture, with biases, a small epsilon and norm_topk_prob left out.
    "qwen3moe-heads": small(
        "Qwen3Moe",
        {
            **SMALL,
            **rope(1e4),
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "head_dim": 6,
            "attention_bias": True,
            "num_experts": 3,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 4,
            "decoder_sparse_step": 2,
            "rms_norm_eps": 1e-5,
        },
        embedding=0.02,
    ),
    # No shared expert; norms of latents keep their own epsilon; one of YaRN's two mscales.
    "deepseek-unshared": small(
        "DeepseekV3",
        {
            **SMALL_MLA,
            **rope(1e4, **YARN, mscale_all_dim=0.8),
            "q_lora_rank": 6,
            "n_shared_experts": 0,
            "n_group": 2,
            "rms_norm_eps": 0.05,
        },
    ),
    # Experts in layer 2 alone: from the second on, every other one.
    "deepseek-freq": small(
        "DeepseekV3",
        {
            **SMALL_MLA,
            **rope(1e4),
            "num_hidden_layers": 3,
            "q_lora_rank": None,
            "n_shared_experts": 1,
            "n_group": 1,
            "moe_layer_freq": 2,
            "attention_bias": True,
        },
        f32_bias=True,
    ),
    # As Llama 3 itself: no head_dim, and an epsilon that small hidden states feel.
    "llama-eps": small("Llama", {**SMALL, **rope(5e5), "rms_norm_eps": 1e-5}, embedding=0.01),
    # As Qwen2 itself: no head_dim, a window that is turned off.
    "qwen2-window": small(
        "Qwen2",
        {
            **SMALL,
            **rope(1e6),
            "num_key_value_heads": 1,
            "use_sliding_window": False,
            "sliding_window": 8,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
        },
    ),
}


def fill(model: torch.nn.Module, generator: torch.Generator, embedding: float) -> None:
    """Random values that BF16 holds, in place."""
    named = list(model.named_parameters()) + [
        (name, buffer) for name, buffer in model.named_buffers() if "e_score" in name
    ]
    for name, tensor in named:
        normal = torch.randn(tensor.shape, generator=generator)
        if "norm" in name:
            values = 1 + 0.2 * normal
        elif name.endswith("bias"):
            values = 0.3 * normal
        elif "embed_tokens" in name:
            values = embedding * normal
        else:
            values = 1.5 * normal / tensor.shape[-1] ** 0.5
        tensor.data.copy_(values.bfloat16().float())


def routed_experts(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor | None:
    """[tokens, layers, top k], from the indices that HF's routers return."""
    config = model.config
    layers = config.num_hidden_layers
    routed: dict[int, torch.Tensor] = {}
    hooks = [
        layer.mlp.gate.register_forward_hook(
            lambda _module, _inputs, out, i=i: routed.update({i: out[2].sort(dim=-1).values})
        )
        for i, layer in enumerate(model.model.layers)
        if hasattr(layer.mlp, "gate")
    ]
    model(ids)
    for hook in hooks:
        hook.remove()
    if not routed:
        return None
    zeros = torch.zeros(ids.shape[1], config.num_experts_per_tok, dtype=torch.int32)
    return torch.stack([routed.get(i, zeros).to(torch.int32) for i in range(layers)], dim=1)


def as_transformers_4(config: dict, family: str) -> dict:
    """What 4.51 wrote: rope_theta and rope_scaling at the top, torch_dtype, its expert counts."""
    config = dict(config)
    parameters = dict(config.pop("rope_parameters"))
    config["rope_theta"] = parameters.pop("rope_theta")
    default = parameters.get("rope_type") == "default"
    if not default and family == "DeepseekV3":
        parameters["type"] = parameters.pop("rope_type")  # As in DeepSeek's own file.
    config["rope_scaling"] = None if default else parameters
    config["torch_dtype"] = config.pop("dtype")
    experts = config.pop("num_local_experts", None)
    if experts is not None:
        config["n_routed_experts" if family == "DeepseekV3" else "num_experts"] = experts
    config["transformers_version"] = "4.51.0"
    return dict(sorted(config.items()))


def as_partial(config: dict, members: dict) -> dict:
    """Without what HF's class added or turned to null. For configs of transformers 4."""
    names = {"architectures", "model_type", "rope_scaling", "rope_theta", "torch_dtype"}
    kept = {key: value for key, value in config.items() if key in names or key in members}
    return {**kept, **{key: value for key, value in members.items() if key in kept}}


def keep_dense(model: torch.nn.Module, tensors: dict | None = None) -> None:
    """DeepSeek's own file has dense layers by moe_layer_freq; HF's class does not look at it."""
    config = model.config
    for i, layer in enumerate(model.model.layers):
        if i < config.first_k_dense_replace or i % config.moe_layer_freq == 0:
            continue
        layer.mlp = DeepseekV3MLP(config)
        if tensors is not None:
            stem = f"model.layers.{i}.mlp."
            layer.mlp.load_state_dict(
                {k.removeprefix(stem): v.float() for k, v in tensors.items() if k.startswith(stem)}
            )


def write(folder: pathlib.Path, case: Case, generator: torch.Generator) -> torch.nn.Module:
    """The checkpoint; returns the model whose weights it has."""
    config = getattr(transformers, case.family + "Config")(**case.members)
    config._attn_implementation = "eager"
    config.architectures = [case.family + "ForCausalLM"]
    model = getattr(transformers, case.family + "ForCausalLM")(config).eval()
    if "moe_layer_freq" in case.members:
        keep_dense(model)
    fill(model, generator, case.embedding)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    tensors = load_file(folder / "model.safetensors")
    # HF makes a shared expert of width 0; DeepSeek's own file makes none.
    tensors = {name: tensor for name, tensor in tensors.items() if tensor.numel() > 0}
    if case.f32_bias:
        tensors = {k: v.float() if "e_score" in k else v for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    if case.version == 4:
        written = as_transformers_4(written, case.family)
    if case.partial:
        written = as_partial(written, case.members)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")
    return model


def make(name: str, seed: int) -> None:
    case = CASES[name]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    model = write(folder, case, generator)
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()
    if "moe_layer_freq" in case.members:
        keep_dense(loaded, load_file(folder / "model.safetensors"))
    for (key, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(ours.float(), theirs.float()), f"{name}: {key} read back differently"
    expected = {}
    for i, length in enumerate(case.prompt_lengths):
        ids = torch.randint(0, case.members["vocab_size"], (1, length), generator=generator)
        with torch.no_grad():
            logits = loaded(ids).logits[0]
            experts = routed_experts(loaded, ids)
        if experts is not None:
            expected[f"{i}.experts"] = experts.contiguous()
        expected[f"{i}.ids"] = ids[0].to(torch.int32)
        expected[f"{i}.logits"] = logits.float().contiguous()
    save_file(expected, folder / "expected.golden")
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{name}: logits deviate by {logits.std():.2f}")


def main() -> None:
    wanted = sys.argv[1:] or list(CASES)
    for seed, name in enumerate(CASES):
        if name in wanted:
            make(name, seed)


if __name__ == "__main__":
    main()
