"""Method: test T1 of the rollout API. A client of the standard library alone holds every endpoint of a
real server against docs/api.md: status, keys and types of each answer, each refusal with the body
that frameworks know, and what must hold while requests run: aborts with partial output, the three
pause modes, the flush rule, weight updates that succeed whole or change nothing."""

import http.client
import json
import pathlib
import re
import resource
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from octavo_testing import BASE, DENSE, ROOT, Server, folder

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


class Reports(ApiTest):
    def test_health_is_200_and_empty(self):
        for path in ("/health", "/health_generate"):
            self.assertEqual(self.get(path), (200, ""))
        self.assertEqual(self.server.call("GET", "/health", {}), (200, ""))  # A body is ignored.
        for path in ("/", "/ping"):
            self.assertEqual(self.get(path)[0], 200)

    def test_model_info(self):
        status, info = self.get("/model_info")
        self.assertEqual(status, 200)
        self.assertEqual(self.get("/get_model_info"), (200, info))
        self.assertEqual(info, {
            "model_path": DENSE, "tokenizer_path": DENSE, "is_generation": True,
            "preferred_sampling_params": None, "weight_version": "0",
            "has_image_understanding": False, "has_audio_understanding": False,
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]})

    def test_server_info_has_what_each_framework_reads(self):
        status, info = self.get("/server_info")
        self.assertEqual(status, 200)
        self.assertEqual(set(self.get("/get_server_info")[1]), set(info))
        ones = ("tp_size", "pp_size", "dp_size", "ep_size", "moe_dp_size", "num_gpus", "nnodes",
                "gpu_id_step")
        for key in ones:
            self.assertEqual(info[key], 1, key)
        for key, value in {"node_rank": 0, "base_gpu_id": 0, "disaggregation_mode": "null",
                           "encoder_only": False, "enable_memory_saver": False,
                           "enable_return_routed_experts": False, "model_path": DENSE,
                           "served_model_name": DENSE, "host": "127.0.0.1",
                           "port": int(self.server.port), "kv_events": None,
                           "weight_version": "0", "context_length": CONTEXT,
                           "vocab_size": VOCABULARY}.items():
            self.assertEqual(info[key], value, key)
        for key, kind in {"disaggregation_bootstrap_port": int, "dtype": str, "version": str,
                          "load_balance_method": str, "max_running_requests": int,
                          "max_total_tokens": int, "max_prefill_tokens": int,
                          "max_total_num_tokens": int, "max_req_input_len": int,
                          "internal_states": list}.items():
            self.assertIsInstance(info[key], kind, key)
        self.assertIn("avg_spec_accept_length", info["internal_states"][0])

    def test_models(self):
        status, models = self.get("/v1/models")
        self.assertEqual(status, 200)
        self.assertEqual(models["object"], "list")
        (card,) = models["data"]
        self.assertEqual(set(card), {"id", "object", "created", "owned_by", "root", "parent",
                                     "max_model_len"})
        self.assertEqual((card["id"], card["object"], card["max_model_len"]),
                         (DENSE, "model", CONTEXT))
        self.assertEqual(self.get("/v1/models/" + DENSE), (200, card))
        status, reply = self.get("/v1/models/other")
        self.assertEqual(status, 404)
        self.assertEqual({k: reply["error"][k] for k in ("type", "param", "code")},
                         {"type": "invalid_request_error", "param": "model",
                          "code": "model_not_found"})

    def test_loads(self):
        status, loads = self.get("/v1/loads")
        self.assertEqual(status, 200)
        self.assertRegex(loads["timestamp"], r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d")
        self.assertEqual(set(loads["aggregate"]), {"total_tokens", "total_reqs",
                                                   "total_running_reqs", "total_waiting_reqs"})
        (rank,) = loads["loads"]
        core = {"timestamp", "dp_rank", "num_running_reqs", "num_waiting_reqs",
                "num_waiting_uncached_tokens", "num_used_tokens", "num_total_tokens",
                "max_total_num_tokens", "max_running_requests", "token_usage", "gen_throughput",
                "cache_hit_rate", "utilization"}
        self.assertEqual(set(rank), core)
        (rank,) = self.get("/v1/loads?include=memory,queues&dp_rank=0")[1]["loads"]
        self.assertEqual(set(rank), core | {"memory", "queues"})
        (rank,) = self.get("/v1/loads?include=all")[1]["loads"]
        self.assertEqual(set(rank), core | {"memory", "spec", "lora", "disagg", "queues"})
        for query in ("include=nope", "dp_rank=1", "format=xml"):
            object_error(self, *self.get("/v1/loads?" + query))
        status, text = self.get("/v1/loads?format=prometheus")
        self.assertEqual(status, 200)
        self.assertIn('sglang:num_running_reqs{model_name="models/abacus-dense"', text)

    def test_weight_version_under_both_names(self):
        for path in ("/get_weight_version", "/weight_version"):
            self.assertEqual(self.get(path), (200, {"weight_version": "0"}))

    def test_unknown_paths_and_methods(self):
        for path in ("/nope", "/generate/", "/update_weights_from_ipc", "/load_lora_adapter",
                     "/unload_lora_adapter", "/encode", "/classify", "/v1/embeddings",
                     "/set_internal_state", "/workers"):
            self.assertEqual(self.post(path, {}), (404, {"detail": "Not Found"}))
        for method, path in (("GET", "/generate"), ("DELETE", "/generate"), ("POST", "/health"),
                             ("POST", "/v1/models"), ("GET", "/abort_request"),
                             ("PUT", "/flush_cache"), ("GET", "/pause_generation"),
                             ("GET", "/update_weights_from_disk"),
                             ("GET", "/octavo/v1/update/begin")):
            self.assertEqual(self.server.call(method, path),
                             (405, {"detail": "Method Not Allowed"}), (method, path))

    def test_digest_and_policy(self):
        status, digest = self.get("/octavo/v1/digest")
        self.assertEqual(status, 200)
        self.assertEqual(set(digest), {"digest", "weight_version", "tensors"})
        self.assertRegex(digest["digest"], "^[0-9a-f]{32}$")
        self.assertIn("model.embed_tokens.weight", digest["tensors"])
        status, policy = self.get("/octavo/v1/policy")
        self.assertEqual((status, policy["format"]), (200, "bf16"))
        self.assertEqual({row["name"] for row in policy["tensors"]}, set(digest["tensors"]))


class Generate(ApiTest):
    def check_reply(self, reply, logprobs=False):
        """What every reply of /generate has."""
        self.assertLessEqual({"text", "output_ids", "meta_info"}, set(reply))
        self.assertIsInstance(reply["text"], str)
        meta = reply["meta_info"]
        for key, kind in {"id": str, "finish_reason": dict, "prompt_tokens": int,
                          "completion_tokens": int, "cached_tokens": int, "reasoning_tokens": int,
                          "weight_version": str, "weight_versions": list, "num_retractions": int,
                          "e2e_latency": float}.items():
            self.assertIsInstance(meta[key], kind, key)
        self.assertEqual(meta["completion_tokens"], len(reply["output_ids"]))
        self.assertEqual(sum(s["tokens"] for s in meta["weight_versions"]),
                         len(reply["output_ids"]))
        self.assertEqual("output_token_logprobs" in meta, logprobs)
        if logprobs:
            self.assertEqual([x[1] for x in meta["output_token_logprobs"]], reply["output_ids"])
            self.assertEqual(meta["output_token_logprobs_length"], len(reply["output_ids"]))
            for entry in meta["output_token_logprobs"]:
                self.assertEqual(len(entry), 3)
                self.assertIsInstance(entry[0], float)
                self.assertTrue(-1e30 <= entry[0] <= 0.0)
        return meta

    def test_text_and_ids_post_and_put(self):
        reply = self.server.generate(text=PROMPT, sampling_params=GREEDY,
                                     return_prompt_token_ids=True)
        self.check_reply(reply)
        ids = reply["prompt_token_ids"]
        self.assertEqual(reply["meta_info"]["prompt_tokens"], len(ids))
        status, again = self.server.call("PUT", "/generate",
                                         {"input_ids": ids, "sampling_params": GREEDY})
        self.assertEqual(status, 200)
        self.assertEqual((again["output_ids"], again["text"]),
                         (reply["output_ids"], reply["text"]))

    def test_finish_reasons(self):
        reply = self.server.generate(text=PROMPT, sampling_params=GREEDY)
        self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "length", "length": 24})
        ids = reply["output_ids"]
        reply = self.server.generate(
            text=PROMPT, sampling_params={"temperature": 0, "stop_token_ids": [ids[5], None]})
        self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "stop", "matched": ids[5]})
        self.assertEqual(reply["output_ids"][-1], ids[5])
        reply = self.server.generate(
            text=PROMPT, sampling_params={"temperature": 0, "logit_bias": {str(EOS): 1000}})
        self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "stop", "matched": EOS})
        self.assertEqual((reply["text"], reply["output_ids"]), ("", [EOS]))

    def test_stop_strings_cut_the_text_but_not_the_ids(self):
        whole = self.server.generate(text=PROMPT, sampling_params=GREEDY)["text"]
        stop = whole[len(whole) // 2:len(whole) // 2 + 3]
        params = dict(GREEDY, stop=[stop, "<|separator|>"])
        reply = self.server.generate(text=PROMPT, sampling_params=params)
        self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "stop", "matched": stop})
        self.assertEqual(reply["text"], whole[:whole.index(stop)])
        kept = self.server.generate(text=PROMPT, sampling_params=dict(params, no_stop_trim=True))
        self.assertEqual(kept["output_ids"], reply["output_ids"])
        self.assertIn(stop, kept["text"])

    def test_logprobs(self):
        reply = self.server.generate(
            text=PROMPT, sampling_params=GREEDY, return_logprob=True, logprob_start_len=3,
            top_logprobs_num=2, token_ids_logprob=[5, 6], return_text_in_logprobs=True)
        meta = self.check_reply(reply, logprobs=True)
        inputs = meta["input_token_logprobs"]
        self.assertEqual(len(inputs), meta["prompt_tokens"] - 3)
        self.assertIsNone(inputs[0][0])
        self.assertTrue(all(isinstance(x[0], float) for x in inputs[1:]))
        self.assertTrue(all(isinstance(x[2], str) for x in inputs))
        for key in ("output_top_logprobs", "output_token_ids_logprobs"):
            self.assertEqual([len(x) for x in meta[key]], [2] * 24, key)
        for top in meta["output_top_logprobs"]:
            self.assertGreaterEqual(top[0][0], top[1][0])
        self.assertEqual([x[1] for x in meta["output_token_ids_logprobs"][0]], [5, 6])
        for key in ("input_top_logprobs", "input_token_ids_logprobs"):
            self.assertEqual(len(meta[key]), len(inputs), key)
            self.assertIsNone(meta[key][0])

    def test_scoring_gives_what_generation_gave(self):
        ids = self.server.generate(text=PROMPT, return_prompt_token_ids=True,
                                   sampling_params={"max_new_tokens": 1})["prompt_token_ids"]
        made = self.server.generate(input_ids=ids, sampling_params=GREEDY, return_logprob=True)
        scored = self.server.generate(
            input_ids=ids + made["output_ids"], return_logprob=True,
            logprob_start_len=len(ids) - 1, sampling_params={"max_new_tokens": 0})
        self.assertEqual((scored["text"], scored["output_ids"]), ("", []))
        self.assertEqual(scored["meta_info"]["finish_reason"], {"type": "length", "length": 0})
        self.assertEqual(scored["meta_info"]["input_token_logprobs"][1:],
                         made["meta_info"]["output_token_logprobs"])
        self.assertEqual(len(scored["meta_info"]["output_token_logprobs"]), 1)

    def test_a_seed_repeats_and_is_reported(self):
        params = {"max_new_tokens": 30, "temperature": 1.5, "ignore_eos": True}
        first = self.server.generate(text=PROMPT, sampling_params=params)
        seed = first["meta_info"]["seed"]
        again = self.server.generate(text=PROMPT, sampling_params=dict(params, sampling_seed=seed))
        self.assertEqual(first["output_ids"], again["output_ids"])
        other = self.server.generate(text=PROMPT,
                                     sampling_params=dict(params, sampling_seed=seed + 1))
        self.assertNotEqual(first["output_ids"], other["output_ids"])

    def test_batches_and_n(self):
        status, replies = self.post("/generate", {
            "text": [PROMPT, "Question:"], "rid": "b", "return_logprob": True,
            "sampling_params": [GREEDY, {"max_new_tokens": 3, "ignore_eos": True}]})
        self.assertEqual(status, 200)
        self.assertEqual([x["meta_info"]["id"] for x in replies], ["b_0", "b_1"])
        self.assertEqual([len(x["output_ids"]) for x in replies], [24, 3])
        for reply in replies:
            self.check_reply(reply, logprobs=True)
        status, replies = self.post("/generate", {
            "input_ids": [[5, 6], [7]], "rid": "b",
            "sampling_params": {"n": 2, "max_new_tokens": 5, "ignore_eos": True}})
        self.assertEqual((status, len(replies)), (200, 4))
        self.assertEqual([x["meta_info"]["prompt_tokens"] for x in replies], [2, 2, 1, 1])
        self.assertEqual(len({x["meta_info"]["id"] for x in replies} - {"b", "b_0", "b_1"}), 4)
        self.assertIsInstance(self.post("/generate", {"input_ids": [[5]]})[1], list)

    def test_sampling_keys_are_accepted(self):
        reply = self.server.generate(text=PROMPT, sampling_params={
            "max_new_tokens": "4", "min_new_tokens": 2, "temperature": "0.7", "top_p": 0.9,
            "top_k": 20, "min_p": 0.01, "frequency_penalty": 0.5, "presence_penalty": -0.5,
            "repetition_penalty": 1.1, "stop": None, "stop_token_ids": [], "stop_regex": [],
            "ignore_eos": "true", "n": 1, "skip_special_tokens": False,
            "spaces_between_special_tokens": False, "no_stop_trim": True,
            "logit_bias": {"5": 1.5}, "sampling_seed": 3, "stream_interval": 2,
            "json_schema": None, "regex": None, "ebnf": None, "structural_tag": None,
            "custom_params": None}, model=None, image_data=None, lora_path=None, selector="all",
            priority=1, routing_key="k", data_parallel_rank=0, extra_key="adapter-1")
        self.assertEqual(len(reply["output_ids"]), 4)

    def test_a_prompt_is_found_in_the_prefix_cache_but_not_across_extra_keys(self):
        ids = [5 + i % 600 for i in range(200)]
        self.server.generate(input_ids=ids, sampling_params=GREEDY, extra_key="a")
        hit = self.server.generate(input_ids=ids, sampling_params=GREEDY, extra_key="a")
        self.assertGreater(hit["meta_info"]["cached_tokens"], 0)
        miss = self.server.generate(input_ids=ids, sampling_params=GREEDY, extra_key="b")
        self.assertEqual(miss["meta_info"]["cached_tokens"], 0)
        self.assertEqual(hit["output_ids"], miss["output_ids"])

    def test_malformed_bodies(self):
        for body in (b"{", b"[]", b"nope", b'{"text":\xff}', b'{"input_ids":["5"]}',
                     b'{"input_ids":[5.5]}', b'{"input_ids":[5,[6]]}', b'{"text":5}',
                     b'{"text":"a","stream":"maybe"}', b'{"text":"a","sampling_params":3}',
                     b'{"text":"a","sampling_params":{"top_k":"x"}}',
                     b'{"text":"a","return_logprob":[true]}', b'{"text":"a","rid":5}',
                     b'{"text":"a","sampling_params":{"temperature":NaN}}'):
            with self.subTest(body=body):
                object_error(self, *self.post("/generate", body))

    def test_refused_values(self):
        too_long = [5] * (CONTEXT + 1)
        cases = [{}, {"text": "a", "input_ids": [5]}, {"input_ids": []}, {"input_ids": [[]]},
                 {"text": ""}, {"text": []}, {"input_ids": [VOCABULARY]}, {"input_ids": [-1]},
                 {"input_ids": too_long}, {"input_ids": too_long[:CONTEXT]},
                 {"input_ids": [5], "sampling_params": {"max_new_tokens": CONTEXT}},
                 {"input_ids": [5], "return_logprob": True, "logprob_start_len": 2},
                 {"input_ids": [5], "return_logprob": True, "top_logprobs_num": -1},
                 {"input_ids": [5], "routed_experts_start_len": 2},
                 {"input_ids": [5], "return_routed_experts": True},
                 {"input_ids": [5], "return_hidden_states": True},
                 {"input_ids": [5], "image_data": "x"}, {"input_ids": [5], "lora_path": "x"},
                 {"input_ids": [5], "custom_logit_processor": "x"},
                 {"input_ids": [5], "data_parallel_rank": 1},
                 {"input_ids": [[5], [6]], "return_logprob": [True]},
                 {"input_ids": [[5], [VOCABULARY]]}, {"input_ids": [[5], [6]], "rid": ["a", "a"]},
                 {"input_ids": [[5]], "sampling_params": {"n": 2}, "return_logprob": [True]},
                 {"text": "x" * 4_000_000}]
        params = [{"max_new_tokens": -1}, {"min_new_tokens": 9, "max_new_tokens": 8},
                  {"temperature": -1}, {"top_p": 0}, {"top_p": 1.5}, {"top_k": 0}, {"top_k": -2},
                  {"min_p": 2}, {"frequency_penalty": 3}, {"presence_penalty": -3},
                  {"repetition_penalty": 0}, {"repetition_penalty": 3}, {"n": 0}, {"stop": ""},
                  {"stop_regex": "a"}, {"json_schema": "{}"}, {"regex": "a"}, {"ebnf": "a"},
                  {"structural_tag": "a"}, {"logit_bias": {str(VOCABULARY): 1}},
                  {"stop_token_ids": [VOCABULARY]}, {"stream_interval": 0},
                  {"custom_params": {"return_top_p_token_ids": True}}]
        cases += [{"input_ids": [5], "sampling_params": p} for p in params]
        for case in cases:
            for stream in (False, True):  # A refused stream gets a real 400 as well.
                with self.subTest(case=str(case)[:100], stream=stream):
                    value_error(self, *self.post("/generate", dict(case, stream=stream)))
        status, reply = self.post("/generate", {"text": "a", "sampling_params": {"temprature": 1}})
        value_error(self, status, reply)
        self.assertIn("temprature", reply["error"]["message"])
        self.assertEqual(self.load(), 0)

    def test_budget_up_to_the_whole_context(self):
        reply = self.server.generate(input_ids=[5] * (CONTEXT - 8),
                                     sampling_params={"max_new_tokens": None, "ignore_eos": True})
        self.assertEqual(len(reply["output_ids"]), 8)
        self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "length", "length": 8})

    def test_a_duplicate_rid_in_flight_is_refused(self):
        collect = self.start(rid="twin")
        value_error(self, *self.post("/generate", {"input_ids": [5], "rid": "twin"}))
        self.post("/abort_request", {"rid": "twin"})
        self.assertEqual(collect()[0][0], 200)


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


class Control(ApiTest):
    def abort_all(self):
        self.assertEqual(self.post("/abort_request", {"abort_all": True}), (200, ""))

    def pause(self, **body):
        status, reply = self.post("/pause_generation", body)
        self.assertEqual((status, set(reply), reply["status"]), (200, {"message", "status"}, "ok"))

    def resume(self):
        status, reply = self.post("/continue_generation", {"torch_empty_cache": True})
        self.assertEqual((status, set(reply), reply["status"]), (200, {"message", "status"}, "ok"))

    def check_partial(self, status, reply):
        self.assertEqual(status, 200)
        reason = reply["meta_info"]["finish_reason"]
        self.assertEqual(reason["type"], "abort")
        self.assertIsInstance(reason["message"], str)
        self.assertEqual(len(reply["meta_info"]["output_token_logprobs"]), len(reply["output_ids"]))
        self.assertLess(len(reply["output_ids"]), 1200)

    def test_abort_returns_partial_outputs(self):
        collect = self.start(8)
        time.sleep(0.1)
        self.abort_all()
        for status, reply in collect():
            self.check_partial(status, reply)
        self.assertEqual(self.load(), 0)

    def test_an_abort_that_matches_nothing_is_200(self):
        for body in ({"rid": "nobody"}, {"rid": ""}, {}, {"rid": None, "abort_all": "false"}):
            self.assertEqual(self.post("/abort_request", body), (200, ""))
        object_error(self, *self.post("/abort_request", {"abort_all": "perhaps"}))
        object_error(self, *self.post("/abort_request", {"rid": 5}))

    def test_rids_match_exactly(self):
        collect = self.start(rid="request-12")
        self.post("/abort_request", {"rid": "request-1"})
        self.post("/abort_request", {"rid": ""})
        self.assertEqual(self.load(), 1)
        self.post("/abort_request", {"rid": "request-12"})
        self.check_partial(*collect()[0])

    def test_pause_abort_returns_partials_and_holds_new_requests(self):
        collect = self.start(4)
        self.pause()
        for status, reply in collect():
            self.check_partial(status, reply)
        held = self.start(2, tokens=5, held=True)
        self.assertEqual(self.get("/health"), (200, ""))
        self.pause(mode="abort")  # Idempotent; a held request never gets an error.
        self.pause(mode="in_place")
        self.assertEqual(self.load(), 2)
        self.resume()
        self.assertEqual([len(r["output_ids"]) for _, r in held()], [5, 5])

    def test_pause_retract_keeps_tokens_and_frees_pages(self):
        whole = self.server.generate(input_ids=[5, 6, 7], return_logprob=True,
                                     sampling_params=dict(GREEDY, max_new_tokens=1200))
        collect = self.start(1, sampling_params=dict(GREEDY, max_new_tokens=1200))
        self.pause(mode="retract")
        self.assertEqual(self.get("/flush_cache")[0], 200)
        self.resume()
        ((status, reply),) = collect()
        self.assertEqual(status, 200)
        self.assertEqual(reply["output_ids"], whole["output_ids"])
        self.assertEqual(reply["meta_info"]["output_token_logprobs"],
                         whole["meta_info"]["output_token_logprobs"])
        self.assertEqual(reply["meta_info"]["num_retractions"], 1)

    def test_pause_in_place_freezes(self):
        collect = self.start(1, tokens=1200)
        self.pause(mode="in_place")
        used = self.get("/v1/loads")[1]["loads"][0]["num_used_tokens"]
        time.sleep(0.1)
        self.assertEqual(self.get("/v1/loads")[1]["loads"][0]["num_used_tokens"], used)
        self.assertEqual(self.get("/flush_cache")[0], 400)
        self.resume()
        self.assertEqual(len(collect()[0][1]["output_ids"]), 1200)

    def test_an_abort_works_while_paused(self):
        collect = self.start(2)
        self.pause(mode="in_place")
        self.abort_all()
        for status, reply in collect():
            self.check_partial(status, reply)

    def test_unknown_pause_mode(self):
        object_error(self, *self.post("/pause_generation", {"mode": "freeze"}))
        object_error(self, *self.post("/pause_generation", b"{"))
        object_error(self, *self.post("/continue_generation", {"torch_empty_cache": "x"}))

    def test_flush_rules(self):
        for method, body in (("GET", None), ("POST", None), ("POST", {}), ("GET", {})):
            self.assertEqual(self.server.call(method, "/flush_cache", body)[0], 200)
        for query in ("timeout=-1", "timeout=x", "timeout=inf"):
            self.assertEqual(self.get("/flush_cache?" + query)[0], 400)
        collect = self.start(1)
        self.assertEqual(self.get("/flush_cache")[0], 400)
        begin = time.monotonic()
        self.assertEqual(self.get("/flush_cache?timeout=0.3")[0], 400)
        self.assertGreaterEqual(time.monotonic() - begin, 0.25)
        results = []
        waiting = threading.Thread(
            target=lambda: results.append(self.get("/flush_cache?timeout=20")[0]))
        waiting.start()
        time.sleep(0.1)
        self.assertEqual(self.get("/flush_cache")[0], 400)  # A second flush while one waits.
        self.abort_all()
        waiting.join(30)
        self.assertEqual(results, [200])
        collect()

    def test_a_client_that_leaves_aborts_its_request(self):
        for stream in (False, True):
            connection = http.client.HTTPConnection(self.server.host, int(self.server.port))
            connection.request("POST", "/generate", body=json.dumps({
                "input_ids": [5], "stream": stream,
                "sampling_params": {"max_new_tokens": 4000, "ignore_eos": True}}))
            self.await_load(1)
            connection.close()
            self.await_load(0)

    def test_relabelling_the_weights(self):
        status, reply = self.post("/update_weight_version",
                                  {"new_version": "7", "abort_all_requests": False})
        self.assertEqual(status, 200)
        self.assertEqual(set(reply), {"success", "message", "new_version"})
        self.assertEqual((reply["success"], reply["new_version"], self.version()),
                         (True, "7", "7"))
        reply = self.server.generate(input_ids=[5], sampling_params=GREEDY)
        self.assertEqual(reply["meta_info"]["weight_version"], "7")
        collect = self.start(2)
        self.post("/update_weight_version", {"new_version": "0"})  # Aborts by default.
        for status, reply in collect():
            self.check_partial(status, reply)
        object_error(self, *self.post("/update_weight_version", {}))
        object_error(self, *self.post("/update_weight_version", {"new_version": 5}))


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


class Keys(ApiTest):
    flags = ("--api-key", "user", "--admin-api-key", "admin", "--served-model-name", "policy",
             "--weight-version", "41")

    def call(self, method, path, key=None, body=None):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=30)
        try:
            headers = {} if key is None else {"Authorization": f"Bearer {key}"}
            connection.request(method, path, body=body, headers=headers)
            reply = connection.getresponse()
            return reply.status, reply.read()
        finally:
            connection.close()

    def test_keys(self):
        self.assertEqual(self.call("GET", "/health")[0], 200)
        self.assertEqual(self.call("GET", "/health_generate")[0], 200)
        refused = (401, b'{"error":"Unauthorized"}')
        self.assertEqual(self.call("GET", "/model_info"), refused)
        self.assertEqual(self.call("GET", "/model_info", "None"), refused)
        self.assertEqual(self.call("GET", "/model_info", "user")[0], 200)
        self.assertEqual(self.call("GET", "/nope"), refused)
        self.assertEqual(self.call("POST", "/pause_generation", "user"), refused)
        self.assertEqual(self.call("POST", "/octavo/v1/update/begin", "user"), refused)
        self.assertEqual(self.call("POST", "/continue_generation", "admin")[0], 200)

    def test_names_given_at_the_start(self):
        models = json.loads(self.call("GET", "/v1/models", "user")[1])
        self.assertEqual((models["data"][0]["id"], models["data"][0]["root"]), ("policy", DENSE))
        version = json.loads(self.call("GET", "/get_weight_version", "user")[1])
        self.assertEqual(version, {"weight_version": "41"})


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


class DiskUpdates(ApiTest):
    def update(self, **body):
        return self.post("/update_weights_from_disk", body)

    def setUp(self):
        self.before = self.fingerprint(), self.version()

    def test_there_and_back(self):
        status, reply = self.update(model_path=str(ROOT / BASE), weight_version="1",
                                    flush_cache=True, is_async=False, keep_pause=False,
                                    recapture_cuda_graph=False, token_step=3, manifest=None,
                                    load_format=None, torch_empty_cache=False)
        self.assertEqual((status, reply["success"], reply["num_paused_requests"]), (200, True, 0))
        self.assertIsInstance(reply["message"], str)
        self.assertEqual(self.version(), "1")
        self.assertNotEqual(self.fingerprint(), self.before[0])
        self.assertEqual(self.get("/model_info")[1]["model_path"], DENSE)  # Not renamed.
        self.assertEqual(self.update(model_path=DENSE, weight_version="0")[0], 200)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_failures_change_nothing(self):
        with folder() as work:
            weight_error(self, *self.update(model_path=str(work / "none")), name="none")
            broken = work / "broken"
            shutil.copytree(ROOT / BASE, broken)
            shard = broken / "model.safetensors"
            whole = shard.read_bytes()
            shard.write_bytes(whole[:-100])
            weight_error(self, *self.update(model_path=str(broken)))
            tensors = read_safetensors(ROOT / BASE / "model.safetensors")
            name = "model.layers.3.mlp.up_proj.weight"
            dtype, shape, data = tensors.pop(name)
            shard.write_bytes(bucket(tensors))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
            shard.write_bytes(bucket(dict(tensors, **{name: (dtype, shape[::-1], data)})))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
            poisoned = data[:1000] + b"\x80\x7f" + data[1002:]
            shard.write_bytes(bucket(dict(tensors, **{name: (dtype, shape, poisoned)})))
            weight_error(self, *self.update(model_path=str(broken), weight_version="9"), name=name)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_malformed_calls(self):
        for body in ({}, {"model_path": None}, {"model_path": 5},
                     {"model_path": DENSE, "load_format": "dummy"},
                     {"model_path": DENSE, "flush_cache": "x"},
                     {"model_path": DENSE, "weight_version": 5}):
            object_error(self, *self.update(**body))
        object_error(self, *self.post("/update_weights_from_disk", b"{"))

    def test_requests_in_flight_are_carried_over_or_aborted_as_asked(self):
        collect = self.start(4, tokens=1000)
        self.assertEqual(self.update(model_path=str(ROOT / BASE), weight_version="1")[0], 200)
        for status, reply in collect():
            self.assertEqual((status, len(reply["output_ids"])), (200, 1000))
            spans = reply["meta_info"]["weight_versions"]
            self.assertEqual([s["version"] for s in spans], ["0", "1"])
            self.assertEqual(reply["meta_info"]["weight_version"], "1")
        collect = self.start(4)
        self.assertEqual(self.update(model_path=DENSE, weight_version="0",
                                     abort_all_requests=True)[0], 200)
        for status, reply in collect():
            self.assertEqual(reply["meta_info"]["finish_reason"]["type"], "abort")
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_frozen_requests_and_a_flush_exclude_each_other(self):
        collect = self.start(1, tokens=3500)
        self.post("/pause_generation", {"mode": "in_place"})
        weight_error(self, *self.update(model_path=DENSE), name="flush_cache")
        self.assertEqual(self.version(), self.before[1])
        status, reply = self.update(model_path=DENSE, flush_cache=False, weight_version="new")
        self.assertEqual((status, reply["success"]), (200, True))
        self.post("/continue_generation", {})
        time.sleep(0.3)
        self.post("/abort_request", {"abort_all": True})
        spans = collect()[0][1]["meta_info"]["weight_versions"]
        self.assertEqual([s["version"] for s in spans], ["0", "new"])
        self.post("/update_weight_version", {"new_version": "0"})

    def test_paused_and_idle_it_runs_at_once(self):
        self.post("/pause_generation", {})
        self.post("/pause_generation", {"mode": "in_place"})
        self.assertEqual(self.update(model_path=DENSE, abort_all_requests=True,
                                     weight_version="0")[0], 200)
        self.assertEqual(self.get("/health"), (200, ""))
        self.post("/continue_generation", {})
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_without_a_label_the_version_still_moves(self):
        self.update(model_path=DENSE)
        self.assertEqual(self.version(), "1")
        self.post("/update_weight_version", {"new_version": "0", "abort_all_requests": False})


class NativeUpdates(ApiTest):
    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.tensors = read_safetensors(ROOT / BASE / "model.safetensors")

    def setUp(self):
        self.before = self.fingerprint(), self.version()

    def tearDown(self):
        super().tearDown()
        status = self.get("/octavo/v1/update")[1]
        if status["open"]:
            self.native("abort", update_id=status["update_id"])

    def native(self, call, **body):
        return self.post("/octavo/v1/update/" + call, body)

    def begin(self, **body):
        status, reply = self.native("begin", **body)
        self.assertEqual(status, 200, reply)
        return reply["update_id"]

    def put(self, update, tensors, sequence):
        return self.post(f"/octavo/v1/update/put?update_id={update}&sequence={sequence}",
                         tensors if isinstance(tensors, bytes) else bucket(tensors))

    def refused(self, status, reply, code, text=""):
        self.assertEqual(status, code, reply)
        self.assertEqual(set(reply), {"success", "message"})
        self.assertIs(reply["success"], False)
        self.assertIn(text, reply["message"])

    def test_a_whole_update_in_buckets(self):
        update = self.begin(weight_version="1")
        status = self.get("/octavo/v1/update")[1]
        self.assertEqual((status["open"], status["update_id"]), (True, update))
        names = sorted(self.tensors)
        for sequence, start in enumerate(range(0, len(names), 20)):
            part = {name: self.tensors[name] for name in names[start:start + 20]}
            status, reply = self.put(update, part, sequence)
            self.assertEqual((status, reply["success"], reply["tensors"]), (200, True, len(part)))
            self.assertEqual(self.put(update, part, sequence), (status, reply))  # A retry.
        self.assertEqual(self.version(), "0")
        status, reply = self.native("seal", update_id=update)
        self.assertEqual((status, reply["success"]), (200, True))
        status, reply = self.native("commit", update_id=update, in_flight="retract")
        self.assertEqual(status, 200, reply)
        self.assertLessEqual({"success", "version", "in_flight", "retracted", "aborted", "pause_ms",
                              "bytes_in", "put_seconds", "commit_seconds", "digest"}, set(reply))
        self.assertEqual((reply["version"], self.version()), ("1", "1"))
        live = self.get("/octavo/v1/digest")[1]
        self.assertEqual((live["digest"], live["weight_version"]), (reply["digest"], "1"))
        self.assertFalse(self.get("/octavo/v1/update")[1]["open"])
        self.post("/update_weights_from_disk", {"model_path": DENSE, "weight_version": "0"})
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_faults_are_named_and_change_nothing(self):
        update = self.begin(weight_version="9")
        name = "model.layers.1.self_attn.k_proj.weight"
        dtype, shape, data = self.tensors[name]
        self.refused(*self.put(update, {"model.nope": (dtype, shape, data)}, 0), 400, "model.nope")
        self.refused(*self.put(update, {name: (dtype, shape[::-1], data)}, 1), 400, name)
        self.refused(*self.put(update, {name: (dtype, shape, b"\xc0\x7f" + data[2:])}, 2), 400,
                     name)
        self.refused(*self.put(update, b"", 3), 400)
        self.refused(*self.put(update, b"\xff" * 100, 4), 400)
        self.refused(*self.put(update, bucket(self.tensors)[:-1], 5), 400)
        self.assertEqual(self.put(update, {name: self.tensors[name]}, 6)[0], 200)
        other = bytes([data[0] ^ 1]) + data[1:]
        self.refused(*self.put(update, {name: (dtype, shape, other)}, 6), 400, "bucket 6")
        self.refused(*self.put(update, {name: (dtype, shape, other)}, 7), 400, name)
        self.refused(*self.native("seal", update_id=update), 400, "model.")
        self.refused(*self.native("commit", update_id=update), 400)
        self.refused(*self.native("commit", update_id=update, in_flight="perhaps"), 400, "in_flight")
        self.assertEqual(self.native("abort", update_id=update)[0], 200)
        self.assertEqual(self.native("abort", update_id=update)[0], 200)  # As good as the first.
        self.refused(*self.native("seal", update_id=update), 404, update)
        self.refused(*self.put(update, {}, 0), 404, update)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_malformed_calls(self):
        for call in ("seal", "commit", "abort"):
            object_error(self, *self.native(call))
        object_error(self, *self.native("begin", weight_version=5))
        object_error(self, *self.native("begin", takeover="x"))
        for query in ("", "?update_id=a", "?update_id=a&sequence=-1", "?sequence=0",
                      "?update_id=a&sequence=x"):
            self.refused(*self.post("/octavo/v1/update/put" + query, b""), 400)

    def test_one_at_a_time_and_takeover(self):
        first = self.begin(weight_version="1")
        status, reply = self.native("begin", weight_version="2")
        self.refused(status, reply, 409, first)
        self.assertIn("127.0.0.1:", reply["message"])  # Who holds it.
        second = self.begin(weight_version="2", takeover=True)
        self.assertNotEqual(first, second)
        self.refused(*self.native("seal", update_id=first), 404, second)
        weight_error(self, *self.post("/update_weights_from_disk", {"model_path": DENSE}),
                     name=second)
        self.native("abort", update_id=second)
        self.assertEqual((self.fingerprint(), self.version()), self.before)

    def test_a_sender_killed_in_the_middle_of_a_bucket_leaves_nothing(self):
        update = self.begin(weight_version="9")
        body = bucket(self.tensors)
        with socket.create_connection((self.server.host, int(self.server.port)), 10) as sock:
            sock.sendall((f"POST /octavo/v1/update/put?update_id={update}&sequence=0 HTTP/1.1\r\n"
                          f"Content-Length: {len(body)}\r\n\r\n").encode())
            sock.sendall(body[:len(body) // 2])
        self.assertEqual(self.get("/octavo/v1/update")[1]["buckets"], 0)
        self.assertEqual((self.fingerprint(), self.version()), self.before)
        self.assertEqual(self.put(update, body, 0)[0], 200)  # The sender may come back.

    def test_serving_goes_on_while_tensors_arrive(self):
        update = self.begin(weight_version="9")
        collect = self.start(4, tokens=200)
        for sequence, name in enumerate(sorted(self.tensors)):
            self.assertEqual(self.put(update, {name: self.tensors[name]}, sequence)[0], 200)
            self.assertEqual(self.get("/health"), (200, ""))
        for _, reply in collect():
            self.assertEqual([s["version"] for s in reply["meta_info"]["weight_versions"]], ["0"])


@unittest.skipUnless(shutil.which("curl"), "no curl")
class Documentation(ApiTest):
    def test_every_line_of_the_api_page_works_as_pasted(self):
        page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
        blocks = re.findall(r"^```sh\n(.*?)^```", page, re.M | re.S)
        self.assertGreater(len(blocks), 5)
        documented = set()
        for block in blocks[1:]:  # The first starts the server.
            script = block.replace("http://127.0.0.1:30000", self.server.url)
            script = script.replace("curl -s", "curl --fail-with-body -s")
            done = subprocess.run(["sh", "-ec", script], cwd=ROOT, capture_output=True, text=True,
                                  timeout=60, check=False)
            self.assertEqual(done.returncode, 0, f"{script}\n{done.stdout}\n{done.stderr}")
            documented |= set(re.findall(r"127.0.0.1:30000(/[a-z0-9_/]*)", block))
        self.assertLessEqual(
            {"/generate", "/health", "/model_info", "/server_info", "/v1/models", "/v1/loads",
             "/abort_request", "/flush_cache", "/pause_generation", "/continue_generation",
             "/update_weights_from_disk", "/update_weight_version", "/octavo/v1/digest"},
            documented)


class WithoutTokenizer(unittest.TestCase):
    def test_ids_are_served_and_text_is_refused(self):
        with folder() as work:
            shutil.copytree(ROOT / DENSE, work / "model")
            (work / "model" / "tokenizer.json").unlink()
            with Server(work / "model", *ONE_THREAD) as server:
                reply = server.generate(input_ids=[5, 6], sampling_params=GREEDY)
                self.assertEqual((len(reply["output_ids"]), reply["text"]), (24, ""))
                status, reply = server.call("POST", "/generate", {"text": "a"})
                value_error(self, status, reply)
                self.assertIn("tokenizer.json", reply["error"]["message"])
                self.assertIsNone(server.call("GET", "/model_info")[1]["tokenizer_path"])


class Stopping(unittest.TestCase):
    def request(self, server, tokens, replies):
        def call():
            try:
                replies.append(server.call("POST", "/generate", {
                    "input_ids": [5],
                    "sampling_params": {"max_new_tokens": tokens, "ignore_eos": True}}))
            except OSError as error:  # The server is gone.
                replies.append((0, str(error)))

        thread = threading.Thread(target=call)
        thread.start()
        while server.call("GET", "/v1/loads")[1]["aggregate"]["total_reqs"] == 0:
            time.sleep(0.01)
        return thread

    def test_sigterm_finishes_what_runs_and_exits_0(self):
        for how in (signal.SIGTERM, signal.SIGINT):
            server = Server(DENSE, *ONE_THREAD)
            replies = []
            thread = self.request(server, 1000, replies)
            self.assertEqual(server.stop(how), 0)
            thread.join()
            self.assertEqual(replies[0][0], 200)
            self.assertEqual(len(replies[0][1]["output_ids"]), 1000)

    def test_a_second_signal_stops_at_once(self):
        server = Server(DENSE, *ONE_THREAD)
        thread = self.request(server, 4000, [])
        server.process.send_signal(signal.SIGTERM)
        time.sleep(0.1)
        begin = time.monotonic()
        server.stop(signal.SIGTERM)
        self.assertLess(time.monotonic() - begin, 10)
        thread.join()

    def test_bad_starts_are_one_line(self):
        with Server(DENSE, *ONE_THREAD) as server:
            busy = octavo_testing.run("serve", DENSE, "--port", server.port, check=False)
            self.assertEqual(busy.returncode, 1)
            self.assertEqual([line for line in busy.stderr.splitlines() if server.port in line],
                             [f"octavo: port {server.port} on 127.0.0.1 is in use by another "
                              "process"])
        missing = octavo_testing.run("serve", "models/none", "--port", "0", check=False)
        self.assertEqual(missing.returncode, 2)
        self.assertIn("models/none", missing.stderr)


if __name__ == "__main__":
    octavo_testing.main()
