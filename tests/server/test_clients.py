"""Method: the requests that clients written for another server send, as they were recorded from
the unmodified programs (tests/data/server/client_traffic.jsonl), are replayed against a real server,
and the answers are read as those programs read them: the `openai` Python package, and SGLang's
benchmark/gsm8k/bench_sglang.py and bench_serving.py (sglang, sglang-oai, sglang-oai-chat)."""

import http.client
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from octavo_testing import DENSE, ROOT
from openai_testing import CHAT, OpenAiTest, refused

TRAFFIC = ROOT / "tests" / "data" / "server" / "client_traffic.jsonl"


class Clients(OpenAiTest):
    def replay(self, client):
        """Sends what the client sent, on one connection unless it closes it; yields
        (path, body, status, text)."""
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        requests = [json.loads(line) for line in TRAFFIC.read_text().splitlines()]
        requests = [r for r in requests if r["client"].split()[0] == client]
        self.assertGreaterEqual(len(requests), 3)
        for request in requests:
            body = request["body"]
            connection.request(request["method"], request["path"], headers=request["headers"],
                               body=None if body is None else json.dumps(body))
            reply = connection.getresponse()
            text = reply.read().decode()
            with self.subTest(request=json.dumps(request)[:200]):
                yield request["path"], body, reply.status, text

    def test_openai(self):
        for path, body, status, text in self.replay("openai"):
            if (body or {}).get("response_format", {}).get("type") == "json_object":
                refused(self, status, json.loads(text), "response_format")
                continue
            self.assertEqual(status, 200, text)
            if path == "/v1/models":
                self.assertEqual(json.loads(text)["object"], "list")
            elif body.get("stream"):
                self.check_stream(body, self.events(text))
            else:
                reply = json.loads(text)
                self.check_answer(reply, path, choices=self.num_choices(body))
                self.assertEqual(reply["model"], body["model"])

    def num_choices(self, body):
        prompt = body.get("prompt")
        is_batch = isinstance(prompt, list) and isinstance(prompt[0], str)
        return (len(prompt) if is_batch else 1) * body.get("n", 1)

    def check_stream(self, body, chunks):
        self.check_usage(chunks.pop()["usage"])
        ends = [c["choices"][0] for c in chunks if c["choices"][0]["finish_reason"]]
        self.assertEqual(sorted(c["index"] for c in ends), list(range(self.num_choices(body))))
        for chunk in chunks:
            self.assertIsInstance(chunk["created"], int)
            self.assertEqual(chunk["model"], body["model"])

    def test_bench_sglang(self):
        for path, _, status, text in self.replay("bench_sglang.py"):
            self.assertEqual(status, 200, text)
            reply = json.loads(text)
            if path == "/get_model_info":
                self.assertEqual(reply["model_path"], DENSE)
            else:
                self.assertIn("####", reply["text"])
                self.assertNotIn("Question", reply["text"])
                self.assertGreater(reply["meta_info"]["completion_tokens"], 0)

    def test_bench_serving(self):
        texts = {}
        for path, body, status, text in self.replay("bench_serving.py"):
            self.assertEqual(status, 200, text)
            if path == "/v1/models":
                self.assertEqual(json.loads(text)["data"][0]["id"], DENSE)
            elif path == "/server_info":
                state = json.loads(text)["internal_states"][0]
                self.assertIsInstance(state["avg_spec_accept_length"], float)
            else:
                texts[path] = self.read_stream(path, body, self.events(text))
        self.assertEqual(set(texts), {"/generate", "/v1/completions", CHAT})
        self.assertEqual(texts["/generate"], texts["/v1/completions"])

    def read_stream(self, path, body, events):
        """The text, as the meter sums it: an event counts when it has some."""
        text, timed = "", 0
        for event in events:
            if path == "/generate":
                timed += bool(event["text"])
                text = event["text"]
                tokens = event["meta_info"]["completion_tokens"]
                continue
            choice = event["choices"][0]
            new = choice["delta"].get("content") if path == CHAT else choice["text"]
            timed += bool(new)
            text += new or ""
            tokens = (event.get("usage") or {}).get("completion_tokens", 8)
        self.assertGreater(timed, 1)
        self.assertEqual(tokens, 8)
        self.assertTrue(text)
        return text


if __name__ == "__main__":
    octavo_testing.main()
