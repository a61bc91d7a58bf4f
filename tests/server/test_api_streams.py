"""Method: a client of the standard library alone holds a real server to streamed answers, and
what clients do to connections: leaving, half closing, sending slowly or too much."""

import http.client
import json
import pathlib
import resource
import socket
import sys
import threading
import time

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, GREEDY, PROMPT


class Streams(ApiTest):
    def stream(self, **body):
        """The events of a streamed request, the last being [DONE]; and the content type."""
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        connection.request("POST", "/generate", body=json.dumps(dict(body, stream=True)))
        reply = connection.getresponse()
        self.assertEqual(reply.status, 200)
        self.assertEqual(reply.getheader("Content-Type"), "text/event-stream")
        events = reply.read().decode().split("\n\n")
        self.assertEqual(events.pop(), "")
        self.assertTrue(all(e.startswith("data: ") and "\n" not in e for e in events))
        self.assertEqual(events.pop(), "data: [DONE]")
        return [json.loads(e[len("data: "):]) for e in events]

    def test_chunks_are_cumulative(self):
        whole = self.server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        chunks = self.stream(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        self.assertGreater(len(chunks), 10)
        for before, after in zip(chunks, chunks[1:]):
            self.assertTrue(after["text"].startswith(before["text"]))
            self.assertEqual(after["output_ids"][:len(before["output_ids"])], before["output_ids"])
            self.assertIsNone(before["meta_info"]["finish_reason"])
            self.assertEqual(len(before["meta_info"]["output_token_logprobs"]),
                             len(before["output_ids"]))
            self.assertEqual(before["meta_info"]["completion_tokens"], len(before["output_ids"]))
        last = chunks[-1]
        for key in ("text", "output_ids"):
            self.assertEqual(last[key], whole[key])
        for key in ("output_token_logprobs", "finish_reason"):
            self.assertEqual(last["meta_info"][key], whole["meta_info"][key])

    def test_stream_interval_thins_the_chunks(self):
        chunks = self.stream(text=PROMPT, sampling_params=dict(GREEDY, stream_interval=8))
        self.assertLessEqual(len(chunks), 4)
        self.assertEqual(len(chunks[-1]["output_ids"]), 24)

    def test_no_chunk_shows_a_part_of_a_stop_string(self):
        whole = self.server.generate(text=PROMPT, sampling_params=GREEDY)["text"]
        stop = whole[6:14]
        chunks = self.stream(text=PROMPT, sampling_params=dict(GREEDY, stop=stop))
        for chunk in chunks:
            self.assertTrue(whole[:whole.index(stop)].startswith(chunk["text"]), chunk["text"])
        self.assertEqual(chunks[-1]["text"], whole[:whole.index(stop)])

    def test_a_batch_interleaves_with_its_index(self):
        chunks = self.stream(input_ids=[[5], [6], [7]],
                             sampling_params={"max_new_tokens": 6, "ignore_eos": True})
        self.assertEqual({c["index"] for c in chunks}, {0, 1, 2})
        done = [c for c in chunks if c["meta_info"]["finish_reason"] is not None]
        self.assertEqual(sorted(c["index"] for c in done), [0, 1, 2])
        self.assertTrue(all(len(c["output_ids"]) == 6 for c in done))

    def test_an_abort_ends_the_stream(self):
        body = {"input_ids": [5], "rid": "s", "stream": True,
                "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        connection.request("POST", "/generate", body=json.dumps(body))
        reply = connection.getresponse()
        reply.read(100)
        self.post("/abort_request", {"rid": "s"})
        rest = reply.read().decode()
        self.assertTrue(rest.endswith("data: [DONE]\n\n"))
        last = json.loads(rest.split("\n\n")[-3][len("data: "):])
        self.assertEqual(last["meta_info"]["finish_reason"]["type"], "abort")


class IncrementalStreams(Streams):
    """The same server with --incremental-streaming-output: chunks are deltas."""

    flags = ("--incremental-streaming-output",)

    def test_chunks_are_cumulative(self):
        whole = self.server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        chunks = self.stream(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        self.assertEqual("".join(c["text"] for c in chunks), whole["text"])
        self.assertEqual(sum((c["output_ids"] for c in chunks), []), whole["output_ids"])
        self.assertEqual(
            sum((c["meta_info"]["output_token_logprobs"] for c in chunks), []),
            whole["meta_info"]["output_token_logprobs"])

    def test_stream_interval_thins_the_chunks(self):
        chunks = self.stream(text=PROMPT, sampling_params=dict(GREEDY, stream_interval=8))
        self.assertEqual(sum(len(c["output_ids"]) for c in chunks), 24)

    def test_no_chunk_shows_a_part_of_a_stop_string(self):
        whole = self.server.generate(text=PROMPT, sampling_params=GREEDY)["text"]
        stop = whole[6:14]
        chunks = self.stream(text=PROMPT, sampling_params=dict(GREEDY, stop=stop))
        self.assertEqual("".join(c["text"] for c in chunks), whole[:whole.index(stop)])

    def test_a_batch_interleaves_with_its_index(self):
        chunks = self.stream(input_ids=[[5], [6]],
                             sampling_params={"max_new_tokens": 6, "ignore_eos": True})
        for index in (0, 1):
            self.assertEqual(sum(len(c["output_ids"]) for c in chunks if c["index"] == index), 6)


class Connections(ApiTest):
    def raw(self, data, seconds=10):
        with socket.create_connection((self.server.host, int(self.server.port)), seconds) as sock:
            sock.sendall(data)
            received = b""
            while chunk := sock.recv(65536):
                received += chunk
            return received

    def test_two_hundred_at_once_without_keep_alive(self):
        results = []

        def request(i):
            results.append(self.server.call("POST", "/generate", {
                "input_ids": [5 + i], "sampling_params": {"max_new_tokens": 8,
                                                          "ignore_eos": True}}))

        threads = [threading.Thread(target=request, args=(i,)) for i in range(200)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        self.assertEqual([status for status, _ in results], [200] * 200)

    def test_many_open_connections(self):
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)  # Ours; the server raises its own.
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit[1], limit[1]))
        idle = [socket.create_connection((self.server.host, int(self.server.port)), 10)
                for _ in range(min(2000, limit[1] - 100))]
        try:
            self.assertEqual(self.get("/health"), (200, ""))
        finally:
            for sock in idle:
                sock.close()

    def test_a_body_that_comes_slowly(self):
        body = json.dumps({"input_ids": [5], "sampling_params": {"max_new_tokens": 2}}).encode()
        head = (f"POST /generate HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
                f"Content-Length: {len(body)}\r\n\r\n").encode()
        with socket.create_connection((self.server.host, int(self.server.port)), 10) as sock:
            for byte in head + body:
                sock.sendall(bytes([byte]))
                time.sleep(0.001)
            self.assertTrue(sock.recv(100).startswith(b"HTTP/1.1 200 OK\r\n"))

    def test_a_body_cut_short_is_dropped(self):
        with socket.create_connection((self.server.host, int(self.server.port)), 10) as sock:
            sock.sendall(b'POST /pause_generation HTTP/1.1\r\nContent-Length: 50\r\n\r\n{"mode"')
            sock.shutdown(socket.SHUT_WR)
            self.assertEqual(sock.recv(100), b"")
        self.assertFalse(self.get("/server_info")[1]["internal_states"][0]["paused"])

    def test_what_is_no_http(self):
        self.assertTrue(self.raw(b"\x00\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400"))
        self.assertTrue(self.raw(b"GET health HTTP/1.1\r\nConnection: close\r\n\r\n")
                        .startswith(b"HTTP/1.1 400"))
        self.assertTrue(self.raw(b"POST /generate HTTP/1.1\r\nContent-Length: x\r\n\r\n")
                        .startswith(b"HTTP/1.1 400"))


if __name__ == "__main__":
    octavo_testing.main()
