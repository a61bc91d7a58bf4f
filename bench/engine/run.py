#!/usr/bin/env python3
"""`make bench-engine`: the engine's kernels and a rollout's load, beside the bars they are held to.

Runs `kernels_bench` (decode of one token, prefill of 512) on the 1.7B shape in every format, and
the modes of `rollout_bench` on a folder of bench/shapes; docs/bench.md says what each measures.
Prints a line a figure with its bar and whether it was met or missed, and writes all JSON lines with
the commit, the processor and the date. A missed bar changes no exit code: benchmarks do not judge.
The file is written anew after each part, so that a run that is cut short leaves what it had.
Standard library only.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import bench_tools  # noqa: E402

FORMATS = ["bf16", "fp8", "fp8-ue8m0", "fp8-channel", "fp8-tensor", "mxfp8", "nvfp4"]
STEP_FORMATS = ["bf16", "fp8", "mxfp8", "nvfp4"]
PARTS = ["kernels", "steps", "input-scale", "logprobs", "groups", "digest"]
CASES = ["decode 1", "prefill 512"]

# At least: shares of the read bandwidth over weight bytes, and of the matrix peak (stated for AMX).
READ_SHARES = {"bf16": 0.85, "fp8": 0.85, "mxfp8": 0.85, "nvfp4": 0.70}
PEAK_SHARES = {"bf16": 0.60, "mxfp8": 0.60, "nvfp4": 0.45, "fp8": 0.40}
DIGEST_SHARE = 0.80
# At most.
STEP_RATIOS = {"fp8": 1.0}
INPUT_SCALE_COSTS = {"token": 0.03, "pow2": 0.01}
LOGPROB_COST = 0.03
# At least, times llama.cpp's best 8-bit type.
DISTINCT_TIMES, GROUPS_TIMES = 3.0, 5.0


def figure(name, value, text, at_least=None, at_most=None):
    """One line of the table; met is None where there is no bar."""
    bar, met = at_least if at_least is not None else at_most, None
    if bar is not None:
        met = value >= bar if at_least is not None else value <= bar
    return {"name": name, "value": value, "text": text, "bar": bar,
            "bar_is": None if bar is None else ("least" if at_least is not None else "most"),
            "met": met}


def kernel_figure(record):
    kind = "read" if record["case"] == "decode 1" else "peak"
    share = record[f"{kind}_share"]
    low, high = record[f"{kind}_share_quartiles"]
    of = "read bandwidth" if kind == "read" else "matrix peak"
    bars = READ_SHARES if kind == "read" else PEAK_SHARES
    return figure(f"{record['case']}, {record['format']}", share,
                  f"{share:.1%} of {of} ({low:.1%} .. {high:.1%}), {record['tok_s']:.1f} tok/s",
                  at_least=bars.get(record["format"]))


def steps_figure(record):
    name = f"steps, {record.get('format', 'all')}, batch {record['batch']} x {record['context']}"
    if "skipped" in record:
        return figure(name, None, f"skipped: {record['skipped']}")
    bound = record["ratio_upper_95"]
    text = (f"{record['ratio_median']:.3f} x {record['base']}, at most {bound:.3f}; "
            f"{record['ms_per_step']:.1f} ms")
    return figure(name, bound, text, at_most=STEP_RATIOS.get(record["format"]))


def cost_figure(record):
    """Of input-scale and logprobs: the upper 95 % bound is what counts."""
    if record["bench"] == "logprobs":
        name, bar = f"logprobs, {record['format']}", LOGPROB_COST
    else:
        name, bar = f"input scale {record['mode']}", INPUT_SCALE_COSTS[record["mode"]]
    bound = record["cost_upper_95"]
    return figure(f"{name}, batch {record['batch']}", bound,
                  f"{record['cost_median']:+.2%}, at most {bound:+.2%}; {record['pairs']} pairs",
                  at_most=bar)


def groups_figure(record, llama):
    rate = record["output_tok_per_s"]
    distinct = record["prompts"] == record["requests"]
    times = DISTINCT_TIMES if distinct else GROUPS_TIMES
    name = f"{record['requests']} requests, {record['prompts']} prompts, {record['format']}"
    text = f"{rate:.1f} output tok/s"
    if not llama:
        return figure(name, rate, f"{text}; to be {times:g} x llama.cpp's (--llama-tok-per-s)")
    return figure(name, rate, f"{text}, {rate / llama:.2f} x llama.cpp", at_least=times * llama)


def digest_figure(record):
    low, high = record["read_share_quartiles"]
    return figure(f"digest, {record['format']}", record["read_share"],
                  f"{record['read_share']:.1%} of read bandwidth ({low:.1%} .. {high:.1%}), "
                  f"{record['gb_per_s']:.1f} GB/s", at_least=DIGEST_SHARE)


def figure_of(record, llama):
    kind = record.get("bench", "kernels")
    if kind == "groups":
        return groups_figure(record, llama)
    return {"kernels": kernel_figure, "steps": steps_figure, "input-scale": cost_figure,
            "logprobs": cost_figure, "digest": digest_figure}[kind](record)


def print_figure(entry):
    bar = ""
    if entry["bar"] is not None:
        sign = ">=" if entry["bar_is"] == "least" else "<="
        bar = f"{sign} {entry['bar']:g}: {'met' if entry['met'] else 'MISSED'}"
    print(f"{entry['name']:<42} {entry['text']:<68} {bar}".rstrip(), flush=True)


def commands(args):
    """(part, command) in the order of the table."""
    kernels = str(args.build / "bench" / "kernels" / "kernels_bench")
    rollout = str(args.build / "bench" / "engine" / "rollout_bench")
    threads = str(args.threads)
    for fmt in args.formats:
        for case in CASES:
            yield "kernels", [kernels, args.isa, threads, str(args.layers), args.kernel_shape, fmt,
                              case]
    yield "steps", [rollout, "steps", args.shape, str(args.rounds), threads,
                    ",".join(args.step_formats)]
    yield "input-scale", [rollout, "input-scale", args.shape, str(args.pairs), threads]
    yield "logprobs", [rollout, "logprobs", args.shape, args.format, str(args.pairs), threads]
    yield "groups", [rollout, "groups", args.shape, args.format, "8", "8", threads]
    for fmt in args.step_formats:
        yield "digest", [rollout, "digest", args.shape, fmt, str(args.rounds), threads]


def records_of(command):
    """Its JSON lines as they come; sys.exit when it fails."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    if process.wait() != 0:
        sys.exit(f"`{' '.join(command)}` ended with code {process.returncode}")


def is_asked(record):
    """`kernels_bench` runs all cases whose name contains what it is given."""
    return "case" not in record or record["case"] in CASES


def parse_args():
    parser = argparse.ArgumentParser(description="Kernels and the engine under a rollout's load.")
    parser.add_argument("--build", type=pathlib.Path, default=pathlib.Path("build"))
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("out/engine.json"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--isa", default="best", help="amx, avx512 or avx2, of kernels_bench")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--kernel-shape", default="1.7b", choices=["0.6b", "1.7b"])
    parser.add_argument("--layers", type=int, default=28, help="of kernels_bench")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="of kernels_bench")
    parser.add_argument("--shape", default="qwen3-0.6b", help="folder of bench/shapes")
    parser.add_argument("--step-formats", nargs="+", default=STEP_FORMATS,
                        help="of steps, the first being what the others are measured against, "
                             "and of digest")
    parser.add_argument("--format", default="fp8", help="of logprobs and groups")
    parser.add_argument("--rounds", type=int, default=61, help="of steps and digest")
    parser.add_argument("--pairs", type=int, default=121, help="of input-scale and logprobs")
    parser.add_argument("--llama-tok-per-s", type=float, default=0.0,
                        help="output tokens a second of llama.cpp's best 8-bit type, 64 prompts")
    return parser.parse_args()


def write(path, result):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def main():
    args = parse_args()
    os.chdir(ROOT)
    result = {**bench_tools.origin(), "threads": args.threads, "parts": [], "figures": []}
    for part, command in commands(args):
        if part not in args.parts:
            continue
        begin = time.monotonic()
        records = []
        for record in records_of(command):
            if is_asked(record):
                records.append(record)
                result["figures"].append(figure_of(record, args.llama_tok_per_s))
                print_figure(result["figures"][-1])
        result["parts"].append({"part": part, "arguments": command[1:],
                                "seconds": round(time.monotonic() - begin, 1),
                                "records": records})
        write(args.output, result)
    missed = sum(entry["met"] is False for entry in result["figures"])
    with_bar = sum(entry["met"] is not None for entry in result["figures"])
    print(f"{missed} of {with_bar} bars missed; written to {args.output}")


if __name__ == "__main__":
    main()
