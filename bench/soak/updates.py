#!/usr/bin/env python3
"""`make soak-updates`: warm is cold. Updates one after the other, over every transport, under traffic.

For each format several sets of weights are made from models/abacus-dense, converted offline by
another process, and served cold. One more server then goes from one set to the next at random: every
transport, buckets of one tensor up to all, in random order, weights and their scales apart. After
each update

  its version is live, and the digest of the live memory is that of the offline conversion,
  a probe request gives the bits of the cold server.

Meanwhile clients send requests, and of every answer it is held that

  it came, with all the tokens that were asked for, or with finish type abort where an update that
  aborts was under way,
  versions never decrease from token to token, and lie between what was live when it was sent and
  what was on its way when it came,
  tokens and logprobs of its first version are those of the cold server of that version, bit for bit,
  and of a sample those of the later versions, too, which cold servers score.

Prints one JSON object; exits 1 when one of these does not hold.

Usage: bench/soak/updates.py [PROGRAM] [--updates N] [--formats F ...] [--variants K] [--seed S]
"""

import argparse
import collections
import contextlib
import json
import os
import pathlib
import random
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))
sys.path.insert(0, str(ROOT / "tests" / "server"))

import octavo_testing
import update_testing as updates
from octavo_testing import DENSE, Server, folder

NUM_CLIENTS = 3
KINDS = 12          # Requests that are sent again and again; cold servers have answered each.
SCORED_MAX = 40     # Answers over several versions that cold servers score, a format.
ABORTING = {"slime_group", "slime_tensor", "slime_disk", "areal_group", "areal_disk", "deltas"}


def request(kind, vocabulary=600):
    """The body of a request of this kind: what it asks for is in its number alone."""
    rng = random.Random(kind)
    prefix = list(range(5, 69))  # Shared by some, so that the prefix cache has work.
    ids = prefix[:rng.choice([0, 16, 64])] + [rng.randrange(3, 600) for _ in range(3 + kind)]
    ids = [token % vocabulary for token in ids]
    sampling = {"max_new_tokens": rng.choice([4, 24, 60, 160]), "ignore_eos": True}
    if kind % 3 == 0:
        sampling["temperature"] = 0
    else:
        sampling["sampling_seed"] = kind
    return {"input_ids": ids, "return_logprob": True, "sampling_params": sampling}


def tokens_of(reply):
    """[(logprob, id), ...] of an answer."""
    return [(entry[0], entry[1]) for entry in reply["meta_info"]["output_token_logprobs"]]


class Cold:
    """A server that was started with one set of weights."""

    def __init__(self, stack, variant, flags, vocabulary=600):
        self.server = stack.enter_context(Server(variant.converted, *flags, *updates.LIGHT))
        self.probe = updates.probe(self.server)[1:]
        self.vocabulary = vocabulary
        self.answers = [tokens_of(self.server.generate(**self.request(kind)))
                        for kind in range(KINDS)]

    def request(self, kind):
        return request(kind, self.vocabulary)

    def logprobs(self, ids, start):
        """Of the ids from `start` on, as the server scores them in one prefill."""
        reply = self.server.generate(input_ids=ids, return_logprob=True, logprob_start_len=start,
                                     sampling_params={"max_new_tokens": 0})
        return [entry[0] for entry in reply["meta_info"]["input_token_logprobs"]]


class Traffic:
    """Clients that hold every answer to what the head of this file says."""

    def __init__(self, server, colds, seed, num_clients=NUM_CLIENTS):
        self.server = server
        self.colds = colds
        self.variant_of = {0: 0}
        self.mixed = set()           # Versions whose requests may have kept KV of the one before.
        self.live, self.coming = 0, 0
        self.num_aborting = 0        # Updates that abort, begun so far.
        self.aborting = False
        self.quiet = False  # No new requests.
        self.problems, self.spanning = [], []
        self.counts = collections.Counter()
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        self.threads = [threading.Thread(target=self.client, args=(seed * 100 + i,))
                        for i in range(num_clients)]

    def __enter__(self):
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self.is_over.set()
        for thread in self.threads:
            thread.join(300)
            if thread.is_alive():
                self.problems.append("a request was never answered")

    def client(self, seed):
        rng = random.Random(seed)
        while not self.is_over.is_set():
            if self.quiet:
                time.sleep(0.01)
                continue
            kind = rng.randrange(KINDS)
            low, aborts, was_aborting = self.live, self.num_aborting, self.aborting
            try:
                status, reply = self.server.call("POST", "/generate",
                                                 self.colds[0].request(kind), timeout=300)
            except OSError as error:
                status, reply = 0, repr(error)
            may_abort = was_aborting or aborts != self.num_aborting
            with self.lock:
                self.counts["requests"] += 1
                try:
                    self.check(kind, status, reply, (low, self.coming), may_abort)
                except AssertionError as error:
                    self.problems.append(f"request {kind}: {error}")
            time.sleep(rng.uniform(0.0, 0.05))

    def check(self, kind, status, reply, window, may_abort):
        if status != 200:
            self.counts["lost"] += 1
            raise AssertionError(f"lost: {status} {str(reply)[:300]}")
        meta, got = reply["meta_info"], tokens_of(reply)
        spans = [(int(s["version"]), s["tokens"]) for s in meta["weight_versions"]]
        aborted = meta["finish_reason"]["type"] == "abort"
        self.counts["aborted as asked"] += aborted
        assert may_abort or not aborted, f"aborted: {meta['finish_reason']}"
        wanted = self.colds[0].request(kind)["sampling_params"]["max_new_tokens"]
        assert aborted or len(got) == wanted, f"{len(got)} of {wanted} tokens"
        assert [token for _, token in got] == reply["output_ids"], "ids and logprobs part"
        assert sum(tokens for _, tokens in spans) == len(got), f"{spans} of {len(got)} tokens"
        versions = [version for version, _ in spans]
        assert versions == sorted(versions), f"versions decrease: {versions}"
        assert all(window[0] <= v <= window[1] for v in versions), f"{versions}, live {window}"
        self.counts["tokens"] += len(got)
        if spans:
            self.compare(kind, got, spans)

    def compare(self, kind, got, spans):
        version, length = spans[0]
        cold = self.colds[self.variant_of[version]].answers[kind]
        self.counts["tokens compared"] += length
        self.counts["tokens that differ"] += sum(a != b for a, b in zip(got[:length], cold))
        assert got[:length] == cold[:length], f"other bits than a cold server under {version}"
        self.counts["over several versions"] += len(spans) > 1
        if len(spans) > 1 and not self.mixed.intersection(v for v, _ in spans[1:]):
            self.spanning.append((kind, got, spans))

    def score(self, rng):
        """Later versions of a sample of the answers, by prefill on cold servers."""
        rng.shuffle(self.spanning)
        for kind, got, spans in self.spanning[:SCORED_MAX]:
            prompt = self.colds[0].request(kind)["input_ids"]
            ids = prompt + [token for _, token in got]
            at = spans[0][1]
            for version, length in spans[1:]:
                cold = self.colds[self.variant_of[version]]
                end = len(prompt) + at + length
                # The first position that is asked for has no logprob.
                scored = cold.logprobs(ids[:end], end - length - 1)[1:]
                self.counts["tokens scored"] += length
                if scored != [logprob for logprob, _ in got[at:at + length]]:
                    self.counts["tokens that differ"] += 1
                    self.problems.append(f"request {kind}: version {version} of {spans} has other "
                                         f"logprobs than a cold server scores")
                at += length


class Soak:
    """Updates of one server of one format."""

    def __init__(self, server, traffic, variants, root, seed):
        self.server, self.traffic, self.variants, self.root = server, traffic, variants, root
        self.rng = random.Random(seed)
        self.sender = updates.Sender(server)
        self.sender.join()
        self.deltas = updates.Deltas(root, DENSE)
        self.transports = [*updates.BUCKETS, *updates.FOLDERS, "deltas"]
        self.counts = collections.Counter()

    def tensors(self, variant, transport):
        """In BF16, or as stored with scales apart; the latter where the dialect has the dtypes."""
        if transport not in ("native", "in_place", "slime_group", "miles_group"):
            return updates.cut(variant.tensors, self.rng)
        if variant.converted == variant.path or self.rng.random() < 0.5:
            return updates.cut(variant.tensors, self.rng)
        self.counts["codes and scales"] += 1
        return updates.scales_apart(variant.stored(), self.rng)

    def calls(self, transport, variant, version):
        if transport == "deltas":
            return self.deltas.calls(variant.tensors, version)
        if transport in updates.FOLDERS:
            path = self.rng.choice([variant.path, variant.converted])
            return updates.FOLDERS[transport](path, version)
        buckets = self.tensors(variant, transport)
        self.counts["buckets"] += len(buckets)
        if transport != "native":
            return updates.BUCKETS[transport](buckets, version)
        in_flight = self.rng.choice(["retract", "retract", "drain", "in_place"])
        if in_flight == "in_place":
            self.traffic.mixed.add(int(version))
        return updates.native(buckets, version, in_flight=in_flight)

    def update(self, number, transport):
        """To another set of weights, and what must hold then."""
        now = self.traffic.variant_of[number - 1]
        target = self.rng.choice([i for i in range(len(self.variants)) if i != now])
        variant = self.variants[target]
        calls = self.calls(transport, variant, str(number))
        self.traffic.variant_of[number] = target
        self.traffic.aborting = transport in ABORTING
        self.traffic.num_aborting += self.traffic.aborting
        self.traffic.coming = number
        self.sender.run(calls)
        self.traffic.live, self.traffic.aborting = number, False
        self.counts[transport] += 1
        live = self.server.call("GET", "/octavo/v1/digest")[1]
        if (live["digest"], live["weight_version"]) != (variant.digest, str(number)):
            raise AssertionError(f"{transport}: {live['weight_version']} has {live['digest']}, "
                                 f"expected {number} with {variant.digest}")
        version, ids, logprobs = updates.probe(self.server)
        if (version, ids, logprobs) != (str(number), *self.traffic.colds[target].probe):
            raise AssertionError(f"{transport}: version {version} gives other bits than a cold "
                                 "server of the offline conversion")

    def run(self, count):
        """Every transport in turn, in an order of its own each time."""
        order = []
        for number in range(1, count + 1):
            if not order:
                order = self.rng.sample(self.transports, len(self.transports))
            self.update(number, order.pop())


def variants_of(root, policy, count):
    """models/abacus-dense, and copies with other low bits."""
    source = octavo_testing.ROOT / DENSE
    tensors = updates.read_checkpoint(source)
    paths = [source] + [updates.write_variant(root / f"bf16-{i}", source,
                                              updates.perturbed(tensors, i))
                        for i in range(1, count)]
    return [updates.Variant(path, policy, root / f"converted-{i}") for i, path in enumerate(paths)]


def soak(name, args):
    """The figures of one format."""
    policy, flags = updates.FORMATS[name]
    start = time.monotonic()
    with folder() as root, contextlib.ExitStack() as stack:
        variants = variants_of(root, policy, args.variants)
        colds = [Cold(stack, variant, flags) for variant in variants]
        # Static input scales come from a checkpoint that has them.
        served = variants[0].converted if "static" in name else DENSE
        serve_policy = [] if "static" in name else policy
        server = stack.enter_context(Server(served, *serve_policy, *flags, *updates.LIGHT))
        traffic = Traffic(server, colds, args.seed)
        run = Soak(server, traffic, variants, root, args.seed)
        with traffic:
            try:
                run.run(args.updates)
            except (AssertionError, updates.UpdateFailed, OSError) as error:
                traffic.problems.append(f"after {dict(run.counts)}: {error!r}")
                server.call("POST", "/continue_generation", {})
        run.sender.close()
        traffic.score(run.rng)
        code = server.stop()
        if code != 0:
            traffic.problems.append(f"exit code {code}: " + "".join(server.lines)[-2000:])
    return {"format": name, "updates": traffic.live, "seconds": round(time.monotonic() - start, 1),
            "transports": dict(sorted(run.counts.items())),
            "traffic": {"lost": 0, "tokens that differ": 0, **traffic.counts},
            "problems": traffic.problems[:10]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default=str(ROOT / "build" / "octavo"))
    parser.add_argument("--updates", type=int, default=1000, help="of each format")
    parser.add_argument("--formats", nargs="+", choices=list(updates.FORMATS),
                        default=list(updates.FORMATS))
    parser.add_argument("--variants", type=int, default=4, help="sets of weights")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path, help="where the figures go, too")
    args = parser.parse_args()
    octavo_testing.program = os.path.abspath(args.program)
    figures = []
    for name in args.formats:
        figures.append(soak(name, args))
        print(json.dumps(figures[-1]), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps({"seed": args.seed, "formats": figures}, indent=1)
                                   + "\n", encoding="utf-8")
    return 1 if any(one["problems"] for one in figures) else 0


if __name__ == "__main__":
    sys.exit(main())
