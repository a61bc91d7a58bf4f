#!/usr/bin/env python3
"""Cuts tests/data/model/NAME.safetensors out of a full file of reference outputs.

    VENV/bin/python scripts/make_golden_data.py FULL.safetensors OUT.safetensors [--positions N]

FULL has for prompt i: i.ids int32 [T], i.logits float32 [T, vocab] (HF transformers in FP32),
i.greedy int32 (the greedy continuation). OUT keeps ids and greedy, and the logits of N positions
spread over each prompt, the last among them, with their numbers in i.positions int32 [N].
Needs numpy and safetensors.
"""

import argparse

import numpy as np
from safetensors.numpy import load_file, save_file


def cut(full: dict[str, np.ndarray], num_positions: int) -> dict[str, np.ndarray]:
    out = {}
    for i in range(len(full) // 3):
        last = len(full[f"{i}.ids"]) - 1
        positions = np.unique(np.linspace(0, last, num_positions).round().astype(np.int32))
        out[f"{i}.ids"] = full[f"{i}.ids"]
        out[f"{i}.greedy"] = full[f"{i}.greedy"]
        out[f"{i}.positions"] = positions
        out[f"{i}.logits"] = np.ascontiguousarray(full[f"{i}.logits"][positions])
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full")
    parser.add_argument("out")
    parser.add_argument("--positions", type=int, default=12)
    args = parser.parse_args()
    save_file(cut(load_file(args.full), args.positions), args.out)


if __name__ == "__main__":
    main()
