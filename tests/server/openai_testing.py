"""What the tests of OpenAI's endpoints share: calls, streams, and the members of answers."""

import http.client
import json

from api_testing import ApiTest, object_error

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
USAGE = {"prompt_tokens", "completion_tokens", "total_tokens", "prompt_tokens_details",
         "reasoning_tokens"}


def refused(test, status, reply, name=""):
    """The body of a value that these endpoints refuse."""
    object_error(test, status, reply)
    test.assertEqual(reply["type"], "BadRequestError")
    test.assertIn(name, reply["message"])


def malformed(test, status, reply, name=""):
    """The body of a request that is not well formed."""
    object_error(test, status, reply)
    test.assertEqual(reply["type"], "Bad Request")
    test.assertIn(name, reply["message"])


METADATA = {"weight_version": "0", "recipe": "serving-1/bf16", "emulated": False}


class OpenAiTest(ApiTest):
    def call(self, path, **body):
        status, reply = self.post(path, body)
        self.assertEqual(status, 200, reply)
        return reply

    def stream(self, path, **body):
        """The events of a streamed request but [DONE]."""
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        connection.request("POST", path, body=json.dumps(dict(body, stream=True)),
                           headers={"Content-Type": "application/json"})
        reply = connection.getresponse()
        text = reply.read().decode()
        self.assertEqual(reply.status, 200, text)
        self.assertEqual(reply.getheader("Content-Type"), "text/event-stream")
        return self.events(text)

    def events(self, text):
        events = text.split("\n\n")
        self.assertEqual(events.pop(), "")
        self.assertTrue(all(e.startswith("data: ") and "\n" not in e for e in events))
        self.assertEqual(events.pop(), "data: [DONE]")
        return [json.loads(e[len("data: "):]) for e in events]

    def check_answer(self, reply, path, choices=1):
        """Members and types of a whole answer."""
        chat = path == CHAT
        self.assertEqual(set(reply), {"id", "object", "created", "model", "choices", "usage",
                                      "metadata"})
        self.assertEqual(reply["object"], "chat.completion" if chat else "text_completion")
        self.assertIsInstance(reply["created"], int)
        self.assertEqual(reply["metadata"], METADATA)
        self.assertEqual([c["index"] for c in reply["choices"]], list(range(choices)))
        for choice in reply["choices"]:
            self.assertLessEqual({"index", "message" if chat else "text", "logprobs",
                                  "finish_reason", "matched_stop"}, set(choice))
            self.assertIn(choice["finish_reason"], ("stop", "length", "abort"))
            if chat:
                self.assertEqual(set(choice["message"]),
                                 {"role", "content", "reasoning_content", "tool_calls"})
                self.assertEqual(choice["message"]["role"], "assistant")
                self.assertIsInstance(choice["message"]["content"], str)
        self.check_usage(reply["usage"])

    def check_usage(self, usage):
        self.assertEqual(set(usage), USAGE)
        self.assertEqual(usage["total_tokens"],
                         usage["prompt_tokens"] + usage["completion_tokens"])
        self.assertEqual(set(usage["prompt_tokens_details"]), {"cached_tokens"})
