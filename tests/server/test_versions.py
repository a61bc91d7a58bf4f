"""Method: a real server of the early checkpoint, and updates to the trained one while requests that
demand a version wait, run and stream. A request is answered with tokens of weights that meet its
demand, all of them, or told 409 with both versions; what a stale prefix may and may not touch is read
from meta_info and /metrics."""

import json
import pathlib
import sys
import threading

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import GREEDY, PROMPT, ApiTest
from octavo_testing import BASE, DENSE

CONFLICT = {"object", "message", "type", "param", "code", "retryable", "demanded_weight_version",
            "weight_version"}
CHAT = {"messages": [{"role": "user", "content": "What is 3 + 4?"}], "max_tokens": 4}


class VersionTest(ApiTest):
    model = BASE

    def setUp(self):
        self.update(BASE, "4")

    def update(self, model, version, path="/update_weights_from_disk", **fields):
        status, reply = self.post(path, {"model_path": str(octavo_testing.ROOT / model),
                                         "weight_version": version, **fields})
        self.assertEqual(status, 200, reply)

    def conflict(self, status, reply, field, demanded, live):
        self.assertEqual(status, 409, reply)
        self.assertEqual(set(reply), CONFLICT)
        self.assertEqual((reply["object"], reply["type"], reply["code"], reply["retryable"]),
                         ("error", "WeightVersionConflict", 409, True))
        self.assertEqual((reply["param"], reply["demanded_weight_version"],
                          reply["weight_version"]), (field, demanded, live))
        self.assertIn(demanded, reply["message"])


class Demands(VersionTest):
    def test_every_route_answers_or_says_409(self):
        calls = (("/generate", {"text": PROMPT, "sampling_params": {"max_new_tokens": 4}}),
                 ("/v1/completions", {"prompt": PROMPT, "max_tokens": 4}),
                 ("/v1/chat/completions", CHAT))
        for path, body in calls:
            for demand in ({"exact_weight_version": "4"}, {"min_weight_version": 4},
                           {"min_weight_version": "3"}, {"min_weight_version": None}):
                status, reply = self.post(path, {**body, **demand})
                self.assertEqual(status, 200, reply)
            for field, version in (("exact_weight_version", "3"), ("min_weight_version", 5),
                                   ("exact_weight_version", "04")):
                for stream in (False, True):
                    status, reply = self.post(path, {**body, field: version, "stream": stream})
                    self.conflict(status, reply, field, str(version), "4")
            for wrong in ({"min_weight_version": "x"}, {"exact_weight_version": ""},
                          {"min_weight_version": 1, "exact_weight_version": 1}):
                self.assertEqual(self.post(path, {**body, **wrong})[0], 400)

    def test_a_demand_that_is_met_changes_no_bit(self):
        plain = self.server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True)
        exact = self.server.generate(text=PROMPT, sampling_params=GREEDY, return_logprob=True,
                                     exact_weight_version="4")
        self.assertEqual(plain["output_ids"], exact["output_ids"])
        self.assertEqual(plain["meta_info"]["output_token_logprobs"],
                         exact["meta_info"]["output_token_logprobs"])

    def test_a_batch_is_taken_whole_or_not_at_all(self):
        body = {"input_ids": [[5, 6], [7, 8]], "sampling_params": {"max_new_tokens": 2, "n": 2}}
        self.conflict(*self.post("/generate", {**body, "min_weight_version": 9}),
                      "min_weight_version", "9", "4")
        self.assertEqual(self.load(), 0)
        status, replies = self.post("/generate", {**body, "min_weight_version": 4})
        self.assertEqual((status, len(replies)), (200, 4))

    def test_an_update_ends_what_demands_the_old_version(self):
        """In a batch of three kinds; the tokens of the ended one are all of version 4."""
        exact = self.start(2, tokens=3000, exact_weight_version="4")
        least = self.start(1, tokens=200, min_weight_version="4")
        free = self.start(1, tokens=200)
        self.await_running(3)
        self.update(DENSE, "5", flush_cache=False)
        for status, reply in exact():
            self.assertEqual(status, 200, reply)
            meta = reply["meta_info"]
            self.assertEqual(meta["finish_reason"],
                             {"type": "abort", "status_code": 409,
                              "message": "weight version: demanded exactly 4, 5 is live",
                              "err_type": "WeightVersionConflict"})
            self.assertEqual({span["version"] for span in meta["weight_versions"]}, {"4"})
            self.assertEqual(len(reply["output_ids"]), meta["completion_tokens"])
            self.assertFalse(meta["mixed_context"])
        for collect in (least, free):
            for status, reply in collect():
                self.assertEqual((status, reply["meta_info"]["finish_reason"]["type"]),
                                 (200, "length"))
        self.assertEqual(self.load(), 0)

    def test_what_was_held_is_told_when_the_update_comes(self):
        self.post("/pause_generation", {"mode": "retract"})
        collect = self.start(1, tokens=4, held=True, exact_weight_version="4")
        self.conflict(*self.post("/generate", {"input_ids": [5], "min_weight_version": 5}),
                      "min_weight_version", "5", "4")  # At once, though an update may be near.
        self.update(DENSE, "5")
        ((status, reply),) = collect()
        self.conflict(status, reply, "exact_weight_version", "4", "5")

    def test_a_stream_ends_with_the_last_chunk_of_its_version(self):
        lines = []

        def read():
            _, text = self.server.call("POST", "/generate", {
                "input_ids": [5, 6], "stream": True, "exact_weight_version": "4",
                "sampling_params": {"max_new_tokens": 3000, "ignore_eos": True}})
            lines.extend(text if isinstance(text, list) else text.split("\n\n"))

        thread = threading.Thread(target=read)
        thread.start()
        self.await_running(1)
        self.post("/update_weight_version", {"new_version": "5", "abort_all_requests": False})
        thread.join(60)
        events = [line[6:] for line in lines if line.startswith("data: ")]
        self.assertEqual(events[-1], "[DONE]")
        last = json.loads(events[-2])
        finish = last["error"] if "error" in last else last["meta_info"]["finish_reason"]
        self.assertEqual(finish.get("code", finish.get("status_code")), 409)


class StalePrefixes(VersionTest):
    flags = ("--stale-prefix-versions", "1")
    body = {"text": PROMPT * 4, "sampling_params": {"max_new_tokens": 8, "temperature": 0},
            "return_logprob": True}

    def counter(self, name):
        lines = self.get("/metrics")[1].splitlines()
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name + "{"))

    def ask(self, **fields):
        reply = self.server.generate(**self.body, **fields)
        meta = reply["meta_info"]
        return (meta["cached_tokens_stale"], meta["mixed_context"],
                [x[0] for x in meta["output_token_logprobs"]])

    def test_they_serve_one_version_more_and_are_counted(self):
        self.ask()
        before = self.counter("octavo:stale_cached_tokens_total")
        self.update(DENSE, "5", flush_cache=False)
        exact = self.ask(exact_weight_version="5")
        self.assertEqual(exact[:2], (0, False))
        fresh = self.ask(stale_prefix_versions=0)  # From the cache of version 5.
        self.assertEqual(fresh, exact)
        self.update(BASE, "6", flush_cache=False)
        stale, mixed, logprobs = self.ask()
        self.assertGreater(stale, 0)
        self.assertTrue(mixed)
        self.assertEqual(self.counter("octavo:stale_cached_tokens_total"), before + stale)
        clean = self.ask(stale_prefix_versions=0)
        self.assertEqual(clean[:2], (0, False))
        self.assertNotEqual(clean[2], logprobs)
        self.assertEqual(self.ask()[1:], clean[1:])  # A prefix of the live weights comes first.
        status, reply = self.post("/generate", {**self.body, "stale_prefix_versions": 2})
        self.assertEqual(status, 400)
        self.assertIn("--stale-prefix-versions", json.dumps(reply))


class NoStalePrefixes(VersionTest):
    def test_the_switch_is_off(self):
        body = StalePrefixes.body
        self.server.generate(**body)
        self.update(DENSE, "5", flush_cache=False)
        meta = self.server.generate(**body)["meta_info"]
        self.assertEqual((meta["cached_tokens"], meta["cached_tokens_stale"],
                          meta["mixed_context"]), (0, 0, False))
        self.assertEqual(self.post("/generate", {**body, "stale_prefix_versions": 1})[0], 400)


if __name__ == "__main__":
    octavo_testing.main()
