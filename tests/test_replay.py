"""Method: 200 sampled requests of every kind are recorded from a server under load and replayed by
`octavo replay`, one at a time and in batches, on the same server and on a fresh one with another
instruction set: every token and logprob must come back bit for bit. Then records are falsified and
weights are changed: each must be found or refused by name."""

import concurrent.futures
import copy
import json
import random
import threading
import time
import unittest

import octavo_testing
from octavo_testing import BASE, DENSE, Server, folder, run

PROMPT = "Question: {} has {} apples and buys {} more. How many apples now?\nAnswer:"
NAMES = ["Tom", "Mia", "Noah", "Zoe"]
VOCABULARY = 690
ONE_THREAD = ("--threads", "1")  # A team of threads that share busy cores with others is slow.


def request(rng, i):
    """One of the kinds of requests, drawn from `rng`; None for stream means no stream."""
    sampling = {"max_new_tokens": rng.choice([1, 8, 24, 40]), "temperature": rng.choice([0.5, 0.9, 1.3])}
    body = {"sampling_params": sampling}
    if rng.random() < 0.5:
        body["text"] = PROMPT.format(rng.choice(NAMES), rng.randrange(90), rng.randrange(90))
    else:
        body["input_ids"] = [rng.randrange(3, VOCABULARY) for _ in range(rng.choice([1, 7, 60, 300]))]
    if rng.random() < 0.9:
        body["return_logprob"] = True
    kind = i % 10
    if kind == 1:
        sampling.update(top_k=20, top_p=0.9, min_p=0.01)
    elif kind == 2:
        sampling.update(frequency_penalty=0.3, presence_penalty=-0.2, repetition_penalty=1.15)
    elif kind == 3:
        sampling.update(stop=["Question", "\n"], no_stop_trim=True)
    elif kind == 4:
        sampling.update(min_new_tokens=1, stop_token_ids=[9], logit_bias={"17": 2.5, "5": -0.1})
    elif kind == 5:
        body.update(return_logprob=True, logprob_start_len=0, top_logprobs_num=3,
                    token_ids_logprob=[1, 5])
    elif kind == 6:
        sampling.update(temperature=0, ignore_eos=True)
    elif kind == 7:
        sampling.update(n=3)
    elif kind == 8:
        sampling.update(max_new_tokens=0)
        body.update(return_logprob=True, logprob_start_len=0)
    elif kind == 9:
        sampling.update(sampling_seed=rng.randrange(2**63), ignore_eos=True)
        body["stream"] = True
    return body


def last_event(text):
    """The finished reply of a stream."""
    events = [line[6:] for line in text.split("\n") if line.startswith("data: ")]
    assert events[-1] == "[DONE]"
    return json.loads(events[-2])


def record(server, count, seed=1):
    """`count` replies (lists count once) while other requests run; as lines of the file."""
    rng = random.Random(seed)
    bodies = [request(rng, i) for i in range(count)]

    def send(body):
        status, reply = server.call("POST", "/generate", body, timeout=300)
        assert status == 200, reply
        return last_event(reply) if body.get("stream") else reply

    done = threading.Event()

    def load():
        while not done.is_set():
            server.generate(input_ids=[3, 4, 5], sampling_params={"max_new_tokens": 40,
                                                                  "ignore_eos": True})

    noise = [threading.Thread(target=load) for _ in range(4)]
    for thread in noise:
        thread.start()
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(send, bodies))
    done.set()
    for thread in noise:
        thread.join()
    return replies


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def first_reply(line):
    return line[0] if isinstance(line, list) else line


class Replay(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.work = cls.enterClassContext(folder())
        cls.server = cls.enterClassContext(Server(DENSE, *ONE_THREAD, "--return-replay"))
        cls.lines = record(cls.server, 200)
        cls.count = sum(len(line) if isinstance(line, list) else 1 for line in cls.lines)
        cls.file = write(cls.work / "rollouts.jsonl", cls.lines)

    def replay(self, path, *flags, url=None, code=0):
        done = run("replay", path, "--url", url or self.server.url, *flags, check=False)
        self.assertEqual(done.returncode, code, done.stdout + done.stderr)
        return done

    def report(self, path, *flags, **kwargs):
        return json.loads(self.replay(path, "--json", *flags, **kwargs).stdout)

    def falsified(self, change):
        """A file in which `change` has edited the first reply that it accepts, that line's number, and
        how many replies there are."""
        lines = copy.deepcopy(self.lines[:50])
        for number, line in enumerate(lines, 1):
            if change(first_reply(line)):
                count = sum(len(line) if isinstance(line, list) else 1 for line in lines)
                return write(self.work / "falsified.jsonl", lines), number, count
        self.fail("no reply to falsify")

    def test_all_come_back_bit_for_bit_alone_and_in_batches(self):
        for parallel in (1, 64):
            report = self.report(self.file, "--parallel", parallel)
            self.assertEqual((report["same"], report["different"], report["replies"]),
                             (self.count, 0, self.count))
            self.assertIsNone(report["first_difference"])
            self.assertEqual(report["left_out"], [])
            self.assertEqual(report["without_digest"], 0)
            self.assertGreater(report["logprobs"], report["tokens"])
        self.assertGreater(self.count, 230)  # n = 3 among the 200.

    def test_another_instruction_set_gives_the_same_bits(self):
        with Server(DENSE, "--isa", "avx2", "--threads", "1", "--disable-radix-cache") as other:
            report = self.report(write(self.work / "some.jsonl", self.lines[:40]), url=other.url)
        self.assertEqual(report["different"], 0)

    def test_the_record_is_a_request_that_gives_the_same_reply(self):
        line = first_reply(self.lines[0])
        again = self.server.generate(**line["meta_info"]["replay"]["request"])
        self.assertEqual(again["output_ids"], line["output_ids"])
        live = self.server.call("GET", "/octavo/v1/digest")[1]["digest"]
        spans = line["meta_info"]["replay"]["weights"]
        self.assertEqual(spans, [{"version": "0", "digest": live, "tokens": len(line["output_ids"])}])

    def test_a_flipped_bit_of_a_logprob_is_found(self):
        place = {}

        def flip(reply):
            logprobs = reply["meta_info"].get("output_token_logprobs") or []
            if len(logprobs) < 5:
                return False
            place["value"] = logprobs[4][0]
            logprobs[4][0] = place["value"] * (1 + 2**-23) or 1e-45  # One unit in the last place.
            place["rid"] = reply["meta_info"]["id"]
            return True

        path, line, count = self.falsified(flip)
        report = self.report(path, code=1)
        self.assertEqual((report["same"], report["different"]), (count - 1, 1))
        first = report["first_difference"]
        self.assertEqual((first["line"], first["what"], first["position"], first["rid"]),
                         (line, "output_token_logprobs", 4, place["rid"]))
        self.assertNotEqual(first["recorded"], first["replayed"])
        text = self.replay(path, code=1).stdout
        self.assertIn(f"line {line}", text)
        self.assertIn("output_token_logprobs[4]: recorded", text)

    def test_another_seed_is_found(self):
        def reseed(reply):
            sampling = reply["meta_info"]["replay"]["request"]["sampling_params"]
            if sampling["temperature"] < 0.8 or len(reply["output_ids"]) < 20:
                return False
            sampling["sampling_seed"] += 1
            return True

        path, line, _ = self.falsified(reseed)
        report = self.report(path, "--parallel", 64, code=1)
        self.assertEqual((report["different"], report["first_difference"]["line"]), (1, line))

    def test_another_token_is_found(self):
        def change(reply):
            if len(reply["output_ids"]) < 3:
                return False
            reply["output_ids"][2] = (reply["output_ids"][2] + 1) % VOCABULARY
            return True

        path, line, _ = self.falsified(change)
        first = self.report(path, code=1)["first_difference"]
        self.assertEqual((first["line"], first["what"], first["position"]), (line, "output_ids", 2))

    def test_a_server_with_other_weights_or_another_recipe_is_refused(self):
        for args, word in (((BASE,), "digest"), ((DENSE, "--format", "fp8"), "recipe"),
                           ((DENSE, "--kv-cache-dtype", "fp8_e4m3"), "recipe"),
                           ((DENSE, "--weight-version", "7"), "--any-version")):
            with Server(*args, "--threads", "1") as other:
                done = self.replay(self.file, url=other.url, code=2)
                self.assertIn(word, done.stderr)
                self.assertIn(f"{self.count} of {self.count} replies cannot be replayed", done.stderr)
                self.replay(self.file, "--matching", url=other.url, code=2)
                if word == "--any-version":
                    some = write(self.work / "some.jsonl", self.lines[:20])
                    self.assertEqual(self.report(some, "--any-version", url=other.url)["different"], 0)

    def test_a_pair_of_request_and_response_needs_no_record(self):
        body = {"text": PROMPT.format("Tom", 3, 4), "return_logprob": True,
                "sampling_params": {"max_new_tokens": 30, "ignore_eos": True}}
        reply = self.server.generate(**body)
        del reply["meta_info"]["replay"]
        path = write(self.work / "pair.jsonl", [{"request": body, "response": reply}])
        report = self.report(path)
        self.assertEqual((report["same"], report["without_digest"]), (1, 1))
        self.assertIn("record with return_replay",
                      self.replay(write(path, [reply]), code=2).stderr)

    def test_broken_files_are_refused_by_line(self):
        path = self.work / "broken.jsonl"
        good = json.dumps(self.lines[0])
        for text, word in ((good + "\nnot json\n", "line 2"), ("", "got none"),
                           ("\n\n[]\n", "got none"), (good[:-3], "line 1")):
            path.write_text(text)
            self.assertIn(word, self.replay(path, code=2).stderr)
        self.replay(self.work / "missing.jsonl", code=2)
        self.assertEqual(run("replay", self.file, "--url", "http://127.0.0.1:1", check=False).returncode, 1)


class Updates(unittest.TestCase):
    """What spans two versions of the weights, and what is aborted."""

    def test_each_server_replays_its_part_of_a_reply(self):
        with folder() as work, Server(BASE, *ONE_THREAD) as server:
            replies = []

            def send(i):
                replies.append(server.generate(
                    input_ids=[5 + i, 6, 7], return_logprob=True, logprob_start_len=0,
                    return_replay=True,
                    sampling_params={"max_new_tokens": 800, "ignore_eos": True}))

            threads = [threading.Thread(target=send, args=(i,)) for i in range(4)]
            for thread in threads:
                thread.start()
            time.sleep(0.2)
            run("push", DENSE, "--to", server.url, "--weight-version", "1")
            for thread in threads:
                thread.join()
            spans = [reply["meta_info"]["replay"]["weights"] for reply in replies]
            self.assertTrue(all(len(span) == 2 for span in spans), spans)
            self.assertEqual({span[1]["digest"] for span in spans},
                             {server.call("GET", "/octavo/v1/digest")[1]["digest"]})
            path = write(work / "spans.jsonl", replies)
            refused = run("replay", path, "--url", server.url, check=False)
            self.assertEqual(refused.returncode, 2)
            self.assertIn("of which a server holds one at a time", refused.stderr)
            counted = 0
            with Server(BASE, *ONE_THREAD) as old:
                for url in (server.url, old.url):
                    report = octavo_testing.run_json("replay", path, "--url", url, "--matching")
                    self.assertEqual((report["same"], report["different"]), (4, 0))
                    counted += report["tokens"]
            self.assertEqual(counted, 4 * 800)

    def test_a_mixed_context_is_never_replayed(self):
        with folder() as work, Server(DENSE, *ONE_THREAD) as server:
            replies = []
            thread = threading.Thread(target=lambda: replies.append(server.generate(
                input_ids=[5, 6, 7], return_replay=True,
                sampling_params={"max_new_tokens": 2000, "ignore_eos": True})))
            thread.start()
            time.sleep(0.3)
            run("push", DENSE, "--to", server.url, "--in-flight", "in_place")
            thread.join()
            self.assertTrue(replies[0]["meta_info"]["replay"]["mixed_context"])
            path = write(work / "mixed.jsonl", replies)
            for flags in ((), ("--matching", "--any-version")):
                refused = run("replay", path, "--url", server.url, *flags, check=False)
                self.assertEqual(refused.returncode, 2)
                self.assertIn("in_place", refused.stderr)

    def test_the_beginning_that_an_aborted_reply_is_comes_back(self):
        with folder() as work, Server(DENSE, *ONE_THREAD, "--return-replay") as server:
            replies = []
            thread = threading.Thread(target=lambda: replies.append(server.generate(
                rid="cut", input_ids=[5, 6, 7], return_logprob=True,
                sampling_params={"max_new_tokens": 3000, "ignore_eos": True})))
            thread.start()
            time.sleep(0.5)
            server.call("POST", "/abort_request", {"rid": "cut"})
            thread.join()
            self.assertEqual(replies[0]["meta_info"]["finish_reason"]["type"], "abort")
            path = write(work / "cut.jsonl", replies)
            report = octavo_testing.run_json("replay", path, "--url", server.url)
            self.assertEqual((report["same"], report["tokens"]),
                             (1, len(replies[0]["output_ids"])))
            self.assertGreater(report["tokens"], 0)


class Chat(unittest.TestCase):
    def test_chat_completions_are_replayed_by_their_ids(self):
        with folder() as work, Server(DENSE, *ONE_THREAD) as server:
            body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "max_tokens": 20,
                    "input_ids": [5, 6, 7, 8], "logprobs": True, "n": 2, "return_meta_info": True,
                    "return_replay": True, "temperature": 0.8}
            status, reply = server.call("POST", "/v1/chat/completions", body)
            self.assertEqual(status, 200, reply)
            path = write(work / "chat.jsonl", [reply])
            report = octavo_testing.run_json("replay", path, "--url", server.url)
            self.assertEqual((report["same"], report["replies"]), (2, 2))
            del body["return_meta_info"]
            status, refused = server.call("POST", "/v1/chat/completions", body)
            self.assertEqual(status, 400)
            self.assertIn("return_meta_info", refused["message"])


if __name__ == "__main__":
    octavo_testing.main()
