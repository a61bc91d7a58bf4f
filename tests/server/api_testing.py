"""What the tests of the HTTP API share: a server a class, the bodies of refusals, and buckets."""

import pathlib
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from octavo_testing import DENSE, Server

PROMPT = "Question: Tom has 3 apples and buys 4 more. How many apples does Tom have now?\nAnswer:"
ONE_THREAD = ("--threads", "1")  # A team of threads that share busy cores with others is slow.
GREEDY = {"temperature": 0, "max_new_tokens": 24, "ignore_eos": True}
VOCABULARY = 690
EOS = 2
CONTEXT = 4096


def object_error(test, status, reply, code=400):
    """The body of malformed requests, for every path."""
    test.assertEqual(status, code, reply)
    test.assertEqual(set(reply), {"object", "message", "type", "param", "code"})
    test.assertEqual((reply["object"], reply["param"], reply["code"]), ("error", None, code))
    test.assertTrue(reply["message"])


def value_error(test, status, reply):
    """The body of a refused value."""
    test.assertEqual(status, 400, reply)
    test.assertEqual(set(reply), {"error"})
    test.assertEqual(set(reply["error"]), {"message"})


def weight_error(test, status, reply, name=""):
    """The body of an update from disk that failed."""
    test.assertEqual(status, 400, reply)
    test.assertEqual(set(reply), {"success", "message", "num_paused_requests"})
    test.assertIs(reply["success"], False)
    test.assertEqual(reply["num_paused_requests"], 0)
    test.assertIn(name, reply["message"])


class ApiTest(unittest.TestCase):
    """One server of the BF16 model for all tests of a class; each leaves it idle and as it was."""

    model = DENSE
    flags = ()

    @classmethod
    def setUpClass(cls):
        cls.server = Server(cls.model, *ONE_THREAD, *cls.flags)

    @classmethod
    def tearDownClass(cls):
        code = cls.server.stop()
        if code != 0:
            raise AssertionError(f"exit code {code}\n" + "".join(cls.server.lines))

    def tearDown(self):
        self.post("/continue_generation", {})
        self.post("/abort_request", {"abort_all": True})

    def get(self, path):
        return self.server.call("GET", path)

    def post(self, path, body=None):
        return self.server.call("POST", path, body)

    def load(self):
        """Running plus waiting requests."""
        loads = self.get("/v1/loads")[1]["loads"]
        return sum(x["num_running_reqs"] + x["num_waiting_reqs"] for x in loads)

    def await_load(self, wanted, seconds=10):
        deadline = time.monotonic() + seconds
        while self.load() != wanted:
            self.assertLess(time.monotonic(), deadline, f"load {self.load()}, wanted {wanted}")
            time.sleep(0.01)

    def version(self):
        return self.get("/get_weight_version")[1]["weight_version"]

    def fingerprint(self):
        """Ids and logprobs of a greedy request: any change of the weights that matters shows."""
        reply = self.server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        return reply["output_ids"], [x[0] for x in reply["meta_info"]["output_token_logprobs"]]

    def await_running(self, count, seconds=10):
        deadline = time.monotonic() + seconds
        while self.get("/v1/loads")[1]["aggregate"]["total_running_reqs"] < count:
            self.assertLess(time.monotonic(), deadline, f"wanted {count} running requests")
            time.sleep(0.005)

    def start(self, count=1, tokens=2000, held=False, **fields):
        """`count` requests that run (or are held), one thread each; returns a collector."""
        replies = [None] * count

        def request(i):
            replies[i] = self.server.call("POST", "/generate", {
                "input_ids": [5 + i, 6, 7], "return_logprob": True,
                "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}, **fields})

        threads = [threading.Thread(target=request, args=(i,)) for i in range(count)]
        for thread in threads:
            thread.start()
        if held:
            self.await_load(count)
        else:
            self.await_running(count)

        def collect():
            for thread in threads:
                thread.join(120)
            return replies

        return collect
