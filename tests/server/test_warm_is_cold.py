"""Method: what is live after updates is what a cold load of an offline conversion holds, digest and
bits of a probe, in every format. A tiny random model whose widths no block divides takes its weights
in every order of arrival and in buckets of every size; the trained model goes from one set of weights
to another over every transport, under traffic, by bench/soak/updates.py, which says at its head what
every answer is held to. By hand, 1,000 updates of each format: `make soak-updates`."""

import functools
import itertools
import json
import pathlib
import random
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
import update_testing as updates
from octavo_testing import ROOT, Server, folder


def shuffled(variant, rng, size):
    return updates.cut(variant.tensors, rng, size)


def quarters(variant, order):
    """The tensors in four buckets, which come in this order."""
    size = (len(variant.tensors) + 3) // 4
    buckets = updates.cut(variant.tensors, random.Random(7), size)
    return [buckets[i] for i in order]


def apart(variant, rng):
    """As stored, with codes and scales of a weight in different buckets."""
    return updates.scales_apart(variant.stored(), rng, rng.choice([1, 3, 1000]))


def orders(rng, count):
    """(name, function from a variant to its buckets)."""
    for order in itertools.permutations(range(4)):
        yield f"buckets {order}", functools.partial(quarters, order=order)
    for size in range(1, count + 1):
        yield f"{size} tensors a bucket", functools.partial(shuffled, rng=rng, size=size)
    for _ in range(8):
        yield "codes and scales apart", functools.partial(apart, rng=rng)


class Orders(unittest.TestCase):
    """All orders of a few buckets, some orders of many, of a tiny model."""

    def check(self, name):
        policy, flags = updates.FORMATS[name]
        with folder() as root:
            variants = [updates.Variant(
                updates.write_tiny(root / f"bf16-{i}", updates.tiny_tensors(i)), policy,
                root / f"converted-{i}") for i in range(2)]
            cold = [updates.cold_probe(variant, flags) for variant in variants]
            self.assertNotEqual(variants[0].digest, variants[1].digest)
            self.assertNotEqual(cold[0], cold[1])
            # Static input scales come from a checkpoint that has them.
            first = ([variants[0].converted] if "static" in name
                     else [variants[0].path, *policy])
            with Server(*first, *flags, *updates.LIGHT) as server:
                self.go_through(server, variants, cold)

    def go_through(self, server, variants, cold):
        sender = updates.Sender(server)
        rng = random.Random(1)
        for number, (order, buckets) in enumerate(orders(rng, len(variants[0].tensors)), 1):
            with self.subTest(number=number, order=order):
                variant = number % 2
                sender.run(updates.native(buckets(variants[variant]), str(number)))
                live = server.call("GET", "/octavo/v1/digest")[1]
                self.assertEqual((live["weight_version"], live["digest"]),
                                 (str(number), variants[variant].digest))
                if number % 6 < 2:
                    self.assertEqual(updates.probe(server), (str(number), *cold[variant]))

    def test_every_format(self):
        for name in updates.FORMATS:
            with self.subTest(format=name):
                self.check(name)


class UnderTraffic(unittest.TestCase):
    def soak(self, formats, count):
        done = subprocess.run(
            [sys.executable, str(ROOT / "bench" / "soak" / "updates.py"), octavo_testing.program,
             "--updates", str(count), "--variants", "2", "--formats", *formats], cwd=ROOT,
            text=True, capture_output=True, check=False)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        for line in done.stdout.splitlines():
            figures = json.loads(line)
            self.assertEqual((figures["updates"], figures["problems"]), (count, []))
            self.assertGreater(figures["traffic"]["tokens compared"], 0)

    def test_over_every_transport(self):
        self.soak(["fp8"], 13)

    def test_in_every_format(self):
        self.soak([name for name in updates.FORMATS if name != "fp8"], 3)


if __name__ == "__main__":
    octavo_testing.main()
