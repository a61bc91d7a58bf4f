#!/usr/bin/env python3
"""`make bench-update`: what an update of live weights costs, beside the bars it is held to.

Writes a random BF16 checkpoint of a shape of bench/shapes, serves that shape in FP8 with other
random weights, and measures on one machine, in one run:

- `octavo push` to the idle server against its bytes copied once and quantized once
  (bench/update/update_baseline.cc), in pairs, one right after the other;
- pushes while 64 sequences decode: the pause of the swap against one decode step and a copy of the
  packed bytes, and decode throughput during the transfer and after it against a round without a
  push, over the same tokens of the sequences (later ones cost more);
- the peaks of anonymous memory (RssAnon) of server and sender against what the update's budget says;
- whether the sender's tensors hash as before.

Prints a line a figure with its bar, and writes all with the commit, the processor and the date. A
missed bar changes no exit code: benchmarks do not judge. Standard library only.
"""

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
for part in ("bench", "tests", "scripts"):
    sys.path.insert(0, str(ROOT / part))

import bench_tools
import make_checkpoint
import octavo_testing

STREAMS = 64
PROMPT_TOKENS = 8
POLL_SECONDS = 0.05
TOTAL_TIMES, PAUSE_TIMES, DURING_SHARE, AFTER_SHARE = 2.0, 1.0, 0.5, 0.95


def write_source(shape, out):
    """A random checkpoint of a folder of bench/shapes; gives its bytes."""
    out.mkdir()
    folder = ROOT / "bench" / "shapes" / shape
    shutil.copy(folder / "config.json", out)
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    extents = {"hidden": config["hidden_size"], "mlp": config["intermediate_size"],
               "heads": config["num_attention_heads"], "kv_heads": config["num_key_value_heads"],
               "head_dim": config["head_dim"], "vocab": config["vocab_size"]}
    tensors = [("model.embed_tokens.weight", [extents["vocab"], extents["hidden"]])]
    for layer in range(config["num_hidden_layers"]):
        tensors += make_checkpoint.layer_tensors(extents, layer)
    tensors.append(("model.norm.weight", [extents["hidden"]]))
    make_checkpoint.write_shard(out / "model.safetensors", tensors,
                                make_checkpoint.value_table(1), random.Random(2))
    return sum(make_checkpoint.num_bytes(shape) for _, shape in tensors)


def hash_of(path):
    digest = hashlib.blake2b()
    with open(path, "rb") as file:
        while piece := file.read(1 << 24):
            digest.update(piece)
    return digest.hexdigest()


def rss_anon(pid):
    try:
        text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in text.splitlines()
                 if line.startswith("RssAnon:")), 0)


class Peak:
    """The largest RssAnon of a process while the block runs."""

    def __init__(self, pid):
        self.pid, self.bytes, self.over = pid, 0, threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)

    def watch(self):
        while not self.over.wait(0.01):
            self.bytes = max(self.bytes, rss_anon(self.pid))

    def __enter__(self):
        self.bytes = rss_anon(self.pid)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def push(args, source, server):
    """(report, seconds of the process, its peak of RssAnon)."""
    start = time.monotonic()
    process = subprocess.Popen([args.program, "push", source, "--to", server.url, "--json",
                                "--bucket-mb", str(args.bucket_mb)], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True)
    with Peak(process.pid) as peak:
        out, errors = process.communicate()
    if process.returncode != 0:
        sys.exit(f"push failed:\n{errors}")
    return json.loads(out), time.monotonic() - start, peak.bytes


def baseline(args, source):
    """Seconds of one copy and one quantization."""
    command = [str(args.build / "bench" / "update" / "update_baseline"), source, args.format,
               str(args.threads), "1"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def last_update(server):
    return server.call("GET", "/octavo/v1/update")[1]["last"]


def idle_rounds(args, source, server):
    """Of each round: the two of the baseline, and a push to a server that does nothing else."""
    rounds = []
    for _ in range(args.rounds):
        base = baseline(args, source)
        report, seconds, sender = push(args, source, server)
        rounds.append({**base, "push_s": report["seconds"], "process_s": seconds,
                       "sender_rss_anon": sender, "server": last_update(server),
                       "ratio": report["seconds"] / (base["copy_s"] + base["quantize_s"])})
    return rounds


class Streams:
    """64 sequences that decode until they are ended, and the tokens that they have made."""

    def __init__(self, server, tokens):
        self.server, self.tokens = server, tokens
        self.samples = []  # (seconds, tokens so far, whether an update is open)
        self.over = threading.Event()
        self.statuses = [None] * STREAMS
        self.clients = [threading.Thread(target=self.client, args=(i,)) for i in range(STREAMS)]
        self.watcher = threading.Thread(target=self.watch)

    def client(self, place):
        rng = random.Random(place)
        status, reply = self.server.call("POST", "/generate", {
            "input_ids": [rng.randrange(10, 1000) for _ in range(PROMPT_TOKENS)],
            "sampling_params": {"max_new_tokens": self.tokens, "ignore_eos": True,
                                "sampling_seed": place}}, timeout=3600)
        self.statuses[place] = status if status != 200 else len(reply["output_ids"])

    def watch(self):
        while not self.over.wait(POLL_SECONDS):
            state = self.server.call("GET", "/server_info")[1]["internal_states"][0]
            is_open = self.server.call("GET", "/octavo/v1/update")[1]["open"]
            self.samples.append((time.monotonic(), state["generation_tokens_total"], is_open,
                                 state["num_running_reqs"] if "num_running_reqs" in state else 0))

    def rate(self, samples):
        """Tokens a second from the first of some samples to the last."""
        if len(samples) < 2:
            return 0.0
        return (samples[-1][1] - samples[0][1]) / (samples[-1][0] - samples[0][0])

    def between(self, begin, end):
        """The samples between two times."""
        return [s for s in self.samples if begin <= s[0] <= end]

    def rate_at(self, first, last):
        """Tokens a second while the sequences had made from `first` to `last` tokens."""
        origin = self.samples[0][1]
        return self.rate([s for s in self.samples if first <= s[1] - origin <= last])

    def made(self, samples):
        """How many tokens the sequences had made at the first of some samples and at the last."""
        origin = self.samples[0][1]
        return (samples[0][1] - origin, samples[-1][1] - origin) if samples else (0, 0)

    def await_tokens(self, more):
        """Until so many tokens have come, from all sequences."""
        start = self.samples[-1][1] if self.samples else 0
        while not self.samples or self.samples[-1][1] < start + more:
            time.sleep(POLL_SECONDS)

    def __enter__(self):
        self.watcher.start()
        for client in self.clients:
            client.start()
        return self

    def __exit__(self, *_):
        self.server.call("POST", "/abort_request", {"abort_all": True})
        for client in self.clients:
            client.join(600)
        self.over.set()
        self.watcher.join()


def touch_pool(args, server):
    """Whole sequences as prompts: the KV pool's pages are in memory before any peak is taken."""
    prompts = [[(7 * i + 11 * j) % 1000 + 10 for j in range(PROMPT_TOKENS + args.tokens)]
               for i in range(STREAMS)]
    status, _ = server.call("POST", "/generate", {
        "input_ids": prompts, "sampling_params": {"max_new_tokens": 1}}, timeout=3600)
    assert status == 200, status
    server.call("POST", "/flush_cache")


def control_round(args, server):
    """What a round is without a push."""
    with Streams(server, args.tokens) as streams:
        streams.await_tokens(STREAMS * (args.tokens - 2))
    return streams


def loaded_round(args, source, server, control):
    """A push while all sequences decode."""
    with Streams(server, args.tokens) as streams:
        streams.await_tokens(2 * STREAMS)
        begin = time.monotonic()
        time.sleep(args.window)
        pushed = time.monotonic()
        report, _, sender = push(args, source, server)
        done = time.monotonic()
        # What was retracted is computed anew, a few sequences a step, and the first decode meanwhile.
        streams.await_tokens(10 * STREAMS)
        after = time.monotonic()
        time.sleep(args.window)
        end = time.monotonic()
    before = streams.between(begin, pushed)
    opened = [s for s in streams.between(pushed, done) if s[2]]
    later = streams.between(after, end)
    before_rate = streams.rate(before)
    lost = sum(status is None or status > args.tokens for status in streams.statuses)
    return {"undisturbed_tok_s": before_rate, "step_ms": 1e3 * STREAMS / max(before_rate, 1e-9),
            "during_tok_s": streams.rate(opened),
            "during_control_tok_s": control.rate_at(*streams.made(opened)),
            "after_tok_s": streams.rate(later),
            "after_control_tok_s": control.rate_at(*streams.made(later)),
            "push_s": report["seconds"],
            "pause_ms": report["pause_ms"], "retracted": report["retracted"],
            "lost": report["lost"] + lost, "sender_rss_anon": sender,
            "server": last_update(server)}


def figure(name, value, text, at_least=None, at_most=None):
    bar = at_least if at_least is not None else at_most
    met = value >= bar if at_least is not None else value <= bar
    print(f"{name:<34} {text:<64} {'>=' if at_least is not None else '<='} {bar:g}: "
          f"{'met' if met else 'MISSED'}", flush=True)
    return {"name": name, "value": value, "text": text, "bar": bar,
            "bar_is": "least" if at_least is not None else "most", "met": met}


def median(rounds, key):
    return statistics.median(one[key] for one in rounds)


def time_figures(idle, loaded, weight_bytes):
    base = median(idle, "copy_s") + median(idle, "quantize_s")
    yield figure("push, idle server", median(idle, "ratio"),
                 f"{median(idle, 'push_s'):.3f} s, copy {median(idle, 'copy_s'):.3f} + quantize "
                 f"{median(idle, 'quantize_s'):.3f} = {base:.3f} s", at_most=TOTAL_TIMES)
    if not loaded:
        return
    # The packed bytes at the rate at which the BF16 bytes were copied.
    copy_ms = 1e3 * median(idle, "copy_s") * weight_bytes / idle[0]["bytes"]
    allowed = median(loaded, "step_ms") + copy_ms
    yield figure("pause / (step + copy)", median(loaded, "pause_ms") / allowed,
                 f"{median(loaded, 'pause_ms'):.1f} ms, step {median(loaded, 'step_ms'):.1f} + "
                 f"copy {copy_ms:.1f} ms", at_most=PAUSE_TIMES)
    for when, bar in (("during", DURING_SHARE), ("after", AFTER_SHARE)):
        share = statistics.median(one[f"{when}_tok_s"] / max(one[f"{when}_control_tok_s"], 1e-9)
                                  for one in loaded)
        yield figure(f"decode {when} the push", share,
                     f"{median(loaded, f'{when}_tok_s'):.1f} of "
                     f"{median(loaded, f'{when}_control_tok_s'):.1f} tok/s", at_least=bar)
    yield figure("requests lost", sum(one["lost"] for one in loaded),
                 f"of {STREAMS * len(loaded)}", at_most=0)


def memory_figures(rounds, extra, budget, args):
    mib = 1 << 20
    yield figure("server's extra memory / budget", extra / budget["total_bytes"],
                 f"{extra / mib:.0f} MiB of {budget['total_bytes'] / mib:.0f} MiB", at_most=1.0)
    sender = max(one["sender_rss_anon"] for one in rounds)
    allowed = args.sender_buckets * args.bucket_mb * mib + (16 << 20)
    yield figure("sender's memory / budget", sender / allowed,
                 f"{sender / mib:.0f} MiB of {allowed / mib:.0f} MiB", at_most=1.0)


def budget_of(server):
    """What begin says of an update, which is given up again."""
    reply = server.call("POST", "/octavo/v1/update/begin", {})[1]
    server.call("POST", "/octavo/v1/update/abort", {"update_id": reply["update_id"]})
    return reply["memory"]


def measure(args, source, result):
    shape = ROOT / "bench" / "shapes" / args.shape
    flags = ["--load-format", "dummy", "--skip-tokenizer-init", "--threads", args.threads,
             "--max-total-tokens", STREAMS * (PROMPT_TOKENS + args.tokens + 16),
             "--max-running-requests", STREAMS, "--log-level", "warning"]
    if args.format != "bf16":
        flags += ["--format", args.format]
    with octavo_testing.Server(shape, *flags) as server:
        budget = budget_of(server)
        weight_bytes = server.call("GET", "/server_info")[1]["weight_bytes"]
        push(args, source, server)  # The file is in memory from here on.
        touch_pool(args, server)
        rest = rss_anon(server.process.pid)
        with Peak(server.process.pid) as peak:
            idle = idle_rounds(args, source, server)
            control = control_round(args, server)
            loaded = [loaded_round(args, source, server, control)
                      for _ in range(args.loaded_rounds)]
    result.update({"budget": budget, "weight_bytes": weight_bytes, "idle": idle,
                   "loaded": loaded, "server_rss_anon": {"rest": rest, "peak": peak.bytes}})
    return [*time_figures(idle, loaded, weight_bytes),
            *memory_figures(idle + loaded, peak.bytes - rest, budget, args)]


def parse_args():
    parser = argparse.ArgumentParser(description="What an update of live weights costs.")
    parser.add_argument("--build", type=pathlib.Path, default=ROOT / "build")
    parser.add_argument("--output", type=pathlib.Path, default=ROOT / "out" / "update.json")
    parser.add_argument("--shape", default="qwen3-0.6b", help="folder of bench/shapes")
    parser.add_argument("--format", default="fp8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="of the idle server")
    parser.add_argument("--loaded-rounds", type=int, default=3)
    parser.add_argument("--window", type=float, default=10.0, help="seconds of undisturbed decode")
    parser.add_argument("--tokens", type=int, default=240, help="of each sequence, at most")
    parser.add_argument("--bucket-mb", type=int, default=64)
    parser.add_argument("--sender-buckets", type=int, default=2, help="that a sender may hold")
    args = parser.parse_args()
    args.build = args.build.resolve()
    args.program = octavo_testing.program = str(args.build / "octavo")
    return args


def main():
    args = parse_args()
    octavo_testing.START_SECONDS = 600
    result = {**bench_tools.origin(), "load_average": os.getloadavg()[0],
              **{key: getattr(args, key) for key in ("shape", "format", "threads", "bucket_mb")}}
    with tempfile.TemporaryDirectory(prefix="octavo-update-") as work:
        source = pathlib.Path(work) / "source"
        result["bytes"] = write_source(args.shape, source)
        before = hash_of(source / "model.safetensors")
        result["figures"] = measure(args, source, result)
        same = hash_of(source / "model.safetensors") == before
        result["figures"].append(figure("sender's tensors that changed", 0 if same else 1,
                                        "by their hash before and after", at_most=0))
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    missed = sum(not one["met"] for one in result["figures"])
    print(f"{missed} of {len(result['figures'])} bars missed; written to {args.output}")


if __name__ == "__main__":
    main()
