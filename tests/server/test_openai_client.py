"""Method: the requests that the `openai` Python package sends, as recorded from openai 3.54.0
(tests/data/server/openai_client.jsonl), are replayed against a real server on one connection, and
the answers have what its parser looks for."""

import http.client
import json
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from octavo_testing import ROOT
from openai_testing import OpenAiTest, refused

TRAFFIC = ROOT / "tests" / "data" / "server" / "openai_client.jsonl"


class OpenAiClient(OpenAiTest):
    def test_every_request_is_answered_in_the_form_it_parses(self):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        requests = [json.loads(line) for line in TRAFFIC.read_text().splitlines()]
        self.assertGreater(len(requests), 10)
        for request in requests:
            body = request["body"]
            with self.subTest(request=json.dumps(request)[:200]):
                connection.request(request["method"], request["path"], headers=request["headers"],
                                   body=None if body is None else json.dumps(body))
                reply = connection.getresponse()
                self.check(request["path"], body or {}, reply.status, reply.read().decode())

    def check(self, path, body, status, text):
        if body.get("response_format", {}).get("type") == "json_object":
            refused(self, status, json.loads(text), "response_format")
            return
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


if __name__ == "__main__":
    octavo_testing.main()
