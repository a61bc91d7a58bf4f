#!/usr/bin/env python3
"""`make bench`: speed of the standard shapes in each format, with shares of the machine's limits.

Runs `octavo bench` once for each shape and format (docs/bench.md says what is measured), prints a
table and writes one JSON file with the commit, the processor and the date. Standard library only.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import bench_tools  # noqa: E402

SHAPES = ["qwen3-0.6b", "qwen3-1.7b"]
FORMATS = {"bf16": [], "fp8": [], "mxfp8": [], "nvfp4": ["--scope", "all"]}


def bench(program, shape, fmt, args):
    """One report of `octavo bench`; its log goes to stderr."""
    command = [program, "bench", f"bench/shapes/{shape}", "--load-format", "dummy"]
    command += ["--format", fmt, *FORMATS.get(fmt, []), "--batch", args.batch]
    command += ["--input-len", str(args.input_len), "--output-len", str(args.output_len)]
    command += ["--repeats", str(args.repeats), "--threads", str(args.threads), "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with code {done.returncode}")
    return {"shape": shape, **json.loads(done.stdout)}


def print_report(report):
    machine = report["machine"]
    print(
        f"{report['shape']}: {machine['backend']}, {machine['threads']} threads, "
        f"read {machine['read_gb_per_s']:.1f} GB/s, "
        f"matrix peak {machine['matrix_tflop_per_s']:.2f} TFLOP/s"
    )
    for row in report["rows"]:
        print(
            f"  {row['format']:<5} batch {row['batch']:>3}: "
            f"prefill {row['prefill_tok_per_s']:8.1f} tok/s "
            f"({row['share_of_matrix_peak']:5.1%} of peak), "
            f"decode {row['decode_tok_per_s']:8.1f} tok/s "
            f"({row['share_of_read_bandwidth']:5.1%} of read bandwidth)"
        )
    sys.stdout.flush()


def parse_args():
    parser = argparse.ArgumentParser(description="Speed of the standard shapes.")
    parser.add_argument("--octavo", default="build/octavo", help="the built program")
    parser.add_argument("--out", default="out/bench.json", help="where the JSON goes")
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="folders of bench/shapes")
    parser.add_argument("--formats", nargs="+", default=list(FORMATS))
    parser.add_argument("--batch", default="1,8")
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=0, help="0: all that may be used")
    return parser.parse_args()


def main():
    args = parse_args()
    os.chdir(ROOT)
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    result = {**bench_tools.origin(), "reports": []}
    for shape in args.shapes:
        for fmt in args.formats:
            report = bench(str(pathlib.Path(args.octavo).resolve()), shape, fmt, args)
            print_report(report)
            result["reports"].append(report)  # Written as they come: all take some ten minutes.
            out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")


if __name__ == "__main__":
    main()
