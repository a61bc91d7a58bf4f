#!/usr/bin/env python3
"""`make bench-faults`: one fault at every message of every transport of a weight update.

A small random model is served and updated by each transport in turn, over and over; each time one
message goes wrong, and the trainer either dies there or, worse, goes on as if nothing had happened.
After each fault the engine must answer as one whole version: the old one, bit for bit and digest for
digest, wherever the fault took something away or falsified it; the new one where it only came twice
or late. Then the same transport must bring a good update. Clients send requests all the time, and
every answer is checked as bench/soak/updates.py says.

Of a call (HTTP): drop, vanish (it and all later ones), kill (in the middle of the body), cut (the
reply is lost, and the sender with it), retry (the reply is lost, the call is made again), duplicate,
reorder (with the next), stall (in the middle, then goes on), stall-kill, garble (the body is no
longer what it was). Of a bucket also: unknown name, wrong dtype, wrong shape, NaN, short payload, and
where it has checksums a flipped bit. Of what `octavo push` and the server say to each other, request
by request and reply by reply, through a proxy: drop, stall, corrupt, duplicate; push may then try
again. Of the broadcasts of a group: silent, orphan (nobody asked), half, less, more, noise, abort; of
the messages by which a rank joins, of the store and of rank 0: kill, half, stall, corrupt, duplicate.
Of a pickle: every byte.

Prints a JSON object with the figures; exits 1 when something did not hold.

Usage: bench/update/faults.py [PROGRAM] [--formats F ...] [--every N] [--seed S] [--output FILE]
"""

import argparse
import base64
import collections
import contextlib
import dataclasses
import json
import os
import pathlib
import random
import socket
import struct
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
for part in ("bench", "bench/soak", "tests", "tests/server"):
    sys.path.insert(0, str(ROOT / part))

import bench_tools
import group_testing
import octavo_testing
import update_testing as updates
from faulty_proxy import Fault, FaultyProxy
from octavo_testing import Server, folder
from updates import Cold, Traffic

CALL_KINDS = ("drop", "vanish", "kill", "cut", "retry", "duplicate", "reorder", "stall",
              "stall-kill", "garble")
BUCKET_KINDS = ("unknown name", "wrong dtype", "wrong shape", "NaN", "short payload")
SUMMED_KINDS = ("flipped bit",)  # Of a bucket with checksums.
BROADCAST_KINDS = ("silent", "orphan", "half", "less", "more", "noise", "abort")
WIRE_KINDS = ("kill", "half", "stall", "corrupt", "duplicate")
PROXY_FAULTS = (("drop", "request", 0), ("drop", "request", "middle"), ("drop", "reply", 0),
                ("drop", "reply", "end"), ("stall", "request", "middle"), ("stall", "reply", 0),
                ("corrupt", "request", "middle"), ("duplicate", "request", 0))
NUM_WIRE_MESSAGES = 8  # Of store and rank 0 together while a rank joins.
DEADLY = {"vanish", "kill", "cut", "stall-kill"}  # The trainer is gone.
# A bucket that suffered one of these never came, so nothing may go live.
SPOILING = {"drop", "vanish", "kill", "cut", "stall-kill", "garble", *BUCKET_KINDS, *SUMMED_KINDS,
            "silent", "half", "less", "noise", "abort", "orphan"}
TINY_VOCABULARY = 64
BUCKETS = 3
STALL_SECONDS = 0.05
FLAGS = ("--dist-timeout", "1", "--enable-weights-cpu-backup")


def spoiled(kind, tensors):
    """The bucket with its first matrix made wrong."""
    name = max(tensors, key=lambda one: len(tensors[one][1]))
    dtype, shape, data = tensors[name]
    out = dict(tensors)
    if kind == "unknown name":
        out["no.such.weight"] = out.pop(name)
    elif kind == "wrong dtype":
        out[name] = ("F8_E4M3", shape, data[:len(data) // 2])
    elif kind == "wrong shape":
        out[name] = (dtype, [1, *shape], data)
    elif kind == "NaN":
        out[name] = (dtype, shape, b"\xc0\x7f" + data[2:])
    elif kind == "short payload":
        out[name] = (dtype, shape, data[:-2])
    return out


def committing(calls):
    """The place of the call by which the new weights go live."""
    ends = ("/octavo/v1/update/commit", "/end_weight_update", "/update_weights_from_disk")
    for i, call in enumerate(calls):
        if call.path in ends:
            return i
    # Of buckets that came under a pause: with its end.
    return len(calls) - 1


class Wire:
    """A socket whose n-th message goes wrong; counts are of all sockets of a group together."""

    def __init__(self, sock, plan):
        self.sock, self.plan = sock, plan

    def __getattr__(self, name):
        return getattr(self.sock, name)

    def sendall(self, data):
        at = self.plan["sent"]
        self.plan["sent"] += 1
        kind = self.plan["kind"] if at == self.plan["nth"] else None
        self.plan["struck"] += kind is not None
        if kind in ("kill", "half"):
            self.sock.sendall(data[:len(data) // 2] if kind == "half" else b"")
            self.sock.shutdown(socket.SHUT_RDWR)
        elif kind == "corrupt":
            self.sock.sendall(bytes([data[0] ^ 0x40]) + data[1:])
        elif kind != "stall":
            self.sock.sendall(data * (2 if kind == "duplicate" else 1))


class FaultyStore(group_testing.Store):
    plan = None

    def _guard(self, accepted):
        super()._guard(Wire(accepted, self.plan))


class FaultyTrainer(group_testing.Trainer):
    """Rank 0 of which one message goes wrong while others join."""

    def __init__(self, group, plan):
        self.plan = plan
        super().__init__(group)
        self.store.close()
        self.store = type("Store", (FaultyStore,), {"plan": plan})()
        self.store.set(f"/{group}/{group}//loopback//0".encode(),
                       f"127.0.0.1:{self.port}".encode())

    def _guard(self, accepted):
        super()._guard(Wire(accepted, self.plan))


class Target:
    """One server, its two sets of weights, and what has been tried on it."""

    def __init__(self, name, stack, seed):
        self.name = name
        policy, flags = updates.FORMATS[name]
        root = stack.enter_context(folder())
        self.root = root
        self.variants = [updates.Variant(
            updates.write_tiny(root / f"bf16-{i}", updates.tiny_tensors(i)), policy,
            root / f"converted-{i}") for i in range(2)]
        self.colds = [Cold(stack, variant, flags, TINY_VOCABULARY) for variant in self.variants]
        self.server = stack.enter_context(
            Server(self.variants[0].path, *policy, *flags, *updates.LIGHT, *FLAGS))
        self.sender = updates.Sender(self.server)
        stack.callback(self.sender.close)
        self.deltas = updates.Deltas(root, self.variants[0].path, keep=True)
        self.traffic = Traffic(self.server, self.colds, seed, num_clients=2)
        self.traffic.variant_of = {i: i % 2 for i in range(100000)}
        self.counts, self.problems = collections.Counter(), []
        self.what = "nothing"
        self.bytes_differing = 0

    @property
    def live(self):
        return self.traffic.live

    # --- Traces, and faults in them ---

    def calls(self, transport, number):
        """The trace that leads to this version."""
        variant = self.variants[number % 2]
        if transport == "deltas":
            return self.deltas.calls(variant.tensors, str(number))
        if transport in updates.FOLDERS:
            return updates.FOLDERS[transport](variant.path, str(number))
        size = (len(variant.tensors) + BUCKETS - 1) // BUCKETS
        buckets = updates.cut(variant.tensors, random.Random(number), size)
        return updates.BUCKETS[transport](buckets, str(number))

    def raw(self, call, share):
        """A connection on which this share of the request has been sent."""
        path, body = self.sender.request(call)
        body = body or b""
        request = (f"{call.method} {path} HTTP/1.1\r\nHost: faults\r\nContent-Length: {len(body)}"
                   "\r\nContent-Type: application/json\r\n\r\n").encode()
        cut = len(request) + len(body) // 2 if body else len(request) // 2
        whole = request + body
        peer = socket.create_connection((self.server.host, int(self.server.port)), 30)
        peer.sendall(whole if share == "all" else whole[:cut])
        return peer, whole[cut:]

    @staticmethod
    def reset(peer):
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        peer.close()

    def garbled(self, call):
        """The call with a body that is no longer what it was."""
        _, body = self.sender.request(call)
        if not body:
            return updates.Call(call.path + "x", method=call.method)
        if call.encode is not None and "serialized_named_tensors" in str(body[:60]):
            at = body.index(b'["') + 20  # Inside the first opcodes of the pickle.
            body = body[:at] + (b"A" if body[at:at + 1] != b"A" else b"B") + body[at + 1:]
        else:
            body = bytes([body[0] ^ 0x20]) + body[1:]
        return updates.Call(call.path, body, call.method)

    def strike(self, call, kind, expected):
        """One call, with this fault, while this version is live."""
        if kind in BUCKET_KINDS:
            changed = dataclasses.replace(call, tensors=spoiled(kind, call.tensors))
            self.sender.make(changed)
        elif kind in BROADCAST_KINDS:
            self.broadcast(call, kind)
        elif kind in ("kill", "stall-kill"):
            peer, _ = self.raw(call, "half")
            if kind == "stall-kill":
                time.sleep(STALL_SECONDS)
                self.serves_on(expected)
            self.reset(peer)
        elif kind == "stall":
            thread = self.sender.broadcasting(call)
            peer, rest = self.raw(call, "half")
            time.sleep(STALL_SECONDS)
            peer.sendall(rest)
            self.answer(peer)
            if thread:
                thread.join(60)
        elif kind in ("cut", "retry"):
            thread = self.sender.broadcasting(call)
            peer, _ = self.raw(call, "all")
            time.sleep(STALL_SECONDS)
            self.reset(peer)
            if thread:
                thread.join(60)
            if kind == "retry":
                self.sender.make(call)
        elif kind == "duplicate":
            self.sender.make(call)
            self.sender.make(call)
        elif kind == "garble":
            self.sender.make(self.garbled(call))
        elif kind == "flipped bit":
            path, body = self.sender.request(call)
            at = len(body) - len(body) // 3
            self.sender.make(updates.Call(
                path, body[:at] + bytes([body[at] ^ 4]) + body[at + 1:]))

    def answer(self, peer):
        """Reads it; keeps the update's id as the sender would."""
        peer.settimeout(60)
        with contextlib.suppress(OSError, ValueError, IndexError):
            text = b""
            while b"\r\n\r\n" not in text:
                text += peer.recv(65536) or b"\r\n\r\n"
            reply = json.loads(text.split(b"\r\n\r\n", 1)[1] or b"{}")
            if isinstance(reply, dict):
                self.sender.update_id = reply.get("update_id", self.sender.update_id)
        peer.close()

    def broadcast(self, call, kind):
        """Rank 0 fails beside a call that is as it should be, or without it."""
        pieces, trainer = call.broadcasts(call.tensors), self.sender.trainer
        whole = b"".join(struct.pack("<BQ", group_testing.BROADCAST, len(piece)) + piece
                         for piece in pieces)
        first = pieces[0]
        data = {"silent": b"", "half": whole[:len(whole) // 2], "noise": b"\xff" * 64,
                "orphan": whole, "abort": struct.pack("<BI", group_testing.ABORT, 4) + b"oops",
                "less": struct.pack("<BQ", group_testing.BROADCAST, len(first) - 2) + first[2:],
                "more": whole + whole}[kind]
        trainer.raw(data)
        if kind != "orphan":
            silent = dataclasses.replace(call, broadcasts=None)
            self.sender.make(silent)

    # --- What must hold ---

    def note(self, text):
        self.problems.append(f"{self.name}: {text}")

    def still(self, version):
        """The version's bits, now."""
        got = updates.probe(self.server)
        wanted = (str(version), *self.colds[version % 2].probe)
        if got != wanted:
            self.bytes_differing += 1
            self.note(f"{self.what}: probe says version {got[0]}, expected {wanted[0]}, "
                      f"bits {'equal' if got[1:] == wanted[1:] else 'DIFFER'}")

    def serves_on(self, version):
        """In the middle of a call. Nobody can ask a server that the trainer has paused."""
        state = self.server.call("GET", "/server_info")[1]["internal_states"][0]
        if state["paused"] or state["weights"] != "live" or self.traffic.quiet:
            live = self.server.call("GET", "/get_weight_version")[1]["weight_version"]
            if live != str(version):
                self.note(f"{self.what}: version {live} is live, expected {version}")
        else:
            self.still(version)

    def recover(self, transport):
        """What a trainer does that starts anew."""
        for _ in range(500):
            state = self.server.call("GET", "/octavo/v1/update")[1]
            if not state["open"]:
                break
            self.server.call("POST", "/octavo/v1/update/abort", {"update_id": state["update_id"]})
            time.sleep(0.01)
        else:
            self.note(f"{self.what}: the update stays open: {state}")
        self.server.call("POST", "/end_weight_update", {})
        self.server.call("POST", "/resume_memory_occupation", {})
        self.server.call("POST", "/continue_generation", {})
        self.server.call("POST", "/continue_generation", {})
        if transport in updates.GROUPS:
            self.sender.join()

    def settled(self, allowed):
        """One of these versions is live, whole."""
        status, live = self.server.call("GET", "/octavo/v1/digest")
        if status != 200:
            self.note(f"{self.what}: no digest: {live}")
            return
        version = int(live["weight_version"])
        if version not in allowed:
            self.note(f"{self.what}: version {version} is live, expected one of {allowed}")
        if live["digest"] != self.variants[version % 2].digest:
            self.bytes_differing += 1
            self.note(f"{self.what}: the digest of version {version} is another")
        self.still(version)
        self.traffic.live = version

    def is_poisoned(self):
        state = self.server.call("GET", "/server_info")[1]["internal_states"][0]["weights"]
        return state == "poisoned"

    def good(self, transport):
        """An update without a fault."""
        number = self.live + 1
        self.traffic.coming = number
        try:
            self.sender.run(self.calls(transport, number))
        except (updates.UpdateFailed, OSError) as error:
            self.note(f"after {self.what}: {error!r}")
            self.recover(transport)
        self.settled([number])

    # --- Parts of a run ---

    def play(self, transport, place, kind):
        """The trace to the next version with this fault in it."""
        number = self.live + 1
        calls = self.calls(transport, number)
        call, last = calls[place], committing(calls)
        self.what = f"{transport}, call {place} {call.path.split('?')[0]}, {kind}"
        self.traffic.coming = number
        self.traffic.aborting = self.traffic.aborting or "slime" in transport or "areal" in transport \
            or transport == "deltas"
        if kind == "reorder":
            calls[place:place + 2] = reversed(calls[place:place + 2])
        with contextlib.suppress(OSError, updates.UpdateFailed):
            for i, one in enumerate(calls):
                if i != place or kind == "reorder":
                    self.sender.make(one)
                    continue
                self.strike(one, kind, number if place > last else number - 1)
                # Who has pulled nothing has nothing to load; what the folder held would be given a
                # new name.
                if kind in DEADLY or one.path == "/pull_weights" and kind in ("drop", "garble"):
                    break
        never = kind in SPOILING and call.tensors is not None and place <= last or \
            kind in {"vanish", "kill", "stall-kill"} and place <= last
        self.counts["faults"] += 1
        self.recover(transport)
        if transport == "in_place" and self.is_poisoned():
            self.counts["poisoned, as in place may be"] += 1
        else:
            self.settled([number - 1] if never else [number - 1, number])
            self.counts["old version" if self.live < number else "new version, whole"] += 1
        self.good(transport)

    def calls_of(self, transport, every):
        """Every fault at every call of this transport; of all those, each N-th."""
        if transport in updates.GROUPS:
            self.sender.join()
        # Nobody gets an answer from weights that are half overwritten.
        self.traffic.quiet = transport == "in_place"
        trace = self.calls(transport, self.live + 1)
        places = []
        for place, call in enumerate(trace):
            kinds = list(CALL_KINDS)
            if place == len(trace) - 1:
                kinds.remove("reorder")
            if isinstance(call.body, dict) and "model_path" in call.body \
                    and "weight_version" not in call.body:
                # Two updates, of which the server counts each: as it should be.
                kinds = [kind for kind in kinds if kind not in ("duplicate", "retry")]
            if call.tensors is not None:
                kinds += BUCKET_KINDS
                kinds += SUMMED_KINDS if call.encode is updates.summed else ()
            if call.broadcasts is not None:
                kinds += BROADCAST_KINDS
            places += [(place, kind) for kind in kinds]
        for place, kind in places[self.offset(every)::every]:
            self.play(transport, place, kind)
        self.traffic.quiet = False

    def offset(self, every):
        self.counts["parts"] += 1
        return self.counts["parts"] % every

    def joins(self, every):
        """Every fault at every message by which a rank joins a group."""
        pairs = [(nth, kind) for nth in range(NUM_WIRE_MESSAGES) for kind in WIRE_KINDS]
        for nth, kind in pairs[self.offset(every)::every]:
            self.what = f"join, message {nth}, {kind}"
            self.server.call("POST", "/destroy_weights_update_group",
                             {"group_name": updates.GROUP})
            plan = {"kind": kind, "nth": nth, "sent": 0, "struck": 0}
            with FaultyTrainer(updates.GROUP, plan) as trainer:
                self.server.call("POST", "/init_weights_update_group", {
                    "master_address": "127.0.0.1", "master_port": trainer.store.port,
                    "rank_offset": 1, "world_size": 2, "group_name": updates.GROUP,
                    "backend": "loopback"})
            if not plan["struck"]:
                continue
            self.counts["faults"] += 1
            self.counts["old version"] += 1
            self.settled([self.live])
            self.sender.join()
            if nth % 3 == 0:
                self.good("miles_group")

    def push(self, proxy):
        """`octavo push` to the next version, through the proxy; its exit code."""
        number = self.live + 1
        self.traffic.coming = number
        return octavo_testing.run(
            "push", self.variants[number % 2].path, "--to", proxy.url, "--weight-version", number,
            "--bucket-mb", 1, "--retry-s", 3, "--timeout-s", 1, check=False).returncode

    def pushes(self, every):
        """Every fault at every message between `octavo push` and the server."""
        with FaultyProxy(self.server.host, self.server.port) as proxy:
            self.what = "push, no fault"
            if self.push(proxy) != 0:
                self.note("push failed without a fault")
            lines = list(proxy.requests)
            self.settled([self.live + 1])
            faults = [(i, kind, where, byte) for i in range(len(lines))
                      for kind, where, byte in PROXY_FAULTS
                      if kind != "corrupt" or "/update/put" in lines[i]]
            for i, kind, where, byte in faults[self.offset(every)::every]:
                line = lines[i].split("?")[0].split(" HTTP")[0]
                self.what = f"push, {line}, {kind} at {byte} of the {where}"
                proxy.plan(Fault(kind, i, where=where, byte=byte, seconds=1.5, then_drop=True))
                number = self.live + 1
                code = self.push(proxy)
                proxy.plan()
                self.counts["faults"] += 1
                self.recover("native")
                self.settled([number] if code == 0 else [number - 1, number])
                self.counts["old version" if self.live < number else "new version, whole"] += 1
                self.counts["pushes that came through all the same"] += code == 0

    def pickles(self, every):
        """Every byte of a bucket's pickle that is none of its weights."""
        name = "model.norm.weight"
        tensor = self.variants[(self.live + 1) % 2].tensors[name]
        data = base64.b64decode(updates.flattened({name: tensor}))
        payload = data.index(tensor[2])
        body = {"load_format": "flattened_bucket", "flush_cache": False}
        for at in range(self.offset(every), len(data), every):
            if payload <= at < payload + len(tensor[2]):
                continue
            self.what = f"pickle, byte {at}"
            mutated = data[:at] + bytes([data[at] ^ 0x15]) + data[at + 1:]
            self.server.call("POST", "/update_weights_from_tensor", {
                **body, "serialized_named_tensors": [base64.b64encode(mutated).decode()]})
            self.counts["faults"] += 1
            self.counts["old version"] += 1
            if at % 16 == 0:
                self.recover("miles_tensor")
                self.settled([self.live])
        self.recover("miles_tensor")
        self.good("miles_tensor")


def run_format(name, args):
    start = time.monotonic()
    with contextlib.ExitStack() as stack:
        target = Target(name, stack, args.seed)
        transports = [*updates.BUCKETS, *updates.FOLDERS, "deltas"]
        with target.traffic:
            for transport in args.transports or transports:
                target.calls_of(transport, args.every)
            if not args.transports:
                target.pushes(args.every)
                target.joins(args.every)
                target.pickles(args.every)
            target.server.call("POST", "/continue_generation", {})
        traffic = target.traffic
        code = target.server.stop()
        if code != 0:
            target.note(f"exit code {code}: " + "".join(target.server.lines)[-2000:])
    counts = target.counts
    counts.pop("parts", None)
    return {"format": name, **counts, "requests": traffic.counts["requests"],
            "requests lost": traffic.counts["lost"],
            "requests aborted as asked": traffic.counts["aborted as asked"],
            "tokens compared": traffic.counts["tokens compared"],
            "tokens that differ": traffic.counts["tokens that differ"],
            "probes and digests that differ": target.bytes_differing,
            "seconds": round(time.monotonic() - start, 1),
            "problems": (target.problems + traffic.problems)[:20]}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default=str(ROOT / "build" / "octavo"))
    parser.add_argument("--formats", nargs="+", default=["bf16", "fp8", "nvfp4-token"],
                        choices=[name for name in updates.FORMATS if "static" not in name])
    parser.add_argument("--transports", nargs="+",
                        choices=[*updates.BUCKETS, *updates.FOLDERS, "deltas"])
    parser.add_argument("--every", type=int, default=1, help="of the faults, only each N-th")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--output", type=pathlib.Path)
    args = parser.parse_args()
    octavo_testing.program = os.path.abspath(args.program)
    result = {**bench_tools.origin(), "every": args.every, "formats": []}
    for name in args.formats:
        result["formats"].append(run_format(name, args))
        print(json.dumps(result["formats"][-1]), flush=True)
        if args.output:
            args.output.parent.mkdir(parents=True, exist_ok=True)
            args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if any(one["problems"] for one in result["formats"]) else 0


if __name__ == "__main__":
    sys.exit(main())
