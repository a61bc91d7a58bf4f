"""Method: a server of the standard library that records what reaches it, behind the proxy: each kind
of fault once, at a byte that is counted by hand."""

import http.client
import http.server
import pathlib
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from faulty_proxy import Fault, FaultyProxy, wait_until


class Recorder(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.bodies.append(body)
        reply = b"got " + body
        self.send_response(200)
        self.send_header("Content-Length", str(len(reply)))
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, *_):
        pass


class QuietServer(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, *_):
        """Connections that the proxy breaks are no news."""


class FaultyProxyTest(unittest.TestCase):
    def setUp(self):
        self.server = QuietServer(("127.0.0.1", 0), Recorder)
        self.server.bodies = []
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.proxy = FaultyProxy(*self.server.server_address)

    def tearDown(self):
        self.proxy.close()
        self.server.shutdown()
        self.server.server_close()

    def post(self, body, path="/a", timeout=10):
        connection = http.client.HTTPConnection(self.proxy.url.removeprefix("http://"),
                                                timeout=timeout)
        try:
            connection.request("POST", path, body=body)
            return connection.getresponse().read()
        finally:
            connection.close()

    def test_what_is_not_struck_passes(self):
        self.proxy.plan(Fault("drop", "/b"), Fault("drop", 7))
        large = bytes(range(256)) * 4096
        self.assertEqual(self.post(b"one"), b"got one")
        self.assertEqual(self.post(large), b"got " + large)
        self.assertEqual((len(self.proxy.requests), self.proxy.struck), (2, 0))

    def test_a_drop_in_the_request_never_reaches_the_server(self):
        for where in (0, "body", "middle", -1):
            self.proxy.plan(Fault("drop", byte=where))
            with self.assertRaises((OSError, http.client.HTTPException)):
                self.post(b"x" * 1000)
            self.assertEqual(self.post(b"again"), b"got again")
            self.assertEqual(self.proxy.struck, 1)
        self.assertEqual(self.server.bodies, [b"again"] * 4)

    def test_a_drop_of_the_reply_comes_after_the_call(self):
        self.proxy.plan(Fault("drop", "/a", nth=1, where="reply"),
                        Fault("drop", "/c", where="request", byte="end"))
        self.assertEqual(self.post(b"first"), b"got first")
        for path in ("/a", "/c"):
            with self.assertRaises((OSError, http.client.HTTPException)):
                self.post(b"second", path)
        self.assertTrue(wait_until(lambda: len(self.server.bodies) >= 2))
        self.assertEqual(self.server.bodies[:2], [b"first", b"second"])

    def test_one_bit_is_flipped_where_it_was_said(self):
        self.proxy.plan(Fault("corrupt", 0, byte="body"), Fault("corrupt", 1, byte=-1, mask=0x80),
                        Fault("corrupt", 2, where="reply", byte="body"))
        self.assertEqual(self.post(b"abc"), b"got `bc")
        self.assertEqual(self.post(b"abc"), b"got ab\xe3")
        self.assertEqual(self.post(b"abc"), b"fot abc")

    def test_a_stall_ends_or_drops(self):
        self.proxy.plan(Fault("stall", 0, byte="middle", seconds=0.2),
                        Fault("stall", 1, byte="middle", seconds=0.2, then_drop=True))
        started = time.monotonic()
        self.assertEqual(self.post(b"abc"), b"got abc")
        self.assertGreaterEqual(time.monotonic() - started, 0.2)
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.post(b"abc")

    def test_a_duplicate_arrives_when_it_should(self):
        self.proxy.plan(Fault("duplicate", 0, after=1))
        self.assertEqual(self.post(b"one"), b"got one")
        self.assertEqual(self.server.bodies, [b"one"])
        self.assertEqual(self.post(b"two"), b"got two")
        self.assertTrue(wait_until(lambda: len(self.server.bodies) == 3))
        self.assertEqual(self.server.bodies, [b"one", b"two", b"one"])

    def test_a_kill_calls_its_action(self):
        called = []
        self.proxy.plan(Fault("kill", byte="middle", action=lambda: called.append(1)))
        with self.assertRaises((OSError, http.client.HTTPException)):
            self.post(b"abc")
        self.assertEqual(called, [1])


if __name__ == "__main__":
    octavo_testing.main()
