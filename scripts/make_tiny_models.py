#!/usr/bin/env python3
"""Makes tests/data/model/tiny: random checkpoints of every architecture, and HF's logits for them.

    VENV/bin/python scripts/make_tiny_models.py

VENV has torch 2.15 (CPU is enough), transformers 5.23, safetensors and numpy. It is seeded.

    NAME/config.json           As transformers 5 writes it, or (v4) as 4.51 did.
    NAME/model.safetensors     BF16; a router's bias in F32 where CASES says so.
    NAME/expected.safetensors  0.ids, 0.logits, 1.ids, 1.logits: prompts and logits after each token;
                               0.experts int32 [T, layers, top k] of a mixture: where tokens went,
                               ascending, 0 in dense layers.

Logits are those of HF's eager FP32 forward pass of the folder as it is read back from disk, so that
both styles of config.json mean to HF what they mean here. Weights are N(0, 1.5 / sqrt(inputs)), so
that softmaxes are neither flat nor one-hot and every option moves the logits by far more than the
test's tolerance. Prompts are longer than the contexts that the rotary scalings start from.
"""

import json
import pathlib

import torch
import transformers
from safetensors.torch import load_file, save_file

OUT = pathlib.Path(__file__).parent.parent / "tests" / "data" / "model" / "tiny"
PROMPT_LENGTHS = (40, 11)

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


# name: (family, members of the config, written as transformers 4 did, router bias in F32)
CASES = {
    "qwen3-tied": ("Qwen3", {**GQA, **rope(1e6), "tie_word_embeddings": True}, False, False),
    "qwen3-bias-yarn": (
        "Qwen3",
        {**GQA, **rope(1e4, **YARN), "attention_bias": True, "num_key_value_heads": 2},
        True,
        False,
    ),
    "qwen3moe-norm": ("Qwen3Moe", {**MOE, **rope(1e4), "norm_topk_prob": True}, False, False),
    "qwen3moe-step2": (
        "Qwen3Moe",
        {
            **MOE,
            **rope(1e4),
            "norm_topk_prob": False,
            "decoder_sparse_step": 2,
            "tie_word_embeddings": True,
        },
        True,
        False,
    ),
    "qwen3moe-listed": (
        "Qwen3Moe",
        {**MOE, **rope(1e4), "norm_topk_prob": False, "mlp_only_layers": [1]},
        False,
        False,
    ),
    # Interleaved rotary pairs, no latent of q, one dense layer, one shared expert.
    "deepseek-plain": (
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
        True,
        False,
    ),
    # YaRN as DeepSeek's own: equal mscales, so that cos and sin stay as they are.
    "deepseek-yarn": (
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
        False,
        True,
    ),
    # Half-split pairs, mscales that differ, biases, no dense layer, weights as they are.
    "deepseek-split": (
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
        True,
        True,
    ),
    "llama-tied": (
        "Llama",
        {**GQA, **rope(5e5, **LLAMA3), "tie_word_embeddings": True},
        True,
        False,
    ),
    "llama-bias": ("Llama", {**GQA, **rope(1e3, **LLAMA3), "attention_bias": True}, False, False),
    "qwen2": ("Qwen2", {**GQA, **rope(1e6)}, True, False),
    "qwen2-tied": ("Qwen2", {**GQA, **rope(1e4), "tie_word_embeddings": True}, False, False),
}


def fill(model: torch.nn.Module, generator: torch.Generator) -> None:
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
            values = normal
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


def make(name: str, seed: int) -> None:
    family, members, is_v4, f32_bias = CASES[name]
    folder = OUT / name
    folder.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    config = getattr(transformers, family + "Config")(**members)
    config.architectures = [family + "ForCausalLM"]
    model = getattr(transformers, family + "ForCausalLM")(config).eval()
    fill(model, generator)
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "generation_config.json").unlink(missing_ok=True)

    tensors = load_file(folder / "model.safetensors")
    if f32_bias:
        tensors = {k: v.float() if "e_score" in k else v for k, v in tensors.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    written = json.loads((folder / "config.json").read_text())
    if is_v4:
        written = as_transformers_4(written, family)
    (folder / "config.json").write_text(json.dumps(written, indent=2) + "\n")

    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()
    for (key, ours), theirs in zip(model.state_dict().items(), loaded.state_dict().values()):
        assert torch.equal(ours.float(), theirs.float()), f"{name}: {key} read back differently"
    expected = {}
    for i, length in enumerate(PROMPT_LENGTHS):
        ids = torch.randint(0, members["vocab_size"], (1, length), generator=generator)
        with torch.no_grad():
            logits = loaded(ids).logits[0]
            experts = routed_experts(loaded, ids)
        if experts is not None:
            expected[f"{i}.experts"] = experts.contiguous()
        expected[f"{i}.ids"] = ids[0].to(torch.int32)
        expected[f"{i}.logits"] = logits.float().contiguous()
    save_file(expected, folder / "expected.safetensors")
    for path in folder.iterdir():
        path.chmod(0o644)
    print(f"{name}: logits deviate by {logits.std():.2f}")


def main() -> None:
    for seed, name in enumerate(CASES):
        make(name, seed)


if __name__ == "__main__":
    main()
