#!/usr/bin/env python3
"""`make accuracy`: what each format costs in accuracy, on the trained models.

Serves every model in every format, scores the same solved problems for the divergence from BF16,
and evaluates all test problems; prints a Markdown table and writes one JSON file. Standard library
only.

Mean KL is over all positions of the scored problems, of BF16's distribution from the format's, both
over the whole vocabulary; |dlogp| is the mean change of the logprob of the token that follows.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import platform
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "scripts"))
import demo_tools as tools  # noqa: E402

DATA = "data/abacus-test.jsonl"
VOCABULARY = 690
KL_PROBLEMS = 16

ALL = ["--scope", "all"]
COMMON = [
    ("bf16", []),
    ("fp8", ["--format", "fp8"]),
    ("fp8, last 2 kept", ["--format", "fp8", "--keep-last", "2"]),
    ("fp8-ue8m0", ["--format", "fp8-ue8m0"]),
    ("fp8-channel", ["--format", "fp8-channel"]),
    ("fp8-tensor", ["--format", "fp8-tensor"]),
    ("w8a16", ["--format", "w8a16"]),
    ("mxfp8", ["--format", "mxfp8"]),
    ("nvfp4 all, token", ["--format", "nvfp4", *ALL]),
    ("nvfp4 all, pow2", ["--format", "nvfp4", *ALL, "--nvfp4-input-scale", "pow2"]),
    ("nvfp4 all, batch", ["--format", "nvfp4", *ALL, "--nvfp4-input-scale", "batch"]),
    ("nvfp4 all, static", ["--format", "nvfp4", *ALL, "--nvfp4-input-scale", "static"]),
    ("nvfp4 all, last 2 kept", ["--format", "nvfp4", *ALL, "--keep-last", "2"]),
    ("nvfp4 mlp", ["--format", "nvfp4", "--scope", "mlp"]),
    ("w4a16 all", ["--format", "w4a16", *ALL]),
    ("fp8 with fp8 KV cache", ["--format", "fp8", "--kv-cache-dtype", "fp8_e4m3"]),
]
EXPERTS = [("nvfp4 experts", ["--format", "nvfp4", "--scope", "experts"])]
MODELS = {
    "models/abacus-dense": COMMON,
    "models/abacus-moe": COMMON + EXPERTS,
    "models/abacus-mla": COMMON + EXPERTS,
}


def processor():
    """The model name of the first processor, as Linux gives it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def solved_problems(count):
    """The first problems with their solutions, as the evaluation words them."""
    texts = []
    for line in pathlib.Path(DATA).read_text(encoding="utf-8").splitlines()[:count]:
        problem = json.loads(line)
        texts.append(f"Question: {problem['question']}\nAnswer: {problem['answer']}")
    return texts


def score(url, text):
    """([logprob of the token at each position but the first], [the distribution there])."""
    body = {
        "text": text,
        "sampling_params": {"max_new_tokens": 0, "temperature": 0},
        "return_logprob": True,
        "logprob_start_len": 0,
        "top_logprobs_num": VOCABULARY,
    }
    info = json.loads(tools.call(url, "POST", "/generate", body, timeout=600))["meta_info"]
    tokens = [entry[0] for entry in info["input_token_logprobs"][1:]]
    distributions = []
    for entries in info["input_top_logprobs"][1:]:
        row = [0.0] * VOCABULARY
        for logprob, token, _ in entries:
            row[token] = logprob
        distributions.append(row)
    return tokens, distributions


def divergence(reference, scored):
    """(mean KL, mean |dlogp|) over all positions of all texts."""
    kl, difference, count = 0.0, 0.0, 0
    for (want_tokens, want_rows), (got_tokens, got_rows) in zip(reference, scored):
        for want, got in zip(want_rows, got_rows):
            kl += sum(math.exp(p) * (p - q) for p, q in zip(want, got))
            count += 1
        difference += sum(abs(p - q) for p, q in zip(want_tokens, got_tokens))
    return kl / count, difference / count


@contextlib.contextmanager
def served(octavo, model, name, flags, work):
    """A server of `model` with `flags`; a static input scale needs a checkpoint that has one."""
    if "static" in flags:
        out = pathlib.Path(work) / (pathlib.Path(model).name + "-nvfp4")
        octavo.run("convert", model, str(out), "--format", "nvfp4", *ALL)
        model, flags = str(out), ["--nvfp4-input-scale", "static"]
    with octavo.serving(name, model, *flags) as url:
        yield url


def measure(octavo, model, label, flags, work, args):
    """One row of the table without its divergence, and the scored texts."""
    name = f"{pathlib.Path(model).name}-{label}".replace(" ", "-").replace(",", "")
    with served(octavo, model, name, flags, work) as url:
        scored = [score(url, text) for text in solved_problems(KL_PROBLEMS)]
        info = json.loads(tools.call(url, "GET", "/server_info"))
        asked = ["eval", "--url", url, "--data", DATA, "--num-shots", "0"]
        if args.num_questions:
            asked += ["--num-questions", str(args.num_questions)]
        result = octavo.json(*asked)
    accuracy, count = result["accuracy"], result["questions"]
    row = {
        "model": pathlib.Path(model).name,
        "weights": label,
        "recipe": info["recipe"],
        "accuracy": accuracy,
        "standard_error": math.sqrt(accuracy * (1.0 - accuracy) / count),
        "questions": count,
        "weight_bytes": info["weight_bytes"],
        "output_tok_per_s": result["output_tok_per_s"],
    }
    return row, scored


def table(rows):
    lines = [
        "| model | weights | accuracy | mean KL | mean abs dlogp | bytes | token/s |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['weights']} | {row['accuracy']:.3f} ± "
            f"{row['standard_error']:.3f} | {row['kl_mean']:.1e} | {row['abs_dlogp_mean']:.4f} | "
            f"{row['weight_bytes']:,} | {row['output_tok_per_s']:,.0f} |"
        )
    return "\n".join(lines)


def parse_args():
    parser = argparse.ArgumentParser(description="Accuracy of every format on the trained models.")
    parser.add_argument("--octavo", default="build/octavo", help="the built program")
    parser.add_argument("--out", default="out/accuracy", help="folder of results and logs")
    parser.add_argument("--num-questions", type=int, default=0, help="0: all 1,319")
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    return parser.parse_args()


def main():
    args = parse_args()
    os.chdir(ROOT)
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    octavo = tools.Octavo(str(pathlib.Path(args.octavo).resolve()), out)
    rows = []
    try:
        with tempfile.TemporaryDirectory() as work:
            for model in args.models:
                reference = None
                for label, flags in MODELS[model]:
                    row, scored = measure(octavo, model, label, flags, work, args)
                    reference = reference or scored
                    row["kl_mean"], row["abs_dlogp_mean"] = divergence(reference, scored)
                    rows.append(row)
    except (tools.DemoError, OSError) as error:
        sys.exit(f"accuracy: {error}")
    finally:
        octavo.kill_all()
    commit = subprocess.run(["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT,
                            capture_output=True, text=True, check=False).stdout.strip() or None
    result = {"commit": commit, "processor": processor(), "rows": rows}
    (out / "accuracy.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (out / "accuracy.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))
    print(f"written to {out}/accuracy.json and {out}/accuracy.md")


if __name__ == "__main__":
    main()
