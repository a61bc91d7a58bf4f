#!/usr/bin/env python3
"""The main job of Octavo, end to end, on the trained models in models/: what `make demo` runs.

plan -> convert -> audit -> serve and evaluate in BF16 and FP8 -> new weights pushed into a server
while 64 requests are in flight -> evaluate again -> compare digests -> report.

Every step runs build/octavo as a user would and prints its command. Exit code 0 only if every check
of the report held. Standard library only.
"""

import argparse
import json
import os
import pathlib
import shlex
import shutil
import signal
import sys
import time

import demo_report
from demo_tools import DemoError, Flight, Octavo, say

ROOT = pathlib.Path(__file__).resolve().parent.parent
TRAINED = "models/abacus-dense"
BASE = "models/abacus-dense-base"
DATA = "data/abacus-test.jsonl"
POLICY = ["--format", "fp8", "--keep-last", "2"]

NUM_REQUESTS = 64
NUM_TOKENS = 3000
PARALLEL = 64


def long_requests():
    """Bodies of /generate: the first problems, each answered with far more tokens than it needs."""
    lines = pathlib.Path(DATA).read_text(encoding="utf-8").splitlines()
    for i, line in enumerate(lines[:NUM_REQUESTS]):
        sampling = {
            "max_new_tokens": NUM_TOKENS,
            "ignore_eos": True,
            "temperature": 1.0,
            "sampling_seed": i,
        }
        question = json.loads(line)["question"]
        yield {"text": f"Question: {question}\nAnswer:", "sampling_params": sampling}


class Checks:
    """What had to hold, and whether it did."""

    def __init__(self):
        self.rows = []

    def add(self, what, expected, actual, held):
        self.rows.append({"what": what, "expected": expected, "actual": actual, "held": bool(held)})
        say(f"  [{'ok' if held else 'FAILED'}] {what}: {actual} (expected {expected})")

    def all_held(self):
        return bool(self.rows) and all(row["held"] for row in self.rows)


class Steps:
    """Numbered headings, and the seconds that each step took."""

    def __init__(self, total):
        self.total = total
        self.start = time.monotonic()
        self.began = self.start
        self.rows = []

    def next(self, title):
        self.finish()
        self.rows.append({"title": title, "seconds": 0.0})
        say(f"\n[{len(self.rows)}/{self.total}] {title}")

    def finish(self):
        now = time.monotonic()
        if self.rows:
            self.rows[-1]["seconds"] = now - self.began
        self.began = now

    def elapsed(self):
        return time.monotonic() - self.start


class Demo:
    """The steps. What they find is gathered in `results`, which the report is made from."""

    def __init__(self, octavo, out):
        self.octavo = octavo
        self.out = out
        self.converted = out / "abacus-dense-fp8"
        self.checks = Checks()
        self.steps = Steps(9)
        self.results = {"evals": [], "policy": shlex.join(POLICY)}

    def evaluate(self, name, url, num_bytes):
        report = self.octavo.json(
            "eval", "--url", url, "--data", DATA, "--num-shots", "0", "--parallel", str(PARALLEL)
        )
        row = {"name": name, "bytes": num_bytes, **report}
        self.results["evals"].append(row)
        say(
            f"  {name}: accuracy {row['accuracy']:.3f} +- {row['standard_error']:.3f}, "
            f"invalid {row['invalid']:.3f}, {row['output_tok_per_s']:.0f} token/s, "
            f"{row['latency_s']:.1f} s for {row['questions']} questions"
        )
        return row

    def run(self):
        self.plan()
        self.convert()
        self.audit()
        bf16 = self.serve_and_evaluate("BF16", "bf16", TRAINED, self.results["bytes_bf16"])
        fp8 = self.serve_and_evaluate(
            "FP8, converted offline", "fp8", str(self.converted), self.results["bytes_fp8"]
        )
        self.checks.add(
            "BF16 accuracy", ">= 0.965", f"{bf16['accuracy']:.4f}", bf16["accuracy"] >= 0.965
        )
        loss = abs(fp8["accuracy"] - bf16["accuracy"])
        self.checks.add("FP8 accuracy against BF16", "within 0.010", f"{loss:.4f}", loss <= 0.010)
        self.update_under_load(fp8)
        self.steps.finish()
        self.results["steps"] = self.steps.rows
        self.results["seconds"] = self.steps.elapsed()
        self.results["checks"] = self.checks.rows

    def plan(self):
        self.steps.next("Plan: which tensor gets which precision, and why")
        plan = self.octavo.json("plan", TRAINED, *POLICY)
        self.results["plan"] = plan
        say(demo_report.plan_text(plan["tensors"]))
        some = next(row for row in plan["tensors"] if row["rule"].startswith("--keep"))
        say(f"  why is {some['name']} in bf16? {some['reason']} [{some['rule']}]")

    def convert(self):
        self.steps.next("Convert: the BF16 checkpoint to FP8, its last 2 layers kept in BF16")
        report = self.octavo.json("convert", TRAINED, str(self.converted), *POLICY)
        self.results["bytes_bf16"] = report["bytes_in"]
        self.results["bytes_fp8"] = report["bytes_out"]
        say(
            f"  {report['bytes_in']:,} -> {report['bytes_out']:,} bytes of tensors "
            f"({report['bytes_out'] / report['bytes_in']:.0%}) in {report['seconds']:.2f} s"
        )
        self.checks.add(
            "converted checkpoint is smaller",
            f"< {report['bytes_in']:,} bytes",
            f"{report['bytes_out']:,}",
            report["bytes_out"] < report["bytes_in"],
        )

    def audit(self):
        self.steps.next("Audit: the conversion against its source, tensor by tensor")
        report = self.octavo.json("audit", str(self.converted), "--against", TRAINED)
        for finding in report["findings"]:
            say(f"  {finding['severity']} {finding['code']}: {finding['message']}")
        errors = sum(finding["severity"] == "error" for finding in report["findings"])
        self.checks.add("errors in the audit", "0", str(errors), errors == 0)
        self.results["digest_fp8"] = self.octavo.digest(str(self.converted))
        say(f"  digest of the conversion: {self.results['digest_fp8']}")

    def serve_and_evaluate(self, name, log_name, model, num_bytes):
        self.steps.next(f"Serve and evaluate: {name}")
        with self.octavo.serving(log_name, model) as url:
            return self.evaluate(name, url, num_bytes)

    def update_under_load(self, fp8):
        self.steps.next("Serve the early checkpoint, quantized to FP8 at load, and evaluate it")
        with self.octavo.serving("base", BASE, *POLICY) as url:
            before = self.evaluate("FP8, early weights", url, self.results["bytes_fp8"])
            self.checks.add(
                "accuracy of the early weights",
                "<= 0.55",
                f"{before['accuracy']:.4f}",
                before["accuracy"] <= 0.55,
            )
            self.checks.add(
                "digest before the push",
                "another than the conversion's",
                *self.differs(self.octavo.digest(url)),
            )
            self.push_under_load(url)
            self.steps.next("Evaluate again: the same server, now with the trained weights")
            after = self.evaluate("FP8, after the push", url, self.results["bytes_fp8"])
            self.checks.add(
                "accuracy after the push",
                ">= 0.960",
                f"{after['accuracy']:.4f}",
                after["accuracy"] >= 0.960,
            )
            self.checks.add(
                "digest of all replies after the push, against the offline conversion",
                fp8["replies_digest"],
                after["replies_digest"],
                after["replies_digest"] == fp8["replies_digest"],
            )
            self.steps.next("Compare: what is live, and what the offline conversion holds")
            live = self.octavo.digest(url)
            self.results["digest_live"] = live
            self.checks.add(
                "digest of the live weights",
                self.results["digest_fp8"],
                live,
                live == self.results["digest_fp8"],
            )

    def differs(self, digest):
        return digest, digest != self.results["digest_fp8"]

    def push_under_load(self, url):
        self.steps.next(f"Push: new weights into the server, {NUM_REQUESTS} requests in flight")
        flight = Flight(url, list(long_requests()))
        say(f"  {NUM_REQUESTS} requests of {NUM_TOKENS:,} tokens each are on their way")
        flight.wait_until_all_run(url)
        time.sleep(1.0)  # Some tokens of the old version for everybody.
        push = self.octavo.json(
            "push", TRAINED, "--to", url, "--weight-version", "1", "--bucket-mb", "4"
        )
        waiting = flight.num_waiting()
        say(
            f"  {push['bytes']:,} bytes live in {push['seconds']:.2f} s, generation paused for "
            f"{push['pause_ms']:.1f} ms; {push['in_flight']} requests were in flight, "
            f"{push['retracted']} retracted, {push['lost']} lost; {waiting} still run"
        )
        flight.wait()
        self.check_flight(flight, push)

    def check_flight(self, flight, push):
        for error in flight.errors[:3]:
            say(f"  {error}")
        spans = [versions_of(reply) for reply in flight.replies]
        complete = sum(is_complete(reply) for reply in flight.replies)
        both = sum([span["version"] for span in row] == ["0", "1"] for row in spans)
        tokens = sum(span["tokens"] for row in spans for span in row)
        self.results["push"] = {
            **push,
            "requests": NUM_REQUESTS,
            "complete": complete,
            "both_versions": both,
            "never_came": NUM_REQUESTS - complete,
            "seconds_in_flight": flight.seconds,
            "tok_per_s": tokens / flight.seconds,
            "spans": spans,
        }
        self.checks.add(
            "requests that came back complete",
            f"{NUM_REQUESTS} of {NUM_REQUESTS}",
            str(complete),
            complete == NUM_REQUESTS,
        )
        self.checks.add("requests with tokens of both versions", ">= 32", str(both), both >= 32)
        self.checks.add(
            "requests in flight at the swap",
            f"{NUM_REQUESTS}",
            str(push["in_flight"]),
            push["in_flight"] == NUM_REQUESTS,
        )
        self.checks.add("requests lost", "0", str(push["lost"]), push["lost"] == 0)
        self.checks.add("weight version", "1", push["version"], push["version"] == "1")


def versions_of(reply):
    return (reply or {}).get("meta_info", {}).get("weight_versions", [])


def is_complete(reply):
    """All tokens are there, each counted under one weight version, and nothing was cut."""
    if reply is None:
        return False
    meta = reply["meta_info"]
    return (
        len(reply["output_ids"]) == NUM_TOKENS
        and meta["completion_tokens"] == NUM_TOKENS
        and meta["finish_reason"]["type"] == "length"
        and sum(span["tokens"] for span in versions_of(reply)) == NUM_TOKENS
    )


def interrupted(signum, _frame):
    raise DemoError(f"stopped by {signal.Signals(signum).name}")


def parse_args():
    parser = argparse.ArgumentParser(description="Octavo's main job, end to end.")
    parser.add_argument("--octavo", default="build/octavo", help="the built program")
    parser.add_argument("--out", default="out/demo", help="where files and the report go")
    return parser.parse_args()


def main():
    args = parse_args()
    os.chdir(ROOT)
    program = pathlib.Path(args.octavo).resolve()
    if not os.access(program, os.X_OK):
        say(f"{program} is not there: run `make build` first")
        return 2
    out = pathlib.Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(out / "abacus-dense-fp8", ignore_errors=True)  # Of an earlier run.
    for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(signum, interrupted)

    octavo = Octavo(str(program), out)
    demo = Demo(octavo, out)
    try:
        demo.run()
    except DemoError as error:
        say(f"\nThe demo failed: {error}")
        return 1
    finally:
        octavo.kill_all()
    report = out / "report.html"
    report.write_text(demo_report.html(demo.results), encoding="utf-8")
    say("\n" + demo_report.table_text(demo.results))
    held = demo.checks.all_held()
    say(
        f"{'Every check held' if held else 'A CHECK DID NOT HOLD'}. "
        f"{demo.results['seconds']:.0f} s in all. Report: {report}"
    )
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
