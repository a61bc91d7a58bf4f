#!/usr/bin/env python3
"""Soak: random traffic against a server with a small KV pool, then a look at what it left behind.

Clients send single requests, streams, batches and chats; some leave in the middle, some are aborted.
One hand pauses in every mode and continues, flushes, relabels, gives memory back, and puts one of two
sets of weights in place of the other. At the end, with the first weights live again:

  a probe request gives the bits that it gave at the start,
  no request is left, a flush succeeds and no KV token is used,
  the process has the threads and descriptors that it had,
  its anonymous memory has not grown from the first third of the run to the last.

Prints one JSON object; exits 1 when one of these does not hold. Traffic is paced, not saturating: a
soak shares its machine with other tests.

Usage: bench/soak/run.py [PROGRAM] [--minutes M] [--seed S]
"""

import argparse
import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import octavo_testing

FIRST, SECOND = "models/abacus-dense", "models/abacus-dense-base"
PROMPT = "Question: Tom has 3 apples and buys 4 more. How many apples does Tom have now?\nAnswer:"
# Of eight clients with up to 700 tokens each, far more than fit: retractions are common.
POOL_TOKENS = 2048
NUM_CLIENTS = 8
# Growth of anonymous memory that is no leak: malloc's arenas fill up with odd sizes.
SLACK_BYTES = 8 << 20
WARM_UP_SECONDS = 10
CALL_SECONDS = 120
ALLOWED = {200, 400, 503}


class Soak:
    def __init__(self, server, seconds, seed):
        self.server = server
        self.random = random.Random(seed)
        self.deadline = time.monotonic() + seconds
        self.counts = collections.Counter()
        self.problems = []
        self.memory = []  # (seconds, RssAnon in bytes)
        self.next_rid = 0
        self.live_rids = set()

    # --- One exchange over a connection of its own ---

    async def call(self, method, path, body=None, leave_after=None):
        """(status, bytes), or None after having left in the middle of the answer."""
        reader, writer = await asyncio.open_connection(self.server.host, int(self.server.port))
        try:
            data = b"" if body is None else json.dumps(body).encode()
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: soak\r\nConnection: close\r\n"
                         f"Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n"
                         .encode() + data)
            await writer.drain()
            if leave_after is not None:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(reader.read(4096), leave_after)
                return None
            answer = await asyncio.wait_for(reader.read(-1), CALL_SECONDS)
            head, _, rest = answer.partition(b"\r\n\r\n")
            return int(head.split(b" ", 2)[1]), rest
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def control(self, method, path, body=None, allowed=(200,)):
        status, answer = await self.call(method, path, body)
        self.counts[path.split("?")[0]] += 1
        if status not in allowed:
            self.problems.append(f"{method} {path}: {status} {answer[:300]!r}")
        return status

    # --- The clients ---

    def sampling(self):
        return {"max_new_tokens": self.random.choice([0, 1, 8, 40, 120, 400, 700]),
                "temperature": self.random.choice([0, 0.7, 1.0]),
                "top_p": self.random.choice([1.0, 0.9]), "ignore_eos": self.random.random() < 0.7,
                "stop": self.random.choice([None, ["Question"], ["zzz", "\n\n"]])}

    def request(self):
        """(path, body) of a random request that the server takes."""
        kind = self.random.randrange(10)
        self.next_rid += 1
        rid = f"soak-{self.next_rid}"
        if kind == 0:
            return rid, "/v1/chat/completions", {
                "messages": [{"role": "user", "content": "Tom has 3 apples."}], "rid": rid,
                "max_tokens": 60, "stream": self.random.random() < 0.5}
        if kind == 1:
            return rid, "/v1/completions", {"prompt": ["Question: Ben", "Question: Ann"],
                                            "max_tokens": 60, "logprobs": 2}
        body = {"sampling_params": self.sampling(), "return_logprob": self.random.random() < 0.7,
                "rid": rid, "stream": self.random.random() < 0.4}
        if kind == 2:
            body["input_ids"] = [[self.random.randrange(3, 600) for _ in range(n)] for n in (3, 50)]
            body["sampling_params"]["n"] = self.random.choice([1, 2])
            body["stream"] = False
        elif kind < 6:
            body["input_ids"] = [self.random.randrange(3, 600)
                                 for _ in range(self.random.choice([1, 30, 300, 900]))]
        else:
            body["text"] = PROMPT[:self.random.randrange(8, len(PROMPT))]
        if self.random.random() < 0.2:
            body["logprob_start_len"] = 0
            body["return_logprob"] = True
        return rid, "/generate", body

    async def client(self):
        while time.monotonic() < self.deadline:
            rid, path, body = self.request()
            leave = self.random.random() < 0.15
            self.live_rids.add(rid)
            try:
                answer = await self.call("POST", path, body,
                                         self.random.random() if leave else None)
                self.counts["left" if leave else path] += 1
                if answer is not None and answer[0] not in ALLOWED:
                    self.problems.append(f"{path}: {answer[0]} {answer[1][:300]!r}")
                if answer is not None and answer[0] == 400:
                    self.counts["refused"] += 1
            except (OSError, asyncio.TimeoutError) as error:
                self.problems.append(f"{path}: {error!r}")
            self.live_rids.discard(rid)
            await asyncio.sleep(self.random.uniform(0.02, 0.6))

    # --- The hand at the controls ---

    async def pause(self):
        mode = self.random.choice(["abort", "retract", "in_place"])
        self.counts["pause " + mode] += 1
        await self.control("POST", "/pause_generation", {"mode": mode})
        await asyncio.sleep(self.random.uniform(0.0, 0.3))
        if mode != "in_place":
            await self.control("POST", "/flush_cache")  # Must hold: nobody has pages.
        if self.random.random() < 0.3:
            await self.update(frozen=mode == "in_place")
        await self.control("POST", "/continue_generation", {})

    async def update(self, frozen=False):
        path = self.random.choice([FIRST, SECOND])
        body = {"model_path": path, "weight_version": f"{path[-4:]}-{self.next_rid}",
                "abort_all_requests": self.random.random() < 0.2}
        if frozen:
            body["flush_cache"] = False
        await self.control("POST", "/update_weights_from_disk", body)

    async def release(self):
        await self.control("POST", "/pause_generation", {"mode": "retract"})
        await self.control("POST", "/release_memory_occupation", {"tags": ["kv_cache"]})
        await asyncio.sleep(self.random.uniform(0.0, 0.2))
        await self.control("POST", "/resume_memory_occupation", {"tags": ["kv_cache"]})
        await self.control("POST", "/continue_generation", {})

    async def abort_some(self):
        rids = sorted(self.live_rids)
        body = ({"abort_all": True} if self.random.random() < 0.1 or not rids
                else {"rid": self.random.choice(rids)})
        await self.control("POST", "/abort_request", body)

    async def look(self):
        path = self.random.choice(["/server_info", "/v1/loads?include=all", "/metrics", "/health",
                                   "/model_info", "/octavo/v1/digest", "/v1/models", "/"])
        await self.control("GET", path)

    async def flush(self):
        await self.control("POST", "/flush_cache?timeout=0.2", allowed=(200, 400))

    async def relabel(self):
        await self.control("POST", "/update_weight_version",
                           {"new_version": f"r{self.next_rid}", "abort_all_requests": False})

    async def hand(self):
        actions = [self.pause, self.update, self.release, self.abort_some, self.look, self.flush,
                   self.relabel]
        weights = [3, 2, 1, 8, 6, 1, 1]
        while time.monotonic() < self.deadline:
            await self.random.choices(actions, weights)[0]()
            await asyncio.sleep(self.random.uniform(0.05, 0.8))

    async def watch_memory(self, start):
        while time.monotonic() < self.deadline:
            self.memory.append((time.monotonic() - start, rss_anon(self.server.process.pid)))
            await asyncio.sleep(0.5)

    async def run(self):
        start = time.monotonic()
        await asyncio.gather(self.hand(), self.watch_memory(start),
                             *(self.client() for _ in range(NUM_CLIENTS)))


def rss_anon(pid):
    text = pathlib.Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines()
                if line.startswith("RssAnon:"))


def census(pid):
    """(threads, descriptors) once they stay the same."""
    last = None
    for _ in range(100):
        now = tuple(len(os.listdir(f"/proc/{pid}/{name}")) for name in ("task", "fd"))
        if now == last:
            break
        last = now
        time.sleep(0.1)
    return last


def probe(server):
    reply = server.generate(text=PROMPT, return_logprob=True, sampling_params={
        "temperature": 0, "max_new_tokens": 48, "ignore_eos": True})
    sampled = server.generate(text=PROMPT, return_logprob=True, sampling_params={
        "max_new_tokens": 32, "sampling_seed": 7, "ignore_eos": True})
    return [(r["output_ids"], r["meta_info"]["output_token_logprobs"]) for r in (reply, sampled)]


def settle(server):
    """The first weights live, nobody in flight, nothing cached."""
    problems = []
    for path, body in (("/continue_generation", {}), ("/abort_request", {"abort_all": True}),
                       ("/update_weights_from_disk", {"model_path": FIRST, "weight_version": "0"})):
        status, reply = server.call("POST", path, body)
        if status != 200:
            problems.append(f"{path}: {status} {reply}")
    for _ in range(100):
        load = server.call("GET", "/v1/loads")[1]["aggregate"]["total_reqs"]
        if load == 0:
            break
        time.sleep(0.05)
    if load != 0:
        problems.append(f"{load} requests are left")
    return problems


def check(server, soak, before):
    """What does not hold at the end, and the figures."""
    problems = soak.problems + settle(server)
    if probe(server) != before["probe"]:
        problems.append("the probe request gives other bits than at the start")
    status, text = server.call("POST", "/flush_cache")
    used = server.call("GET", "/v1/loads")[1]["loads"][0]["num_used_tokens"]
    if status != 200 or used != 0:
        problems.append(f"flush {status} {text}, {used} KV tokens are used")
    after = census(server.process.pid)
    if after != before["census"]:
        problems.append(f"threads and descriptors: {before['census']} before, {after} after")
    samples = [x for x in soak.memory if x[0] >= min(WARM_UP_SECONDS, soak.memory[-1][0] / 4)]
    third = max(len(samples) // 3, 1)
    first, last = (max(x[1] for x in part) for part in (samples[:third], samples[-third:]))
    if last > first + SLACK_BYTES:
        problems.append(f"RssAnon: at most {first} bytes in the first third, {last} in the last")
    info = server.call("GET", "/server_info")[1]["internal_states"][0]
    return problems, {
        "counts": dict(sorted(soak.counts.items())), "rss_anon_first_third": first,
        "rss_anon_last_third": last, "threads": after[0], "descriptors": after[1],
        "retractions": info["num_retractions_total"], "aborted": info["num_aborted_total"],
        "requests": info["num_requests_total"], "tokens": info["generation_tokens_total"]}


def main():
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("program", nargs="?", default=str(ROOT / "build" / "octavo"))
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    octavo_testing.program = os.path.abspath(args.program)
    flags = ("--threads", "1", "--max-total-tokens", POOL_TOKENS, "--log-level", "warning",
             "--random-seed", args.seed)
    with octavo_testing.Server(FIRST, *flags) as server:
        before = {"probe": probe(server)}
        problems = settle(server)
        before["census"] = census(server.process.pid)
        soak = Soak(server, args.minutes * 60, args.seed)
        soak.problems += problems
        asyncio.run(soak.run())
        problems, figures = check(server, soak, before)
        code = server.stop()
        if code != 0:
            problems.append(f"exit code {code}: " + "".join(server.lines)[-2000:])
    print(json.dumps({"minutes": args.minutes, "seed": args.seed, **figures,
                      "problems": problems[:20]}, indent=1))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
