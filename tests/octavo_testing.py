"""What the whole-system tests share: running the program, and a server that is always stopped."""

import contextlib
import http.client
import json
import os
import pathlib
import re
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import unittest

ROOT = pathlib.Path(__file__).resolve().parent.parent
DENSE = "models/abacus-dense"
BASE = "models/abacus-dense-base"
PROBLEMS = "data/abacus-test.jsonl"
START_SECONDS = 60

program = str(ROOT / "build" / "octavo")


def main():
    """Takes the program's path off the command line and runs the caller's tests."""
    global program
    if len(sys.argv) > 1 and not sys.argv[1].startswith("-"):
        program = os.path.abspath(sys.argv.pop(1))
    unittest.main(verbosity=2)


def run(*args, check=True, timeout=600):
    """Runs `octavo ARGS`; returns the finished process with text output."""
    done = subprocess.run([program, *map(str, args)], cwd=ROOT, text=True, capture_output=True,
                          timeout=timeout, check=False)
    if check and done.returncode != 0:
        raise AssertionError(f"octavo {' '.join(map(str, args))}: exit {done.returncode}\n"
                             f"{done.stdout}{done.stderr}")
    return done


def run_json(*args, **kwargs):
    """Runs `octavo ARGS --json`; returns the object it prints."""
    return json.loads(run(*args, "--json", **kwargs).stdout)


@contextlib.contextmanager
def folder():
    """A temporary folder as a path."""
    with tempfile.TemporaryDirectory(prefix="octavo-test-") as path:
        yield pathlib.Path(path)


class Server:
    """`octavo serve ARGS --port 0` on a port that it chose; use as a context manager."""

    def __init__(self, *args):
        self.lines = []
        self.process = subprocess.Popen([program, "serve", *map(str, args), "--port", "0"],
                                        cwd=ROOT, text=True, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT)
        self.ready = threading.Event()
        self.url = None
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        self.ready.wait(START_SECONDS)
        if self.url is None:
            self.stop(signal.SIGKILL)
            raise AssertionError("the server did not start:\n" + "".join(self.lines))
        self.host, self.port = re.match(r"http://([^:]+):(\d+)", self.url).groups()

    def _read(self):
        for line in self.process.stdout:
            self.lines.append(line)
            match = re.search(r"http://[\d.]+:\d+", line)
            if match and self.url is None:
                self.url = match[0]
                self.ready.set()
        self.ready.set()

    def call(self, method, path, body=None, timeout=120):
        """One request on a connection of its own; returns (status, parsed body or text)."""
        connection = http.client.HTTPConnection(self.host, int(self.port), timeout=timeout)
        try:
            data = body if isinstance(body, (bytes, type(None))) else json.dumps(body)
            headers = {"Content-Type": "application/json"} if data is not None else {}
            connection.request(method, path, body=data, headers=headers)
            reply = connection.getresponse()
            text = reply.read()
            try:
                return reply.status, json.loads(text)
            except ValueError:
                return reply.status, text.decode(errors="replace")
        finally:
            connection.close()

    def generate(self, **body):
        """POST /generate; returns the parsed reply of status 200."""
        status, reply = self.call("POST", "/generate", body, timeout=300)
        if status != 200:
            raise AssertionError(f"/generate: {status} {reply}")
        return reply

    def stop(self, how=signal.SIGTERM):
        """Signals the server and returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(how)
        try:
            code = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        self.reader.join(10)
        self.process.stdout.close()
        return code

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.stop()


def read_safetensors(path):
    """Name -> (dtype, shape, bytes) of one file."""
    data = path.read_bytes()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    header.pop("__metadata__", None)
    body = data[8 + length:]
    return {name: (entry["dtype"], entry["shape"], body[slice(*entry["data_offsets"])])
            for name, entry in header.items()}


def bucket(tensors):
    """A safetensors buffer of name -> (dtype, shape, bytes)."""
    header, body = {}, b""
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape,
                        "data_offsets": [len(body), len(body) + len(data)]}
        body += data
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + body
