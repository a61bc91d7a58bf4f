"""Method: real servers. A replica starts without weights and takes those of another one, through a
relay that the tests can stop, cut and corrupt; versions are followed across restarts."""

import contextlib
import http.client
import http.server
import json
import pathlib
import re
import shutil
import signal
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import GREEDY, ONE_THREAD, PROMPT
from octavo_testing import BASE, DENSE, ROOT, Server, bucket, folder, read_safetensors, run

FP8 = ("--format", "fp8", "--keep-last", "2")


def fingerprint(server):
    reply = server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
    return reply["output_ids"], [x[0] for x in reply["meta_info"]["output_token_logprobs"]]


def digest(server):
    return server.call("GET", "/octavo/v1/digest")[1]["digest"]


def version(server):
    return server.call("GET", "/get_weight_version")[1]["weight_version"]


def await_ready(test, server, seconds=30):
    deadline = time.monotonic() + seconds
    while server.call("GET", "/octavo/v1/ready")[0] != 200:
        test.assertLess(time.monotonic(), deadline, "".join(server.lines))
        time.sleep(0.02)


class Relay(http.server.ThreadingHTTPServer):
    """Passes GETs on to `server`; `change(path, body)` may look, wait, or answer something else:
    None closes the connection."""

    def __init__(self, server, change):
        relay = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                connection = http.client.HTTPConnection(server.host, int(server.port), timeout=60)
                connection.request("GET", self.path)
                reply = connection.getresponse()
                body = reply.read()
                connection.close()
                body = change(self.path, body) if reply.status == 200 else body
                if body is None:
                    self.close_connection = True
                    return
                self.send_response(reply.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_):
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        threading.Thread(target=relay.serve_forever, daemon=True).start()

    def __exit__(self, *args):
        self.shutdown()
        super().__exit__(*args)


@contextlib.contextmanager
def bare_folder():
    """The model's folder without weights: what a replica that joins needs of it."""
    with folder() as work:
        for path in (ROOT / DENSE).iterdir():
            if path.is_file() and ".safetensors" not in path.name:
                shutil.copy(path, work)
        yield work


class Joining(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = contextlib.ExitStack()
        cls.healthy = cls.stack.enter_context(Server(BASE, *ONE_THREAD, *FP8))
        run("push", DENSE, "--to", cls.healthy.url, "--weight-version", "5")
        cls.bare = cls.stack.enter_context(bare_folder())
        cls.work = cls.stack.enter_context(folder())

    @classmethod
    def tearDownClass(cls):
        cls.stack.close()

    def serve(self, url, *args):
        return Server(self.bare, *ONE_THREAD, *(args or FP8), "--join", url)

    def refused(self, url, *words, args=FP8):
        done = run("serve", self.bare, *ONE_THREAD, *args, "--port", "0", "--join", url,
                   check=False, timeout=60)
        self.assertNotEqual(done.returncode, 0, done.stdout)
        for word in (url, *words):
            self.assertIn(word, done.stderr)

    def test_the_list_and_the_bytes_are_a_checkpoint(self):
        status, listed = self.healthy.call("GET", "/octavo/v1/weights")
        self.assertEqual((status, listed["weight_version"], listed["weight_digest"]),
                         (200, "5", digest(self.healthy)))
        pieces, at, step = [], 0, 100_003
        while at < listed["bytes"]:
            end = min(at + step, listed["bytes"])
            pieces.append(self.bytes_of(f"digest={listed['weight_digest']}&begin={at}&end={end}"))
            at = end
        path = self.work / "pulled"
        run("convert", DENSE, path, *FP8)
        stored = read_safetensors(path / "model.safetensors")
        (path / "model.safetensors").write_bytes(b"".join(pieces))
        self.assertEqual(read_safetensors(path / "model.safetensors"), stored)
        self.assertEqual(run("digest", path, "--json").stdout.count(listed["weight_digest"]), 1)
        name = "model.layers.1.mlp.up_proj.weight"
        one = self.work / "one.safetensors"
        one.write_bytes(self.bytes_of(f"digest={listed['weight_digest']}&name={name}"))
        self.assertEqual(read_safetensors(one), {name: stored[name]})
        for query, status in (("", 400), ("digest=0", 409), ("digest=0&begin=x", 400),
                              (f"digest={listed['weight_digest']}&name=no", 404),
                              (f"digest={listed['weight_digest']}&begin=5&end=2", 400),
                              (f"digest={listed['weight_digest']}&end=999999999999", 400)):
            self.assertEqual(self.healthy.call("GET", f"/octavo/v1/weights/bytes?{query}")[0],
                             status, query)

    def bytes_of(self, query):
        connection = http.client.HTTPConnection(self.healthy.host, int(self.healthy.port))
        connection.request("GET", f"/octavo/v1/weights/bytes?{query}")
        reply = connection.getresponse()
        data = reply.read()
        connection.close()
        self.assertEqual(reply.status, 200, data)
        return data

    def test_a_replica_joins_and_is_ready_only_then(self):
        let_go = threading.Event()

        def wait(_, body):
            let_go.wait(30)
            return body

        with Relay(self.healthy, wait) as relay, self.serve(relay.url) as server:
            try:
                for path, status in (("/health", 200), ("/health_generate", 200),
                                     ("/octavo/v1/ready", 503), ("/octavo/v1/weights", 409),
                                     ("/server_info", 200), ("/metrics", 200)):
                    self.assertEqual(server.call("GET", path)[0], status, path)
                self.assertIn("no weights", server.call("GET", "/octavo/v1/ready")[1]["reason"])
                self.assertEqual(version(server), "")
                for path, body in (("/generate", {"input_ids": [5, 6]}),
                                   ("/v1/completions", {"prompt": [5, 6]})):
                    status, reply = server.call("POST", path, body)
                    self.assertEqual(status, 503, reply)
            finally:
                let_go.set()
            await_ready(self, server)
            self.assertEqual((digest(server), version(server)), (digest(self.healthy), "5"))
            self.assertEqual(fingerprint(server), fingerprint(self.healthy))
            done = run("push", BASE, "--to", server.url)
            self.assertIn("version    6", done.stdout)
            self.assertTrue(any(re.search("joined http.*version 5", x) for x in server.lines))

    def test_a_commit_in_the_middle_starts_the_pull_over(self):
        calls = []

        def commit_once(path, body):
            if "bytes" in path:
                calls.append(path)
                if len(calls) == 1:
                    run("push", BASE, "--to", self.healthy.url, "--weight-version", "8")
            return body

        try:
            with Relay(self.healthy, commit_once) as relay, self.serve(relay.url) as server:
                await_ready(self, server)
                self.assertEqual((digest(server), version(server)), (digest(self.healthy), "8"))
                self.assertTrue(any("starting over" in x for x in server.lines))
        finally:
            run("push", DENSE, "--to", self.healthy.url, "--weight-version", "5")

    def test_what_cannot_be_joined_is_named_and_never_served(self):
        def cut(path, body):
            return None if "bytes" in path else body

        def corrupt(path, body):  # A bit of the last BF16 vector: nothing but the digest sees it.
            return body[:-2] + bytes([body[-2] ^ 1]) + body[-1:] if "bytes" in path else body

        with Relay(self.healthy, cut) as relay:
            self.refused(relay.url, "joining", "/octavo/v1/weights/bytes")
        with Relay(self.healthy, corrupt) as relay:
            self.refused(relay.url, "digest", "first that differs")
        self.refused(self.healthy.url, "as here, got", args=("--format", "mxfp8"))
        self.refused(self.healthy.url, "recipe", args=("--format", "w8a16", "--keep-last", "2"))
        self.refused("http://127.0.0.1:1", "joining")
        with Server(DENSE, *ONE_THREAD) as bf16:
            self.refused(bf16.url, "as here, got")
        with folder() as other:
            shutil.copytree(self.bare, other / "m")
            config = json.loads((other / "m" / "config.json").read_text())
            config["intermediate_size"] *= 2
            (other / "m" / "config.json").write_text(json.dumps(config))
            done = run("serve", other / "m", *ONE_THREAD, *FP8, "--port", "0", "--join",
                       self.healthy.url, check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("mlp", done.stderr)


class Versions(unittest.TestCase):
    def push(self, server, number, source=BASE):
        return run("push", source, "--to", server.url, *(["--weight-version", number] if number
                                                         else []), check=False)

    def test_they_grow_across_restarts(self):
        with folder() as work:
            flags = (*ONE_THREAD, "--state-dir", work / "state")
            with Server(DENSE, *flags) as server:
                self.assertEqual(self.push(server, "3").returncode, 0)
                self.assertIn("above 3", self.push(server, "3").stderr)
                self.assertEqual(self.push(server, "step-4").returncode, 0)
                status, reply = server.call("POST", "/update_weight_version",
                                            {"new_version": "2"})
                self.assertEqual((status, "above 3" in reply["message"]), (400, True), reply)
                locked = run("serve", DENSE, *flags, "--port", "0", check=False)
                self.assertIn("another server", locked.stderr)
                server.stop(signal.SIGKILL)
            with Server(DENSE, *flags) as server:
                self.assertEqual(version(server), "0")
                before = fingerprint(server)
                for number in ("2", "3"):
                    done = self.push(server, number)
                    self.assertEqual((done.returncode != 0, "above 3" in done.stderr),
                                     (True, True), done.stderr)
                status, reply = server.call("POST", "/update_weights_from_disk", {
                    "model_path": str(ROOT / BASE), "weight_version": "1"})
                self.assertEqual((status, "above 3" in reply["message"]), (400, True))
                self.assertEqual((fingerprint(server), version(server)), (before, "0"))
                self.assertIn("version    4", self.push(server, None).stdout)
                status, reply = server.call("POST", "/update_weight_version",
                                            {"new_version": "10", "abort_all_requests": False})
                self.assertEqual((status, version(server)), (200, "10"), reply)
                self.assertIn("above 10", self.push(server, "9").stderr)

    def test_a_commit_that_cannot_be_recorded_is_refused_before_the_swap(self):
        with folder() as work:
            with Server(DENSE, *ONE_THREAD, "--state-dir", work / "state") as server:
                before = fingerprint(server)
                (work / "state" / "weight_version.json").mkdir()
                done = self.push(server, "1")
                self.assertNotEqual(done.returncode, 0)
                self.assertIn("weight_version.json", done.stderr)
                self.assertEqual((fingerprint(server), version(server)), (before, "0"))
                self.assertIs(server.call("GET", "/octavo/v1/update")[1]["open"], False)
                (work / "state" / "weight_version.json").rmdir()
                self.assertEqual(self.push(server, "1").returncode, 0)
            (work / "state" / "weight_version.json").write_text("{}")
            done = run("serve", DENSE, "--state-dir", work / "state", "--port", "0", check=False)
            self.assertIn("weight_version.json", done.stderr)

    def test_a_replica_that_restarts_goes_on_with_the_fleets_number(self):
        with folder() as work, Server(DENSE, *ONE_THREAD) as healthy:
            flags = (*ONE_THREAD, "--state-dir", work / "state", "--join", healthy.url)
            self.assertEqual(self.push(healthy, "5").returncode, 0)
            for _ in range(2):  # The second time it joins the version that it has committed.
                with Server(DENSE, *flags) as server:
                    await_ready(self, server)
                    self.assertEqual((version(server), digest(server)), ("5", digest(healthy)))
                    self.assertIn("above 5", self.push(server, "5").stderr)
            self.assertEqual(self.push(healthy, "4", DENSE).returncode, 0)
            done = run("serve", DENSE, *flags, "--port", "0", check=False, timeout=60)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("committed 5", done.stderr)


if __name__ == "__main__":
    octavo_testing.main()
