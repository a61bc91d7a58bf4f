"""What scripts/demo.py stands on: running octavo, servers that never outlive it, HTTP calls."""

import contextlib
import ctypes
import http.client
import json
import shlex
import signal
import socket
import subprocess
import threading
import time

HOST = "127.0.0.1"
START_SECONDS = 60  # A server that does not answer by then has failed.
STOP_SECONDS = 20  # A server that has not stopped by then is killed.


class DemoError(Exception):
    """A step that failed, in one sentence."""


def say(text=""):
    print(text, flush=True)


def shown(args):
    return "octavo " + " ".join(shlex.quote(str(arg)) for arg in args)


class Octavo:
    """The built program, and the servers that were started with it."""

    def __init__(self, program, out):
        self.program = program
        self.out = out
        self.servers = []

    def run(self, *args):
        """Runs a command to its end; its standard output. Logs and progress go to the terminal."""
        say(f"  $ {shown(args)}")
        done = subprocess.run([self.program, *args], stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            raise DemoError(f"`{shown(args)}` ended with code {done.returncode}")
        return done.stdout

    def json(self, *args):
        text = self.run(*args, "--json")
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise DemoError(f"`{shown(args)} --json` printed no JSON object: {error}") from error

    def digest(self, source):
        """The digest alone: a server always answers in JSON."""
        return self.json("digest", source)["digest"]

    @contextlib.contextmanager
    def serving(self, name, *args):
        """A server for the length of a with block; its url. Its log is out/serve-NAME.log."""
        port = free_port()
        command = ["serve", *args, "--port", str(port)]
        say(f"  $ {shown(command)} &")
        log_path = self.out / f"serve-{name}.log"
        with log_path.open("w") as log:
            server = subprocess.Popen(
                [self.program, *command],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                preexec_fn=end_with_parent,
            )
        self.servers.append(server)
        try:
            wait_until_healthy(server, port, log_path)
            yield f"http://{HOST}:{port}"
            self.stop(server)
        finally:
            self.kill(server)

    def stop(self, server):
        """Ends a server as an operator would: it drains and exits 0, or the step has failed."""
        server.send_signal(signal.SIGTERM)
        try:
            code = server.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            raise DemoError(f"a server did not stop within {STOP_SECONDS} s") from None
        if code != 0:
            raise DemoError(f"a server ended with code {code}")

    def kill(self, server):
        """Makes sure that nothing is left of a server, whatever happened."""
        if server in self.servers:
            self.servers.remove(server)
        if server.poll() is None:
            server.kill()
            server.wait()

    def kill_all(self):
        for server in list(self.servers):
            self.kill(server)


def end_with_parent():
    """In a server just started: SIGTERM when this program dies, however it dies (Linux)."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)


def free_port():
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return probe.getsockname()[1]


def call(url, method, target, body=None, timeout=30):
    """One HTTP call; the reply's body. Anything but 200 is an OSError."""
    host, port = url.removeprefix("http://").split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout)
    try:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        connection.request(method, target, json.dumps(body) if body is not None else None, headers)
        reply = connection.getresponse()
        text = reply.read()
        if reply.status != 200:
            raise OSError(f"{method} {target}: status {reply.status}: {text[:300]!r}")
        return text
    except http.client.HTTPException as error:
        raise OSError(f"{method} {target}: {error!r}") from error
    finally:
        connection.close()


def wait_until_healthy(server, port, log_path):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            call(f"http://{HOST}:{port}", "GET", "/health", timeout=2)
            return
        except OSError:
            time.sleep(0.05)
    tail = log_path.read_text(errors="replace").strip().splitlines()[-5:]
    raise DemoError("the server did not start:\n    " + "\n    ".join(tail))


class Flight:
    """POST /generate of every body at once, one thread each."""

    def __init__(self, url, bodies):
        self.replies = [None] * len(bodies)
        self.errors = []
        self.start = time.monotonic()
        self.seconds = 0.0
        self.threads = [
            threading.Thread(target=self.send, args=(url, i, body), daemon=True)
            for i, body in enumerate(bodies)
        ]
        for thread in self.threads:
            thread.start()

    def send(self, url, i, body):
        try:
            self.replies[i] = json.loads(call(url, "POST", "/generate", body, timeout=600))
        except (OSError, ValueError) as error:
            self.errors.append(f"request {i}: {error}")

    def wait_until_all_run(self, url):
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline and not self.errors:
            if requests_running(url) == len(self.replies):
                return
            time.sleep(0.05)
        raise DemoError(f"{len(self.replies)} requests did not start: {self.errors[:1]}")

    def num_waiting(self):
        return sum(thread.is_alive() for thread in self.threads)

    def wait(self):
        for thread in self.threads:
            thread.join()
        self.seconds = time.monotonic() - self.start


def requests_running(url):
    loads = json.loads(call(url, "GET", "/v1/loads"))["loads"]
    return sum(load["num_running_reqs"] for load in loads)
