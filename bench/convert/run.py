#!/usr/bin/env python3
"""`make bench-convert`: the converter against a copy of the same files.

A random BF16 checkpoint (scripts/make_checkpoint.py) is read into the page cache; then, for each
format, pairs of `cp -r` with `sync -f` and of `octavo convert` alternate, so that whatever else the
machine does falls on both. Wall times include the last fsync. Printed and written as JSON: the
medians, the median of the pairs' ratios, and the largest anonymous memory (RssAnon) of the
converter. Needs about twice the checkpoint of free disk. Standard library only.
"""

import argparse
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "bench"), str(ROOT / "scripts")]
import bench_tools  # noqa: E402
import make_checkpoint  # noqa: E402

# Flags of a format, and the ratio to the copy that it is held to (issue 3).
FORMATS = {"fp8": (["--format", "fp8"], 1.2),
           "mxfp8": (["--format", "mxfp8"], 1.3),
           "nvfp4": (["--format", "nvfp4", "--scope", "all"], 1.5)}


def anonymous_kib(pid):
    """RssAnon of a process in KiB; 0 when it is gone."""
    try:
        for line in pathlib.Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1])
    except OSError:
        pass
    return 0


def watch_memory(process, peak):
    while process.poll() is None:
        peak[0] = max(peak[0], anonymous_kib(process.pid))
        time.sleep(0.02)


def warm(folder):
    """Reads every file once."""
    for path in folder.iterdir():
        with open(path, "rb") as file:
            while file.read(1 << 24):
                pass


def flush():
    """What earlier steps left dirty is not to be paid by the next one."""
    os.sync()


def time_copy(source, out):
    begin = time.monotonic()
    subprocess.run(["cp", "-r", str(source), str(out)], check=True)
    subprocess.run(["sync", "-f", str(out)], check=True)
    return time.monotonic() - begin


def time_convert(program, source, out, flags, threads):
    """(seconds, peak RssAnon in KiB)"""
    command = [program, "convert", str(source), str(out), *flags, "--threads", str(threads)]
    begin = time.monotonic()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    peak = [0]
    watcher = threading.Thread(target=watch_memory, args=(process, peak))
    watcher.start()
    code = process.wait()
    seconds = time.monotonic() - begin
    watcher.join()
    if code != 0:
        sys.exit(f"`{' '.join(command)}` ended with code {code}")
    return seconds, peak[0]


def measure(name, source, folder, args):
    flags, bar = FORMATS[name]
    rows = []
    for _ in range(args.pairs):
        flush()
        copy = time_copy(source, folder / "copy")
        shutil.rmtree(folder / "copy")
        flush()
        seconds, peak = time_convert(args.octavo, source, folder / "out", flags, args.threads)
        shutil.rmtree(folder / "out")
        rows.append({"copy_s": copy, "convert_s": seconds, "ratio": seconds / copy,
                     "rss_anon_kib": peak})
    result = {"format": name, "bar": bar, "pairs": rows,
              "copy_s_median": statistics.median(row["copy_s"] for row in rows),
              "convert_s_median": statistics.median(row["convert_s"] for row in rows),
              "ratio_median": statistics.median(row["ratio"] for row in rows),
              "rss_anon_kib_max": max(row["rss_anon_kib"] for row in rows)}
    print(f"{name:<6} copy {result['copy_s_median']:6.2f} s, "
          f"convert {result['convert_s_median']:6.2f} s, ratio {result['ratio_median']:.2f} "
          f"(bar {bar}), RssAnon {result['rss_anon_kib_max'] / 1024:.0f} MiB", flush=True)
    return result


def quantizer_rates(args):
    """What bench/formats measures: rates in GB of BF16 a second and shares of read bandwidth."""
    program = pathlib.Path(args.octavo).parent / "bench" / "formats" / "formats_bench"
    if not program.exists():
        print(f"no {program}: the quantizers' own rates are left out", flush=True)
        return []
    done = subprocess.run([program, str(args.threads), "9", "512"], check=True, text=True,
                          stdout=subprocess.PIPE)
    rates = [json.loads(line) for line in done.stdout.splitlines()]
    for rate in rates:
        print(f"{rate['format']:<12} encode {rate['encode_gb_per_s']:5.1f} GB/s, "
              f"{rate['encode_share']:.0%} of the read bandwidth "
              f"({rate['encode_share_min']:.0%} to {rate['encode_share_max']:.0%} in 9 rounds); "
              f"measure {rate['measure_gb_per_s']:5.1f} GB/s", flush=True)
    return rates


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--octavo", default=str(ROOT / "build" / "octavo"))
    parser.add_argument("--gb", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--formats", nargs="+", default=list(FORMATS), choices=list(FORMATS))
    parser.add_argument("--folder", default=None, help="where to work; default: a temporary folder")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "out" / "bench-convert.json")
    return parser.parse_args()


def main():
    args = parse_args()
    with tempfile.TemporaryDirectory(prefix="octavo-bench-", dir=args.folder) as path:
        folder = pathlib.Path(path)
        source = folder / "source"
        num_bytes = make_checkpoint.make_checkpoint(source, args.gb, 5.0, seed=1)
        print(f"source: {num_bytes / 1e9:.2f} GB of BF16; {args.threads} threads; "
              f"{args.pairs} alternating pairs; times to the last fsync", flush=True)
        warm(source)
        results = [measure(name, source, folder, args) for name in args.formats]
    rates = quantizer_rates(args)
    report = {**bench_tools.origin(), "quantizers": rates, "bytes": num_bytes,
              "threads": args.threads, "results": results}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"written: {args.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
