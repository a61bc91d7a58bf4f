"""Method: a client of the standard library alone holds a real server to every endpoint that
reports or generates, against docs/api.md: status, keys and types of each answer, and each refusal
with the body that frameworks know."""

import http.client
import json
import pathlib
import re
import shutil
import subprocess
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import (
    ApiTest, CONTEXT, EOS, GREEDY, ONE_THREAD, PROMPT, VOCABULARY, object_error, value_error)
from octavo_testing import DENSE, ROOT, Server, folder, run


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
            "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"],
            "recipe": "serving-1/bf16", "emulated": False})

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
        status, manifest = self.get("/octavo/v1/manifest")
        self.assertEqual((status, manifest["table_hash"]), (200, policy["hash"]))
        self.assertEqual(manifest["weight_version"], digest["weight_version"])
        self.assertEqual([(row["name"], row["shape"], row["format"]) for row in policy["tensors"]],
                         [(row["name"], row["shape"], row["format"])
                          for row in manifest["tensors"]])


class Generate(ApiTest):
    def check_reply(self, reply, logprobs=False):
        """What every reply of /generate has."""
        self.assertLessEqual({"text", "output_ids", "meta_info"}, set(reply))
        self.assertIsInstance(reply["text"], str)
        meta = reply["meta_info"]
        for key, kind in {"id": str, "finish_reason": dict, "prompt_tokens": int,
                          "completion_tokens": int, "cached_tokens": int, "reasoning_tokens": int,
                          "cached_tokens_stale": int, "mixed_context": bool,
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
                     b'{"text":"a","sampling_params":{"temperature":NaN}}',
                     b'{"text":"a","x":' + b"[" * 300 + b"]" * 300 + b"}",
                     b'{"text":"a","x":[' + b"[]," * (4 << 20) + b"0]}"):
            with self.subTest(body=body[:100]):
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
                 {"input_ids": [5], "routed_experts_start_len": -1},
                 {"input_ids": [5], "return_routed_experts": True},
                 {"input_ids": [5], "return_hidden_states": True},
                 {"input_ids": [5], "image_data": "x"}, {"input_ids": [5], "lora_path": "x"},
                 {"input_ids": [5], "custom_logit_processor": "x"},
                 {"input_ids": [5], "data_parallel_rank": 1},
                 {"input_ids": [[5], [6]], "return_logprob": [True]},
                 {"input_ids": [[5], [VOCABULARY]]}, {"input_ids": [[5], [6]], "rid": ["a", "a"]},
                 {"input_ids": [[5]], "sampling_params": {"n": 2}, "return_logprob": [True]},
                 {"input_ids": [[5]], "sampling_params": {"n": 2}, "return_logprob": True,
                  "top_logprobs_num": [1]},
                 {"input_ids": [[5], [6]], "sampling_params": [{"n": 1}, {"n": 2}]},
                 {"input_ids": [[5], [6]], "sampling_params": [{}]},
                 {"input_ids": [[5], [6]], "rid": ["a"]},
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

    def test_a_duplicate_rid_in_flight_is_refused_and_the_first_runs_on(self):
        for stream in (False, True):
            collect = self.start(rid="twin", tokens=1000)
            self.post("/pause_generation", {"mode": "in_place"})
            value_error(self, *self.post("/generate", {"input_ids": [5], "rid": "twin",
                                                       "stream": stream}))
            # A sibling that was queued before the refused item is taken back.
            value_error(self, *self.post("/generate", {
                "input_ids": [[5], [6]], "rid": ["single", "twin"], "stream": stream,
                "sampling_params": {"max_new_tokens": 2000, "ignore_eos": True}}))
            self.await_load(1)
            self.post("/continue_generation", {})
            status, reply = collect()[0]
            self.assertEqual(status, 200)
            self.assertEqual(reply["meta_info"]["finish_reason"]["type"], "length")
            self.assertEqual(len(reply["output_ids"]), 1000)
            self.await_load(0)


POOL = 512


class SmallPool(ApiTest):
    flags = ("--max-total-tokens", str(POOL))

    def test_what_can_never_fit_the_pool_is_refused(self):
        for prompt, budget in ((POOL, 1), (POOL + 100, 1), (100, POOL - 99), (1, POOL)):
            with self.subTest(prompt=prompt, budget=budget):
                value_error(self, *self.post("/generate", {
                    "input_ids": [5] * prompt, "sampling_params": {"max_new_tokens": budget}}))

    def test_what_fits_alone_runs_however_full_the_pool_is(self):
        # Each of the four takes three quarters of the pool: they run after one another, or are
        # retracted for each other, and each gives what it gives alone.
        params = {"max_new_tokens": 300, "ignore_eos": True, "temperature": 0}
        alone = self.server.generate(input_ids=[5] * 84, sampling_params=params)
        replies = self.server.generate(input_ids=[[5] * 84] * 4, sampling_params=params)
        for reply in replies:
            self.assertEqual(reply["output_ids"], alone["output_ids"])
            self.assertEqual(reply["meta_info"]["finish_reason"], {"type": "length", "length": 300})

    def test_a_budget_without_end_ends_with_the_pool(self):
        reply = self.server.generate(input_ids=[5] * 500,
                                     sampling_params={"max_new_tokens": None, "ignore_eos": True})
        self.assertEqual(len(reply["output_ids"]), POOL - 500)


class Truncation(ApiTest):
    flags = ("--max-total-tokens", str(POOL), "--allow-auto-truncate")

    def test_prompts_and_budgets_are_cut_to_what_fits(self):
        params = {"max_new_tokens": 2000, "ignore_eos": True}
        for prompt, kept in ((POOL - 5, POOL - 5), (POOL, POOL - 1), (CONTEXT + 5, POOL - 1)):
            with self.subTest(prompt=prompt):
                meta = self.server.generate(input_ids=[5] * prompt,
                                            sampling_params=params)["meta_info"]
                self.assertEqual(meta["prompt_tokens"], kept)
                self.assertEqual(meta["completion_tokens"], POOL - kept)


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

    def test_our_commands_send_the_key_that_they_are_given(self):
        with folder() as work:
            reply = json.loads(self.call("POST", "/generate", "user", json.dumps(
                {"input_ids": [5, 6], "sampling_params": GREEDY, "return_replay": True}))[1])
            replies = work / "replies.jsonl"
            replies.write_text(json.dumps(reply) + "\n")
            url = ("--url", self.server.url)
            for key, command in (
                    ("user", ("replay", replies, *url)),
                    ("user", ("eval", *url, "--data", "data/abacus-test.jsonl", "--num-shots", "0",
                              "--num-questions", "1", "--max-new-tokens", "4")),
                    ("user", ("bench", *url, "--num-prompts", "2", "--random-input-len", "4",
                              "--random-output-len", "2")),
                    ("user", ("digest", self.server.url)),
                    ("admin", ("push", DENSE, "--to", self.server.url))):
                with self.subTest(command=command[0]):
                    done = run(*command, "--api-key", key, check=False)
                    self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                    self.assertNotIn(key, done.stdout)
                    # Without it, the server's own refusal.
                    done = run(*command, check=False)
                    self.assertNotEqual(done.returncode, 0)
                    self.assertIn("Unauthorized", done.stderr)
            # One that no header can hold is refused before anything is sent.
            done = run("digest", self.server.url, "--api-key", "a\nb", check=False)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn("--api-key", done.stderr)

    def test_names_given_at_the_start(self):
        models = json.loads(self.call("GET", "/v1/models", "user")[1])
        self.assertEqual((models["data"][0]["id"], models["data"][0]["root"]), ("policy", DENSE))
        version = json.loads(self.call("GET", "/get_weight_version", "user")[1])
        self.assertEqual(version, {"weight_version": "41"})


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


if __name__ == "__main__":
    octavo_testing.main()
