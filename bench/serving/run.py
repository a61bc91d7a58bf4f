#!/usr/bin/env python3
"""`make bench-serving`: what clients of a server see, and what serving them costs.

Starts `octavo serve` and measures, on the same machine:

- latencies at 1, 64 and 1,209 requests in flight (`octavo bench --url`, constant lengths): time to
  the first byte of output and between tokens, as percentiles;
- the share of the HTTP layer in the server's CPU time, thread by thread from /proc, and how much of
  it the kernel takes to send and receive; at 64 streams also with random weights of a model's size;
- 1,209 GSM8K-style questions of 8 shots at once (`octavo eval --parallel 1209`): errors, accuracy
  and the peak of anonymous memory (RssAnon) against the bound that the server stated at its start.

Prints a table and writes one JSON file with the commit, the processor and the date. Exits 1 when a request
failed or the bound was passed. Standard library only.
"""

import argparse
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "bench"))
import bench_tools  # noqa: E402

PROBLEMS = "data/abacus-test.jsonl"
HTTP_THREADS = ("octavo-http",)
SHAPE, SHAPE_STREAMS = "bench/shapes/qwen3-0.6b", 64
SHAPE_FLAGS = ["--load-format", "dummy", "--quantization", "fp8", "--skip-tokenizer-init"]
PERCENTILES = ("mean", "median", "p90", "p95", "p99", "max")


class Server:
    """`octavo serve` on a port of its own, watched; use as a context manager."""

    def __init__(self, program, model, flags):
        self.command = [program, "serve", model, "--port", "0", *flags]
        self.process = subprocess.Popen(self.command, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.lines, self.url, self.budget = [], None, {}
        self.ready = threading.Event()
        threading.Thread(target=self._read, daemon=True).start()
        self.ready.wait(600)
        if self.url is None:
            sys.exit("the server did not start:\n" + "".join(self.lines))
        self.peak_bytes = 0
        threading.Thread(target=self._watch, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            if " memory " in line:
                self.budget = {k: int(v) for k, v in re.findall(r"(\w+_bytes)=(\d+)", line)}
            match = re.search(r"serving .* at (http://[\d.]+:\d+)", line)
            if match:
                self.url = match[1]
                self.ready.set()
        self.ready.set()

    def rss_anon(self):
        try:
            status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        except OSError:
            return 0
        match = re.search(r"RssAnon:\s+(\d+) kB", status)
        return int(match[1]) * 1024 if match else 0

    def _watch(self):
        while self.process.poll() is None:
            self.peak_bytes = max(self.peak_bytes, self.rss_anon())
            time.sleep(0.02)

    def cpu_seconds(self):
        """CPU time so far of each thread name; "NAME kernel" is the part that the kernel used of it,
        which is counted in ticks and good for shares of long times."""
        seconds = {}
        for task in pathlib.Path(f"/proc/{self.process.pid}/task").iterdir():
            text = (task / "stat").read_text(encoding="utf-8")
            name = text[text.index("(") + 1:text.rindex(")")]
            user, kernel = map(int, text[text.rindex(")") + 2:].split()[11:13])
            used = int((task / "schedstat").read_text(encoding="utf-8").split()[0]) / 1e9
            seconds[name] = seconds.get(name, 0.0) + used
            part = used * kernel / max(user + kernel, 1)
            seconds[f"{name} kernel"] = seconds.get(f"{name} kernel", 0.0) + part
        return seconds

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(120)


def run_json(command):
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"`{' '.join(command)}` ended with code {done.returncode}\n{done.stdout}")
    return json.loads(done.stdout)


def latencies(args, server, parallel):
    """One level of concurrency: the client's figures and the server's CPU time."""
    num_prompts = max(args.prompts_min, parallel * args.rounds)
    before = server.cpu_seconds()
    report = run_json([args.octavo, "bench", "--url", server.url, "--json", "--flush-cache",
                       "--num-prompts", str(num_prompts), "--max-concurrency", str(parallel),
                       "--random-input-len", str(args.input_len), "--random-output-len",
                       str(args.output_len), "--random-range-ratio", "1"])
    used = {k: v - before.get(k, 0.0) for k, v in server.cpu_seconds().items()}
    total = sum(v for k, v in used.items() if not k.endswith(" kernel"))
    http = sum(used.get(name, 0.0) for name in HTTP_THREADS)
    kernel = sum(used.get(f"{name} kernel", 0.0) for name in HTTP_THREADS)
    row = {"parallel": parallel, "num_prompts": num_prompts, "input_len": args.input_len,
           "output_len": args.output_len, "failed": report["failed"],
           "duration_s": report["duration"], "output_tok_per_s": report["output_throughput"],
           "cpu_s": {k: round(v, 2) for k, v in sorted(used.items()) if v > 0.0},
           "http_share_of_cpu": http / total, "http_kernel_share_of_cpu": kernel / total}
    for key in ("ttft", "itl", "e2e_latency"):
        row[f"{key}_ms"] = {x: report[f"{x}_{key}_ms"] for x in PERCENTILES}
    return row


def print_row(row):
    ttft, itl = row["ttft_ms"], row["itl_ms"]
    print(f"{row['parallel']:>5} in flight: {row['output_tok_per_s']:8.0f} tok/s; first byte "
          f"{ttft['median']:8.1f} / {ttft['p99']:8.1f} ms, between tokens {itl['median']:6.2f} / "
          f"{itl['p99']:7.2f} ms (median / p99); HTTP {row['http_share_of_cpu']:6.2%} of CPU, "
          f"of which {row['http_kernel_share_of_cpu']:.2%} in the kernel")
    sys.stdout.flush()


def load(args):
    """Everything at once: eight shots, one connection a question."""
    with Server(args.octavo, args.model, args.serve_flags) as server:
        bound = server.budget["fixed_bytes"] + args.parallel * server.budget["request_bytes"]
        print(f"stated before: {bound / 2**20:.0f} MiB for {args.parallel} requests at once")
        report = run_json([args.octavo, "eval", "--url", server.url, "--data", PROBLEMS, "--json",
                           "--num-shots", "8", "--num-questions", str(args.parallel),
                           "--parallel", str(args.parallel)])
        result = {"parallel": args.parallel, "errors": 0, "budget": server.budget,
                  "bound_bytes": bound, "peak_rss_anon_bytes": server.peak_bytes,
                  "within_bound": server.peak_bytes <= bound, **report}
    print(f"eval, {args.parallel} at once: 0 errors, accuracy {report['accuracy']:.3f}, "
          f"{report['output_tok_per_s']:.0f} tok/s, peak {server.peak_bytes / 2**20:.0f} MiB")
    return result


def parse_args():
    parser = argparse.ArgumentParser(description="Latencies, CPU share and memory of a server.")
    parser.add_argument("--octavo", default="build/octavo", help="the built program")
    parser.add_argument("--model", default="models/abacus-dense")
    parser.add_argument("--out", default="out/serving.json", help="where the JSON goes")
    parser.add_argument("--levels", type=int, nargs="+", default=[1, 64, 1209])
    parser.add_argument("--parallel", type=int, default=1209, help="questions of the eval, at once")
    parser.add_argument("--input-len", type=int, default=128)
    parser.add_argument("--output-len", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4, help="requests of a level, in levels")
    parser.add_argument("--prompts-min", type=int, default=32)
    parser.add_argument("--serve-flags", nargs=argparse.REMAINDER, default=[],
                        help="passed to `octavo serve`; last")
    args = parser.parse_args()
    args.octavo = str(pathlib.Path(args.octavo).resolve())
    return args


def main():
    args = parse_args()
    os.chdir(ROOT)
    rows = []
    with Server(args.octavo, args.model, args.serve_flags) as server:
        for parallel in args.levels:
            rows.append(latencies(args, server, parallel))
            print_row(rows[-1])
    print(f"{SHAPE}, {' '.join(SHAPE_FLAGS)}:")
    with Server(args.octavo, SHAPE, SHAPE_FLAGS) as server:
        shape_row = latencies(args, server, SHAPE_STREAMS)
        print_row(shape_row)
    result = {**bench_tools.origin(), "model": args.model, "serve_flags": args.serve_flags,
              "levels": rows, "shape": {"model": SHAPE, "serve_flags": SHAPE_FLAGS, **shape_row},
              "load": load(args)}
    out = pathlib.Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"written to {out}")
    if not result["load"]["within_bound"] or any(row["failed"] for row in rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
