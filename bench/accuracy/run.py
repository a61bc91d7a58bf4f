#!/usr/bin/env python3
"""`make accuracy`: what each format costs in accuracy, on the trained models.

Serves every model in every format, scores the same solved problems for the divergence from BF16,
and evaluates all test problems; prints a Markdown table, writes one JSON file, and with --docs puts
the table between the marker lines of a page. Exits 1 when the accuracy of an FP8 form or of MXFP8
is not within 0.01 of BF16's. Standard library only.

The static input scales of NVFP4 are calibrated here: `calibrate`, built beside it, runs other
solved problems in BF16 and gives the largest input of every layer, amax; the converted checkpoint,
which says 1, gets amax / 2688.

Mean KL is over all positions of the scored problems, of BF16's distribution from the format's, both
over the whole vocabulary; |dlogp| is the mean change of the logprob of the token that follows.
"""

import argparse
import contextlib
import json
import math
import os
import pathlib
import re
import struct
import subprocess
import sys
import tempfile

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "scripts")]
import bench_tools  # noqa: E402
import demo_tools as tools  # noqa: E402

DATA = "data/abacus-test.jsonl"
VOCABULARY = 690
KL_PROBLEMS = 16
CALIBRATION_PROBLEMS = 64  # The last ones of the file; those of the KL are the first.
BARRED = {"fp8", "fp8, last 2 kept", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8"}
BAR = 0.01
MARKS = ("<!-- accuracy -->", "<!-- /accuracy -->")

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
    ("nvfp4 all, static, calibrated", ["--format", "nvfp4", *ALL, "--nvfp4-input-scale", "static"]),
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


def solved_problems(which):
    """A slice of the problems with their solutions, as the evaluation words them."""
    texts = []
    for line in pathlib.Path(DATA).read_text(encoding="utf-8").splitlines()[which]:
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


def calibrate(program, model):
    """Module -> the largest magnitude of its input over solved problems."""
    texts = solved_problems(slice(-CALIBRATION_PROBLEMS, None))
    done = subprocess.run([program, model, *texts], stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        raise tools.DemoError(f"{program} ended with code {done.returncode}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return {line["module"]: line["amax"] for line in lines}


def set_input_scales(folder, amax):
    """Writes amax / 2688 over every X.input_scale that was calibrated; how many there were."""
    count = 0
    for path in sorted(folder.glob("*.safetensors")):
        with open(path, "r+b") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            for name, tensor in json.loads(file.read(length)).items():
                module = name.removesuffix(".input_scale")
                if name == module or amax.get(module, 0.0) == 0.0:
                    continue
                if tensor["dtype"] != "F32" or math.prod(tensor["shape"]) != 1:
                    raise tools.DemoError(f"{path}: {name}: expected one F32")
                file.seek(8 + length + tensor["data_offsets"][0])
                file.write(struct.pack("<f", amax[module] / 2688.0))
                count += 1
    return count


@contextlib.contextmanager
def served(octavo, model, name, flags, args, work):
    """A server of `model` with `flags`; a static input scale needs a calibrated checkpoint."""
    if "static" in flags:
        out = pathlib.Path(work) / (pathlib.Path(model).name + "-nvfp4")
        octavo.run("convert", model, str(out), "--format", "nvfp4", *ALL)
        count = set_input_scales(out, calibrate(args.calibrate, model))
        if count == 0:
            raise tools.DemoError(f"{out}: no input_scale to calibrate")
        tools.say(f"  {count} input scales calibrated over {CALIBRATION_PROBLEMS} problems")
        model, flags = str(out), ["--nvfp4-input-scale", "static"]
    with octavo.serving(name, model, *flags) as url:
        yield url


def input_ranges(url):
    """(groups quantized to NVFP4, of these above and below the range of their scale)"""
    text = tools.call(url, "GET", "/metrics")
    text = text.decode() if isinstance(text, bytes) else text

    def value(pattern):
        return int(re.search(rf"^octavo:nvfp4_input_groups_{pattern}}} (\d+)$", text, re.M)[1])

    return (value(r"total{[^}]*"), value(r'out_of_range_total{[^}]*side="above"[^}]*'),
            value(r'out_of_range_total{[^}]*side="below"[^}]*'))


def measure(octavo, model, label, flags, work, args):
    """One row of the table without its divergence, and the scored texts."""
    name = f"{pathlib.Path(model).name}-{label}".replace(" ", "-").replace(",", "")
    with served(octavo, model, name, flags, args, work) as url:
        scored = [score(url, text) for text in solved_problems(slice(KL_PROBLEMS))]
        info = json.loads(tools.call(url, "GET", "/server_info"))
        asked = ["eval", "--url", url, "--data", DATA, "--num-shots", "0"]
        if args.num_questions:
            asked += ["--num-questions", str(args.num_questions)]
        result = octavo.json(*asked)
        groups, above, below = input_ranges(url)
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
        "nvfp4_inputs": {"groups": groups, "above": above, "below": below},
    }
    return row, scored


def range_text(inputs):
    """Shares of the groups of inputs that left the range of their scale."""
    if inputs["groups"] == 0:
        return ""
    return " / ".join(f"{inputs[side] / inputs['groups']:.1e}" if inputs[side] else "0"
                      for side in ("above", "below"))


def table(rows):
    lines = [
        "| model | weights | accuracy | mean KL | mean abs dlogp | above / below | bytes | "
        "token/s |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        lines.append(
            f"| {row['model']} | {row['weights']} | {row['accuracy']:.3f} ± "
            f"{row['standard_error']:.3f} | {row['kl_mean']:.1e} | {row['abs_dlogp_mean']:.4f} | "
            f"{range_text(row['nvfp4_inputs'])} | {row['weight_bytes']:,} | "
            f"{row['output_tok_per_s']:,.0f} |"
        )
    return "\n".join(lines)


def missed(rows):
    """A sentence for each row whose accuracy is not within BAR of its model's BF16."""
    bf16 = {row["model"]: row["accuracy"] for row in rows if row["weights"] == "bf16"}
    return [f"{row['model']}, {row['weights']}: accuracy {row['accuracy']:.4f}, expected within "
            f"{BAR} of BF16's {bf16[row['model']]:.4f}"
            for row in rows if row["weights"] in BARRED
            and abs(row["accuracy"] - bf16[row["model"]]) > BAR + 1e-9]  # 0.99 - 0.98 > 0.01


def put_into_docs(path, result):
    """Replaces what stands between the two marker lines of a page."""
    text = path.read_text(encoding="utf-8")
    begin, end = (text.find(mark) for mark in MARKS)
    if begin < 0 or end < begin:
        raise tools.DemoError(f"{path}: expected the lines {MARKS[0]} and {MARKS[1]}")
    said = (f"`make accuracy` on {result['processors']} processors of an {result['processor']}, "
            f"{result['date'][:10]}, commit {result['commit']}, "
            f"{result['rows'][0]['questions']:,} questions:\n\n{table(result['rows'])}\n")
    text = f"{text[:begin + len(MARKS[0])]}\n{said}{text[end:]}"
    path.write_text(text, encoding="utf-8")


def parse_args():
    parser = argparse.ArgumentParser(description="Accuracy of every format on the trained models.")
    parser.add_argument("--octavo", default="build/octavo", help="the built program")
    parser.add_argument("--calibrate", default=None,
                        help="built too; default: bench/accuracy/calibrate beside octavo")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out/accuracy.json"))
    parser.add_argument("--docs", type=pathlib.Path, default=None,
                        help=f"page whose table between {MARKS[0]} and {MARKS[1]} is replaced")
    parser.add_argument("--num-questions", type=int, default=0, help="0: all 1,319")
    parser.add_argument("--models", nargs="+", default=list(MODELS), choices=list(MODELS))
    parser.add_argument("--weights", nargs="+", default=None,
                        help="labels of rows beside bf16; default: all")
    args = parser.parse_args()
    args.octavo = pathlib.Path(args.octavo).resolve()
    args.calibrate = args.calibrate or str(args.octavo.parent / "bench" / "accuracy" / "calibrate")
    for path in ("output", "docs"):
        given = getattr(args, path)
        setattr(args, path, given and given.resolve())
    return args


def rows_of(octavo, model, work, args):
    """The rows of one model as they come; the first is BF16, what the others diverge from."""
    reference = None
    for label, flags in MODELS[model]:
        if label != "bf16" and args.weights is not None and label not in args.weights:
            continue
        row, scored = measure(octavo, model, label, flags, work, args)
        reference = reference or scored
        row["kl_mean"], row["abs_dlogp_mean"] = divergence(reference, scored)
        yield row


def main():
    args = parse_args()
    os.chdir(ROOT)
    logs = args.output.parent / "accuracy"
    logs.mkdir(parents=True, exist_ok=True)
    octavo = tools.Octavo(str(args.octavo), logs)
    result = {**bench_tools.origin(), "rows": []}
    try:
        with tempfile.TemporaryDirectory() as work:
            for model in args.models:
                for row in rows_of(octavo, model, work, args):
                    result["rows"].append(row)
                    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if args.docs is not None:
            put_into_docs(args.docs, result)
    except (tools.DemoError, OSError) as error:
        sys.exit(f"accuracy: {error}")
    finally:
        octavo.kill_all()
    print(table(result["rows"]))
    print(f"written to {args.output}; logs of the servers in {logs}")
    sentences = missed(result["rows"])
    if sentences:
        sys.exit("\n".join(sentences))


if __name__ == "__main__":
    main()
