"""Method: ten thousand requests that a seeded generator has spoilt, over raw sockets, each with the
answer that the documentation gives it: its status, a body of one of the documented forms, or a
connection that closes without a word. Every few hundred a good request must give the bits that it
gave at first. At the end the server has the threads and descriptors that it began with."""

import collections
import json
import os
import pathlib
import random
import re
import socket
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ONE_THREAD, PROMPT
from octavo_testing import DENSE, Server

SEED = 20261121
NUM_CASES = 10_000
PROBE_EVERY = 500
BODY_BYTES_MAX = 64 << 10
FLAGS = ("--max-body-bytes", str(BODY_BYTES_MAX), "--header-timeout", "2", "--body-timeout", "2")

# What is sent, which statuses are right, and whether the connection must end. No status: nothing
# may be answered.
Case = collections.namedtuple("Case", "name data statuses closes")

# Endpoints that read a JSON object, with one that they would take.
BODIES = {
    "/generate": {"text": "Question: Ben", "sampling_params": {"max_new_tokens": 1},
                  "return_logprob": True, "rid": "a"},
    "/v1/completions": {"prompt": "Question", "max_tokens": 1, "temperature": 0, "stop": ["x"]},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
    "/tokenize": {"prompt": "Question", "add_special_tokens": True},
    "/detokenize": {"tokens": [5, 6, 7]},
    "/abort_request": {"rid": "nobody", "abort_all": False},
    "/pause_generation": {"mode": "retract"},
    "/continue_generation": {"torch_empty_cache": True},
    "/update_weights_from_disk": {"model_path": "models/none", "flush_cache": True},
    "/init_weights_update_group": {"master_address": "127.0.0.1", "master_port": 1,
                                   "rank_offset": 1, "world_size": 2, "group_name": "g"},
    "/update_weights_from_distributed": {"names": ["a"], "dtypes": ["bfloat16"], "shapes": [[2]],
                                         "group_name": "none", "flush_cache": False},
    "/destroy_weights_update_group": {"group_name": "none"},
    "/update_weight_version": {"new_version": "9", "abort_all_requests": False},
    "/release_memory_occupation": {"tags": ["kv_cache"]},
    "/resume_memory_occupation": {"tags": ["kv_cache"]},
    "/get_weights_by_name": {"name": "none", "truncate_size": 3},
    "/weights_checker": {"action": "none"},
    "/begin_weight_update": {"selector": "draft"},
    "/post_process_weights": {"restore_weights_before_load": False},
    "/octavo/v1/update/begin": {"weight_version": "9"},
    "/octavo/v1/update/seal": {"update_id": "x"},
    "/octavo/v1/update/commit": {"update_id": "x", "in_flight": "retract"},
    "/octavo/v1/update/abort": {"update_id": "x"},
}

# Endpoint -> member -> values that it must refuse, all with 400.
WRONG = {
    "/generate": {
        "text": [5, True, {}, [5], [], ""],
        "input_ids": ["x", 5, [1.5], ["a"], [True], [], [[]], [-1], [690], [2**31], [2**64], [None],
                      [[5], 6], {}],
        "sampling_params": [5, "x", [], True],
        "return_logprob": ["perhaps", 2, 1.5, {}, "yes"],
        "logprob_start_len": ["x", 1.5, 10**6, {}, 2**80],
        "top_logprobs_num": ["x", -1, 1.5, {}, 10**12],
        "token_ids_logprob": ["x", [1.5], [-1], [690], {}],
        "stream": ["perhaps", 7, {}],
        "rid": [5, {}, True],
        "data_parallel_rank": [1, -1, "x"],
        "image_data": ["x", [1], {}],
        "lora_path": ["x"],
        "input_embeds": [[[1.0]]],
        "return_hidden_states": [True],
        "extra_key": [5, {}],
    },
    "/v1/completions": {
        "max_tokens": [0, -1, "x", 1.5, {}, 2**70],
        "temperature": [-1, "x", {}],
        "top_p": [0, 1.5, -1, "x"],
        "n": [0, -1, "x", 1.5],
        "logprobs": ["x", -1, {}],
        "stop": [5, {}, [5]],
        "echo": ["perhaps", {}],
        "logit_bias": [5, {"690": 1}, {"x": 1}, {"5": "x"}],
    },
    "/v1/chat/completions": {
        "messages": [5, "x", {}, [], [5], [{}], [{"role": 5, "content": "x"}]],
        "max_tokens": [-1, "x", 1.5, {}],
        "temperature": [-1, "x"],
        "top_logprobs": ["x", -1],
        "n": [0, "x"],
    },
    "/tokenize": {"prompt": [5, {}, [5]], "add_special_tokens": ["perhaps", {}]},
    "/detokenize": {"tokens": ["x", 5, [1.5], ["a"], [-1], [[5], 6], {}]},
    "/abort_request": {"rid": [5, {}, True, []], "abort_all": ["perhaps", 7, {}]},
    "/pause_generation": {"mode": ["freeze", 5, {}, "", True]},
    "/continue_generation": {"torch_empty_cache": ["x", 7, {}]},
    "/update_weights_from_disk": {
        "model_path": ["", 5, {}, [], "models/none", "/", "README.md", "x" * 5000],
        "weight_version": [5, {}], "flush_cache": ["x", {}], "load_format": ["pickle", 5],
        "abort_all_requests": ["x"]},
    "/init_weights_update_group": {
        "master_address": ["", 5, {}, []], "master_port": ["x", 1.5, {}, None, 0, 2**16, 2**40],
        "rank_offset": ["x", {}, None, 0, 2, -1], "world_size": ["x", {}, None, 1, -5, 2**31],
        "group_name": [5, {}], "backend": [5, {}, "gloo", "mpi", "nccl"]},
    "/update_weights_from_distributed": {
        "names": [5, {}, None, "a", [5], [], ["a", "b"]],
        "dtypes": [5, {}, None, [5], [], ["float3"], ["bfloat16", "bfloat16"]],
        "shapes": [5, {}, None, [5], [["x"]], [[-1]], [[2**40, 2**40]], [], [[2**80]]],
        "group_name": [5, {}], "load_format": ["pickle", 5, {}], "weight_version": [5, {}],
        "flush_cache": ["x", {}], "abort_all_requests": ["x", {}]},
    "/destroy_weights_update_group": {"group_name": [5, {}, "none"]},
    "/update_weight_version": {"new_version": ["", 5, {}, []], "abort_all_requests": ["x", {}]},
    "/release_memory_occupation": {"tags": [5, {}, "kv_cache", ["none"], [5]]},
    "/resume_memory_occupation": {"tags": [5, {}, "kv_cache", ["none"], [5]]},
    "/get_weights_by_name": {"name": ["", 5, {}, "none"], "truncate_size": ["x", {}]},
    "/weights_checker": {"action": ["none", 5, {}, ""]},
    "/begin_weight_update": {"selector": ["none", 5, {}]},
    "/post_process_weights": {"restore_weights_before_load": ["x", {}],
                              "post_process_quantization": ["x", 7]},
    "/octavo/v1/update/begin": {"weight_version": [5, {}, []], "takeover": ["x", {}]},
    "/octavo/v1/update/seal": {"update_id": ["", 5, {}, None]},
    "/octavo/v1/update/commit": {"update_id": ["", 5, {}, None]},
    "/octavo/v1/update/abort": {"update_id": ["", 5, {}, None]},
}

# Keys of sampling_params that /generate must refuse.
WRONG_SAMPLING = {
    "max_new_tokens": [-1, "x", 1.5, 2**63, -2**70, {}, 10**9],
    "min_new_tokens": [-1, 3, "x"],
    "temperature": [-0.5, "hot", {}, -1e300],
    "top_p": [0, 1.01, -1, "x"],
    "top_k": [0, -2, "x", 1.5],
    "min_p": [-0.1, 1.1, "x"],
    "frequency_penalty": [2.1, -2.1, "x"],
    "presence_penalty": [3, -3],
    "repetition_penalty": [0, 2.5, -1],
    "stop": [5, {}, [5]],
    "stop_token_ids": ["x", [1.5], ["a"], 5],
    "stop_regex": ["a+"],
    "n": [0, -1, 10**9, "x"],
    "logit_bias": [5, {"690": 1}, {"-1": 1}, {"x": 1}, {"5": "x"}],
    "sampling_seed": ["x", 1.5, 2**70],
    "stream_interval": [0, -1, "x"],
    "json_schema": ["{}"], "regex": ["a"], "ebnf": ["a"],
    "temprature": [1], "": [1], "max_tokens": [4],
}

# JSON that no parser may take, to stand in the place of a value.
NO_NUMBERS = ["1e999", "-1e999", "+1", "01", ".5", "1.", "NaN", "Infinity", "0x10", "1e", "--1",
              "9" * 400, "tru", "nul", "'x'", "\"\\x\"", "\"\\ud800\"", "\"a\nb\"", "[1,]", "{,}",
              "[" * 300 + "]" * 300, "[" * 5000]


def request(path, body=b"", method="POST", headers=(), length=None):
    head = [f"{method} {path} HTTP/1.1", "Host: x", *headers]
    if not any(h.lower().startswith("content-type") for h in headers):
        head.append("Content-Type: application/json")
    if length is not False:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return ("\r\n".join(head) + "\r\n\r\n").encode("latin-1") + body


class Generator:
    """Cases of every kind, drawn from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        kinds = {self.no_json: 20, self.no_value: 20, self.no_object: 5, self.wrong_type: 30,
                 self.wrong_sampling: 20, self.no_such_path: 5, self.wrong_method: 5,
                 self.bad_http: 12, self.bad_chunks: 8, self.large_head: 2, self.large_body: 1,
                 self.cut_short: 8, self.wrong_media_type: 3, self.bad_query: 4}
        self.kinds, self.weights = list(kinds), list(kinds.values())

    def draw(self):
        return self.random.choices(self.kinds, self.weights)[0]()

    def path(self):
        return self.random.choice(list(BODIES))

    def no_json(self):
        """A body cut, or with a byte of its structure gone, doubled or not UTF-8."""
        path = self.path()
        body = json.dumps(BODIES[path]).encode()
        how = self.random.randrange(5)
        if how == 0:
            body = body[:self.random.randrange(1, len(body))]
        elif how == 1:
            body += self.random.choice([b"}", b"x", b"{}", b",", b"\0"])
        elif how == 2:
            outside = re.sub(rb'"[^"]*"', lambda m: b"_" * len(m[0]), body)
            at = self.random.choice([m.start() for m in re.finditer(rb"[{}:]", outside)])
            body = body[:at] + body[at + 1:]
        elif how == 3:
            at = body.index(b'"') + 1
            body = body[:at] + self.random.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80", b"\x01",
                                                   b"\xf5\x80\x80\x80"]) + body[at:]
        else:
            body = bytes([self.random.choice(b"}],:x'\\#")]) + body
        return Case("no JSON", request(path, body), {400}, False)

    def no_value(self):
        """A member whose value is no JSON, whatever the endpoint thinks of the member."""
        path = self.path()
        value = self.random.choice(NO_NUMBERS)
        members = [f'"{key}": {json.dumps(v)}' for key, v in BODIES[path].items()]
        members.insert(self.random.randrange(len(members) + 1), f'"extra": {value}')
        return Case("no value", request(path, ("{" + ", ".join(members) + "}").encode()), {400},
                    False)

    def no_object(self):
        body = self.random.choice([b"[]", b"3", b'"x"', b"null", b"true", b"[{}]", b"1e5"])
        return Case("no object", request(self.path(), body), {400}, False)

    def wrong_type(self):
        path = self.random.choice(list(WRONG))
        key = self.random.choice(list(WRONG[path]))
        body = dict(BODIES[path])
        if key == "input_ids":
            body.pop("text")
        body[key] = self.random.choice(WRONG[path][key])
        return Case(f"{path} {key}", request(path, json.dumps(body).encode()), {400}, False)

    def wrong_sampling(self):
        key = self.random.choice(list(WRONG_SAMPLING))
        value = self.random.choice(WRONG_SAMPLING[key])
        params = {"max_new_tokens": 2, key: value}
        body = {"text": "Question", "sampling_params": params}
        return Case(f"sampling {key}", request("/generate", json.dumps(body).encode()), {400},
                    False)

    def no_such_path(self):
        name = "".join(self.random.choices("abcxyz/_-.~%25", k=self.random.randrange(1, 40)))
        return Case("no path", request("/none/" + name.replace("%", "%25"), b"{}"), {404}, False)

    def wrong_method(self):
        method = self.random.choice(["DELETE", "PATCH", "OPTIONS", "HEAD", "PROPFIND", "FOO"])
        return Case("method " + method, request(self.path(), b"{}", method), {405}, False)

    def wrong_media_type(self):
        path = self.random.choice(["/v1/completions", "/v1/chat/completions", "/tokenize"])
        kind = self.random.choice(["text/plain", "application/x-www-form-urlencoded", "json", ""])
        return Case("media type", request(path, json.dumps(BODIES[path]).encode(),
                                          headers=(f"Content-Type: {kind}",)), {400}, False)

    def bad_query(self):
        path, status = self.random.choice([
            ("/flush_cache?timeout=x", 400), ("/flush_cache?timeout=-1", 400),
            ("/flush_cache?timeout=nan", 400), ("/v1/loads?include=none", 400),
            ("/v1/loads?dp_rank=1", 400), ("/v1/loads?format=xml", 400),
            ("/octavo/v1/update/put?sequence=0", 400), ("/v1/models/none", 404),
            ("/octavo/v1/update/put?update_id=x&sequence=-1", 400),
            ("/octavo/v1/update/put?update_id=x&sequence=0", 404)])
        method = "GET" if path.startswith("/v1") else "POST"
        return Case(path, request(path, b"", method), {status}, False)

    def bad_http(self):
        good = json.dumps(BODIES["/generate"]).encode()
        data = self.random.choice([
            b"GARBAGE\r\n\r\n", b"GET\r\n\r\n", b"GET /health\r\n\r\n", b"\0\1\2\3\r\n\r\n",
            b"GET /health HTTP/9.9\r\n\r\n", b"GET /health HTTP/1.1\nHost: x\n\n",
            b"GET /health HTTP/1.1\r\nno colon\r\n\r\n", b"GET /he alth HTTP/1.1\r\n\r\n",
            b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", b"GET health HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET * HTTP/1.1\r\nHost: x\r\n\r\n",
            request("/generate", good, length="x"), request("/generate", good, length="-1"),
            request("/generate", good, length="1e3"), request("/generate", good, length="9" * 30),
            request("/generate", good, headers=("Content-Length: 3",)),
            request("/generate", good, headers=("Transfer-Encoding: chunked",)),
            request("/generate", good, headers=("Transfer-Encoding: gzip, chunked",), length=False),
            request("/generate", good, headers=("Transfer-Encoding: identity",), length=False),
            request("/generate", good, headers=("Bad Name: x",)),
            request("/generate", good, headers=("X: a\0b",)),
        ])
        closes = not data.startswith((b"GET /%zz", b"GET health", b"GET *"))
        return Case("bad HTTP", data, {400}, closes)

    def bad_chunks(self):
        body = json.dumps(BODIES["/generate"]).encode()
        head = request("/generate", headers=("Transfer-Encoding: chunked",), length=False)
        chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
        tail = self.random.choice([
            b"zz\r\n" + body + b"\r\n0\r\n\r\n", b"-5\r\n" + body + b"\r\n0\r\n\r\n",
            chunk[:-2] + b"XX0\r\n\r\n", b"\r\n\r\n" + chunk, b"0x5\r\nabcde\r\n0\r\n\r\n",
            b"f" * 17 + b"\r\n", chunk + b"0\r\nno colon\r\n\r\n", b"5 ;=\r\nabcde\r\n0\r\n\r\n",
        ])
        return Case("bad chunks", head + tail, {400, 413}, True)

    def large_head(self):
        how = self.random.randrange(4)
        if how == 0:
            data = b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n"
        elif how == 1:
            data = request("/health", b"", "GET", ("X: " + "a" * 70_000,))
        elif how == 2:
            data = request("/health", b"", "GET", [f"X-{i}: 1" for i in range(300)])
        else:  # A chunk extension without an end.
            head = request("/generate", headers=("Transfer-Encoding: chunked",), length=False)
            data = head + b"5;" + b"a" * 140_000
        return Case("large head", data, {431}, True)

    def large_body(self):
        body = b"[" + b"1," * (BODY_BYTES_MAX // 2) + b"1]"
        if self.random.random() < 0.5:
            return Case("large body", request(self.path(), body), {413}, True)
        head = request(self.path(), headers=("Transfer-Encoding: chunked",), length=False)
        pieces = b"".join(b"1000\r\n" + b"1" * 4096 + b"\r\n" for _ in range(17))
        return Case("large chunks", head + pieces, {413}, True)

    def cut_short(self):
        """The sender leaves before all of it is there: nobody is answered."""
        data = request(self.path(), json.dumps(BODIES["/generate"]).encode(), length=400)
        return Case("cut short", data[:self.random.randrange(1, len(data))], set(), True)


def is_documented(status, body):
    """One of the bodies of docs/api.md for this status."""
    try:
        reply = json.loads(body)
    except ValueError:
        return False
    if not isinstance(reply, dict):
        return False
    if set(reply) == {"object", "message", "type", "param", "code"}:
        return reply["object"] == "error" and reply["code"] == status and bool(reply["message"])
    if set(reply) == {"error"}:
        return bool(reply["error"].get("message"))
    if set(reply) == {"detail"}:
        return status in (404, 405)
    return reply.get("success") is False and bool(reply.get("message"))


class Client:
    """Keeps one connection for as long as the server does."""

    def __init__(self, server):
        self.address = (server.host, int(server.port))
        self.socket = None

    def close(self):
        if self.socket is not None:
            self.socket.close()
            self.socket = None

    def read_answer(self):
        """(status, body) or None when the connection ends first."""
        data = b""
        while b"\r\n\r\n" not in data:
            more = self.socket.recv(65536)
            if not more:
                return None if not data else (0, data)
            data += more
        head, body = data.split(b"\r\n\r\n", 1)
        status = int(head.split(b" ", 2)[1])
        length = int(re.search(rb"(?i)content-length: (\d+)", head)[1])
        while len(body) < length and b"HEAD" not in self.sent[:4]:
            more = self.socket.recv(65536)
            if not more:
                return 0, data
            body += more
        return status, body

    def run(self, case):
        """What is wrong with the server's reaction; empty: nothing."""
        if self.socket is None:
            self.socket = socket.create_connection(self.address, timeout=30)
        self.sent = case.data
        answer = None
        try:
            try:
                self.socket.sendall(case.data)
                if not case.statuses:
                    self.socket.shutdown(socket.SHUT_WR)
            except (BrokenPipeError, ConnectionResetError):
                pass  # Refused before all of it was read; the answer may still be there.
            answer = self.read_answer()
        except ConnectionResetError:
            answer = None
        problem = ""
        if not case.statuses:
            problem = "" if answer is None else f"answered {answer}"
        elif answer is None:
            problem = "closed without an answer"
        elif answer[0] not in case.statuses:
            problem = f"expected {case.statuses}, got {answer}"
        elif not (is_documented(*answer) or case.data.startswith((b"HEAD", b"POST /flush_cache"))):
            problem = f"expected a documented body, got {answer}"
        elif case.closes and self.socket.recv(1) != b"":
            problem = "the connection was kept"
        if problem or case.closes or not case.statuses:
            self.close()
        return problem


def slow_senders(server, count):
    """`count` peers that send a byte now and then; their (status or None) when all have ended."""
    ends = [None] * count
    sockets = []
    head = b"POST /generate HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
    for i in range(count):
        peer = socket.create_connection((server.host, int(server.port)), timeout=30)
        peer.sendall(head[:20] if i % 2 == 0 else head + b"{")
        peer.setblocking(False)
        sockets.append(peer)
    deadline = time.monotonic() + 30
    open_peers = set(range(count))
    while open_peers and time.monotonic() < deadline:
        time.sleep(0.2)
        for i in sorted(open_peers):
            try:
                sockets[i].send(b"x")
            except OSError:
                pass
            try:
                data = sockets[i].recv(65536)
            except BlockingIOError:
                continue
            except OSError:
                data = b""
            if data:
                ends[i] = int(data.split(b" ", 2)[1])
            open_peers.discard(i)
    for peer in sockets:
        peer.close()
    return ends


class Malformed(unittest.TestCase):
    def probe(self, server):
        reply = server.generate(text=PROMPT, return_logprob=True, sampling_params={
            "temperature": 0, "max_new_tokens": 12, "ignore_eos": True})
        return reply["output_ids"], reply["meta_info"]["output_token_logprobs"]

    def census(self, server):
        """(threads, descriptors) of the server once it is idle."""
        counts = None
        for _ in range(50):
            time.sleep(0.1)
            pid = server.process.pid
            now = (len(os.listdir(f"/proc/{pid}/task")), len(os.listdir(f"/proc/{pid}/fd")))
            if now == counts:
                break
            counts = now
        return counts

    def leave_while_it_generates(self, server, generator, count):
        """Peers that go at any moment of a stream or before an answer."""
        for i in range(count):
            body = {"input_ids": [5 + i % 600, 6, 7], "stream": i % 3 != 0, "return_logprob": True,
                    "sampling_params": {"max_new_tokens": 400, "ignore_eos": True}}
            peer = socket.create_connection((server.host, int(server.port)), timeout=30)
            peer.sendall(request("/generate", json.dumps(body).encode()))
            if i % 3 != 0:
                peer.recv(generator.random.randrange(1, 4000))
            if generator.random.random() < 0.5:  # With a reset instead of a goodbye.
                peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            peer.close()

    def test_ten_thousand(self):
        generator = Generator(SEED)
        with Server(DENSE, *ONE_THREAD, *FLAGS) as server:
            expected = self.probe(server)
            before = self.census(server)
            ends = []
            slow = threading.Thread(target=lambda: ends.extend(slow_senders(server, 40)))
            slow.start()
            client = Client(server)
            for i in range(NUM_CASES):
                case = generator.draw()
                problem = client.run(case)
                self.assertEqual(problem, "", f"seed {SEED} case {i}: {case.name}: "
                                              f"{case.data[:600]!r}")
                if i % PROBE_EVERY == 0:
                    self.assertEqual(self.probe(server), expected, f"seed {SEED} case {i}")
                if i % 100 == 0:
                    self.leave_while_it_generates(server, generator, 2)
            client.close()
            slow.join()
            self.assertEqual(ends, [408] * 40)
            self.assertEqual(self.probe(server), expected)
            load = server.call("GET", "/v1/loads")[1]["aggregate"]
            self.assertEqual(load["total_reqs"], 0, load)
            self.assertEqual(self.census(server), before)
            self.assertEqual(server.call("GET", "/weight_version")[1]["weight_version"], "0")
            self.assertEqual(server.call("POST", "/flush_cache")[0], 200)
            self.assertEqual(server.call("GET", "/v1/loads")[1]["loads"][0]["num_used_tokens"], 0)
            self.assertEqual(server.stop(), 0)


if __name__ == "__main__":
    octavo_testing.main()
