"""Method: a client of the standard library alone holds a real server to OpenAI's two endpoints:
what they generate is compared with /generate bit for bit, every answer's members by name, and
streams with whole answers."""

import http.client
import json
import pathlib
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import CONTEXT, EOS, ONE_THREAD, PROMPT, VOCABULARY
from octavo_testing import DENSE, ROOT, Server, folder
from openai_testing import CHAT, COMPLETIONS, METADATA, OpenAiTest, malformed, refused

MESSAGES = [{"role": "system", "content": "You add."}, {"role": "user", "content": "3 + 4?"}]
CHAT_TEXT = ("<|im_start|>system\nYou add.<|im_end|>\n<|im_start|>user\n3 + 4?<|im_end|>\n"
             "<|im_start|>assistant\n")
META_TIMES = ("id", "e2e_latency", "queue_time", "cached_tokens")


class Completions(OpenAiTest):
    def test_text_and_logprobs_are_those_of_generate(self):
        params = {"max_new_tokens": 24, "temperature": 0, "stop": ["####"]}
        native = self.server.generate(text=PROMPT, sampling_params=params, return_logprob=True,
                                      top_logprobs_num=3, return_text_in_logprobs=True)
        reply = self.call(COMPLETIONS, prompt=PROMPT, max_tokens=24, temperature=0, stop=["####"],
                          logprobs=3, return_meta_info=True)
        self.check_answer(reply, COMPLETIONS)
        (choice,) = reply["choices"]
        meta = native["meta_info"]
        self.assertEqual(choice["text"], native["text"])
        self.assertEqual((choice["finish_reason"], choice["matched_stop"]), ("stop", "####"))
        logprobs = choice["logprobs"]
        self.assertEqual(set(logprobs), {"tokens", "token_logprobs", "top_logprobs", "text_offset"})
        self.assertEqual(logprobs["token_logprobs"], [x[0] for x in meta["output_token_logprobs"]])
        self.assertEqual(logprobs["tokens"], [x[2] for x in meta["output_token_logprobs"]])
        self.assertEqual(logprobs["top_logprobs"],
                         [{x[2]: x[0] for x in top} for top in meta["output_top_logprobs"]])
        self.assertEqual(set(logprobs["text_offset"]), {-1})
        self.assertEqual(reply["usage"]["prompt_tokens"], meta["prompt_tokens"])
        self.assertEqual(reply["usage"]["completion_tokens"], meta["completion_tokens"])
        for key in set(meta) - set(META_TIMES) - {"seed", "replay"}:
            self.assertEqual(choice["meta_info"][key], meta[key], key)
        self.assertEqual(choice["meta_info"]["id"], reply["id"])

    def test_a_seed_gives_the_samples_of_generate(self):
        params = {"max_new_tokens": 12, "temperature": 1.3, "top_p": 0.95, "top_k": 40,
                  "min_p": 0.01, "frequency_penalty": 0.2, "presence_penalty": 0.1,
                  "repetition_penalty": 1.1, "ignore_eos": True, "logit_bias": {"5": 2}, "n": 3,
                  "sampling_seed": 11}
        native = self.server.generate(text=PROMPT, sampling_params=params)
        reply = self.call(
            COMPLETIONS, prompt=PROMPT, max_tokens=12, temperature=1.3, top_p=0.95, top_k=40,
            min_p=0.01, frequency_penalty=0.2, presence_penalty=0.1, repetition_penalty=1.1,
            ignore_eos=True, logit_bias={"5": 2}, n=3, best_of=3, seed=11)
        self.check_answer(reply, COMPLETIONS, choices=3)
        self.assertEqual([c["text"] for c in reply["choices"]], [x["text"] for x in native])
        self.assertEqual(len({c["text"] for c in reply["choices"]}), 3)
        self.assertEqual(reply["usage"]["prompt_tokens"], native[0]["meta_info"]["prompt_tokens"])
        self.assertEqual(reply["usage"]["completion_tokens"], 36)

    def test_prompts_of_every_kind(self):
        ids = self.call("/tokenize", prompt=PROMPT)["tokens"]
        fields = {"max_tokens": 6, "temperature": 0}
        (one,) = self.call(COMPLETIONS, prompt=PROMPT, **fields)["choices"]
        for prompt, count in ((ids, 1), ([ids, ids], 2), ([PROMPT, PROMPT], 2)):
            reply = self.call(COMPLETIONS, prompt=prompt, **fields)
            self.check_answer(reply, COMPLETIONS, choices=count)
            self.assertEqual([c["text"] for c in reply["choices"]], [one["text"]] * count)
        self.assertEqual(reply["usage"]["prompt_tokens"], 2 * len(ids))

    def test_echo_scores_the_prompt_as_generate_does(self):
        native = self.server.generate(
            text=PROMPT, return_logprob=True, logprob_start_len=0, top_logprobs_num=2,
            sampling_params={"max_new_tokens": 3, "temperature": 0})["meta_info"]
        (choice,) = self.call(COMPLETIONS, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2,
                              echo=True)["choices"]
        self.assertTrue(choice["text"].startswith(PROMPT))
        scored = native["input_token_logprobs"] + native["output_token_logprobs"]
        self.assertEqual(choice["logprobs"]["token_logprobs"], [x[0] for x in scored])
        tops = native["input_top_logprobs"] + native["output_top_logprobs"]
        self.assertEqual(len(choice["logprobs"]["top_logprobs"]), len(tops))
        self.assertIsNone(choice["logprobs"]["top_logprobs"][0])
        chunks = self.stream(COMPLETIONS, prompt=PROMPT, max_tokens=3, temperature=0, logprobs=2,
                             echo=True)
        self.assertTrue(chunks[0]["choices"][0]["text"].startswith(PROMPT))
        joined = [x for c in chunks for x in c["choices"][0]["logprobs"]["token_logprobs"]]
        self.assertEqual(joined, choice["logprobs"]["token_logprobs"])

    def test_a_stream_adds_up_to_the_whole(self):
        fields = {"prompt": PROMPT, "max_tokens": 24, "temperature": 0, "logprobs": 1}
        whole = self.call(COMPLETIONS, **fields)
        chunks = self.stream(COMPLETIONS, stream_options={
            "include_usage": True, "continuous_usage_stats": True}, **fields)
        last = chunks.pop()
        self.assertEqual(last["choices"], [])
        self.assertEqual({k: last["usage"][k] for k in ("prompt_tokens", "completion_tokens")},
                         {k: whole["usage"][k] for k in ("prompt_tokens", "completion_tokens")})
        self.assertGreater(len(chunks), 10)
        self.assertEqual(len({c["id"] for c in chunks}), 1)
        for chunk in chunks:
            self.assertEqual(chunk["object"], "text_completion")
            self.check_usage(chunk["usage"])
        choices = [c["choices"][0] for c in chunks]
        self.assertEqual("".join(c["text"] for c in choices), whole["choices"][0]["text"])
        for key in ("tokens", "token_logprobs", "top_logprobs"):
            joined = [x for c in choices for x in c["logprobs"][key]]
            self.assertEqual(joined, whole["choices"][0]["logprobs"][key], key)
        self.assertEqual({c["finish_reason"] for c in choices[:-1]}, {None})
        self.assertEqual(choices[-1]["finish_reason"], "length")
        self.assertEqual(chunks[-1]["metadata"], METADATA)

    def test_stop_strings_and_ids(self):
        (choice,) = self.call(COMPLETIONS, prompt=PROMPT, temperature=0,
                              logit_bias={str(EOS): 1000})["choices"]
        self.assertEqual((choice["finish_reason"], choice["matched_stop"], choice["text"]),
                         ("stop", EOS, ""))
        (whole,) = self.call(COMPLETIONS, prompt=PROMPT, temperature=0, max_tokens=24)["choices"]
        stop = whole["text"][6:12]
        for keep in (False, True):
            (choice,) = self.call(COMPLETIONS, prompt=PROMPT, temperature=0, max_tokens=24,
                                  stop=stop, no_stop_trim=keep)["choices"]
            self.assertEqual(choice["matched_stop"], stop)
            self.assertEqual(stop in choice["text"], keep)
        chunks = self.stream(COMPLETIONS, prompt=PROMPT, temperature=0, max_tokens=24, stop=stop)
        text = "".join(c["choices"][0]["text"] for c in chunks)
        self.assertEqual(text, whole["text"][:whole["text"].index(stop)])

    def test_the_budget_is_16_and_names_do_not_matter(self):
        reply = self.call(COMPLETIONS, prompt=PROMPT, ignore_eos=True, model="gpt-x", user="u",
                          unknown={"a": [1]}, max_tokens=None, suffix=None)
        self.assertEqual(reply["usage"]["completion_tokens"], 16)
        self.assertEqual(reply["model"], "gpt-x")
        self.assertEqual(self.call(COMPLETIONS, prompt=PROMPT)["model"], DENSE)

    def test_refusals_are_real_400s_also_in_a_stream(self):
        cases = [{"prompt": ""}, {"prompt": []}, {"prompt": [[]]}, {"prompt": [VOCABULARY]},
                 {"prompt": [5] * CONTEXT}, {"max_tokens": 0}, {"max_tokens": CONTEXT},
                 {"temperature": -1}, {"top_p": 0}, {"top_k": 0}, {"n": 0}, {"best_of": 2},
                 {"logprobs": -1}, {"logprobs": VOCABULARY + 1}, {"suffix": "x"}, {"stop": ""},
                 {"logit_bias": {str(VOCABULARY): 1}}, {"response_format": {"type": "json_object"}},
                 {"json_schema": "{}"}, {"regex": "a"}, {"min_tokens": 20},
                 {"return_routed_experts": True}, {"return_hidden_states": True},
                 {"lora_path": "x"}, {"data_parallel_rank": 1}]
        for case in cases:
            for stream in (False, True):
                with self.subTest(case=str(case)[:80], stream=stream):
                    body = dict({"prompt": "a"}, stream=stream, **case) if "prompt" not in case \
                        else dict(case, stream=stream)
                    refused(self, *self.post(COMPLETIONS, body), "" if "prompt" in case
                            else next(iter(case)))
        refused(self, *self.post(COMPLETIONS, {"prompt": "a", "stream": True,
                                               "return_meta_info": True}), "return_meta_info")
        self.assertEqual(self.load(), 0)

    def test_malformed_bodies(self):
        for body in (b"{", b"[]", b"", b"{}", b'{"prompt":5}', b'{"prompt":["a",5]}',
                     b'{"prompt":[5.5]}', b'{"prompt":"a","n":"x"}',
                     b'{"prompt":"a","logprobs":true}',
                     b'{"prompt":"a","stream":"maybe"}', b'{"prompt":"a","stream_options":1}',
                     b'{"prompt":"a","model":1}', b'{"prompt":"a","logit_bias":[]}'):
            with self.subTest(body=body):
                malformed(self, *self.post(COMPLETIONS, body))

    def test_the_media_type_must_be_json(self):
        body = json.dumps({"prompt": "a", "max_tokens": 1})
        for path in (COMPLETIONS, CHAT, "/tokenize", "/v1/detokenize"):
            for media_type in (None, "text/plain", "application/x-www-form-urlencoded"):
                connection = http.client.HTTPConnection(self.server.host, int(self.server.port))
                self.addCleanup(connection.close)
                headers = {} if media_type is None else {"Content-Type": media_type}
                connection.request("POST", path, body=body, headers=headers)
                reply = connection.getresponse()
                malformed(self, reply.status, json.loads(reply.read()), "application/json")
        connection.request("POST", COMPLETIONS, body=body,
                           headers={"Content-Type": "Application/JSON; charset=utf-8"})
        self.assertEqual(connection.getresponse().status, 200)


class Chat(OpenAiTest):
    def test_the_prompt_text_and_logprobs_are_those_of_generate(self):
        reply = self.call(CHAT, messages=MESSAGES, max_tokens=20, temperature=0, logprobs=True,
                          top_logprobs=2, return_meta_info=True, return_prompt_token_ids=True,
                          ignore_eos=True)
        self.check_answer(reply, CHAT)
        (choice,) = reply["choices"]
        ids = choice["prompt_token_ids"]
        self.assertEqual(self.call("/detokenize", tokens=ids, skip_special_tokens=False)["text"],
                         CHAT_TEXT)
        native = self.server.generate(
            input_ids=ids, return_logprob=True, top_logprobs_num=2, return_text_in_logprobs=True,
            sampling_params={"max_new_tokens": 20, "temperature": 0, "ignore_eos": True})
        meta = native["meta_info"]
        self.assertEqual(choice["message"]["content"], native["text"])
        content = choice["logprobs"]["content"]
        self.assertEqual([[x["logprob"], x["token"]] for x in content],
                         [[x[0], x[2]] for x in meta["output_token_logprobs"]])
        self.assertEqual([[[y["logprob"], y["token"]] for y in x["top_logprobs"]] for x in content],
                         [[[y[0], y[2]] for y in x] for x in meta["output_top_logprobs"]])
        self.assertEqual(b"".join(bytes(x["bytes"]) for x in content).decode(), native["text"])
        for key in set(meta) - set(META_TIMES) - {"seed", "replay"}:
            self.assertEqual(choice["meta_info"][key], meta[key], key)
        self.assertEqual(len(choice["meta_info"]["output_token_logprobs"]),
                         choice["meta_info"]["completion_tokens"])

    def test_what_a_reply_says_of_itself_makes_it_again(self):
        fields = {"messages": MESSAGES, "max_tokens": 12, "temperature": 1.2, "top_p": 0.9,
                  "logprobs": True, "return_meta_info": True}
        meta = self.call(CHAT, return_replay=True, **fields)["choices"][0]["meta_info"]
        again = self.server.generate(**meta["replay"]["request"])
        self.assertEqual([x[:2] for x in again["meta_info"]["output_token_logprobs"]],
                         [x[:2] for x in meta["output_token_logprobs"]])
        self.assertNotIn("replay", self.call(CHAT, **fields)["choices"][0]["meta_info"])
        refused(self, *self.post(CHAT, {"messages": MESSAGES, "return_replay": True}),
                "return_replay")

    def test_input_ids_replace_the_template(self):
        reply = self.call(CHAT, messages=MESSAGES, input_ids=[5, 6, 7], max_tokens=8, temperature=0,
                          return_prompt_token_ids=True)
        native = self.server.generate(input_ids=[5, 6, 7], sampling_params={
            "max_new_tokens": 8, "temperature": 0})
        self.assertEqual(reply["choices"][0]["message"]["content"], native["text"])
        self.assertEqual(reply["choices"][0]["prompt_token_ids"], [5, 6, 7])
        malformed(self, *self.post(CHAT, {"input_ids": [5]}), "messages")

    def test_a_stream_adds_up_to_the_whole(self):
        fields = {"messages": MESSAGES, "max_completion_tokens": 16, "temperature": 0, "n": 2,
                  "logprobs": True, "top_logprobs": 1, "ignore_eos": True}
        whole = self.call(CHAT, **fields)
        chunks = self.stream(CHAT, stream_options={"include_usage": True}, **fields)
        last = chunks.pop()
        self.assertEqual(last["choices"], [])
        self.check_usage(last["usage"])
        self.assertEqual(last["usage"]["completion_tokens"], 32)
        for chunk in chunks:
            self.assertEqual(chunk["object"], "chat.completion.chunk")
            self.assertIsNone(chunk["usage"])
            self.assertIn("reasoning_content", chunk["choices"][0]["delta"])
        for index in range(2):
            choices = [c["choices"][0] for c in chunks if c["choices"][0]["index"] == index]
            self.assertEqual(choices[0]["delta"], {"role": "assistant", "content": "",
                                                   "reasoning_content": None})
            self.assertEqual(choices[-1]["delta"], {"reasoning_content": None})
            self.assertEqual(choices[-1]["finish_reason"], "length")
            self.assertEqual({c["finish_reason"] for c in choices[:-1]}, {None})
            text = "".join(c["delta"].get("content", "") for c in choices)
            self.assertEqual(text, whole["choices"][index]["message"]["content"])
            logprobs = [x for c in choices if c["logprobs"] for x in c["logprobs"]["content"]]
            self.assertEqual(logprobs, whole["choices"][index]["logprobs"]["content"])

    def test_a_final_assistant_message_is_continued_or_becomes_the_users(self):
        said = MESSAGES + [{"role": "assistant", "content": [{"type": "text", "text": "It is"}]}]

        def prompt_of(**fields):
            reply = self.call(CHAT, messages=said, max_tokens=1, return_prompt_token_ids=True,
                              **fields)
            ids = reply["choices"][0]["prompt_token_ids"]
            return self.call("/detokenize", tokens=ids, skip_special_tokens=False)["text"]

        self.assertEqual(prompt_of(continue_final_message=True), CHAT_TEXT + "It is")
        self.assertEqual(prompt_of(), CHAT_TEXT.replace(
            "<|im_start|>assistant", "<|im_start|>user\nIt is<|im_end|>\n<|im_start|>assistant"))

    def test_without_a_budget_it_runs_to_the_end_of_the_context(self):
        reply = self.call(CHAT, messages=MESSAGES, input_ids=[5] * (CONTEXT - 8), ignore_eos=True)
        self.assertEqual(reply["usage"]["completion_tokens"], 8)
        self.assertEqual(reply["choices"][0]["finish_reason"], "length")

    def test_refusals(self):
        cases = {"response_format": {"type": "json_object"}, "tool_choice": "required",
                 "max_tokens": 0, "max_completion_tokens": CONTEXT, "top_logprobs": -1,
                 "temperature": -1, "input_ids": [VOCABULARY], "functions": [],
                 "structural_tag": "x", "audio": {}, "n": 0, "messages": []}
        for key, value in cases.items():
            for stream in (False, True):
                with self.subTest(key=key, stream=stream):
                    body = {"messages": MESSAGES, "stream": stream, key: value}
                    refused(self, *self.post(CHAT, body), key)
        image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
        refused(self, *self.post(CHAT, {"messages": image}), "image_url")
        for key in ("return_meta_info", "return_prompt_token_ids"):
            refused(self, *self.post(CHAT, {"messages": MESSAGES, "stream": True, key: True}), key)
        for messages in (None, "Hi", ["Hi"], [{"content": "Hi"}], [{"role": 1}],
                         [{"role": "user", "content": 5}]):
            malformed(self, *self.post(CHAT, {"messages": messages}), "messages")
        self.assertEqual(self.load(), 0)

    def test_the_id_of_a_stream_ends_all_its_choices(self):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        self.addCleanup(connection.close)
        connection.request("POST", CHAT, headers={"Content-Type": "application/json"},
                           body=json.dumps({"messages": MESSAGES, "n": 3, "stream": True,
                                            "ignore_eos": True}))
        reply = connection.getresponse()
        first = reply.readline()
        self.post("/abort_request", {"rid": json.loads(first[len("data: "):])["id"]})
        chunks = self.events((first + reply.read()).decode())
        finishes = [c["choices"][0]["finish_reason"] for c in chunks]
        self.assertEqual(finishes.count("abort"), 3)
        self.await_load(0)

    def test_a_client_that_leaves_ends_its_call(self):
        connection = http.client.HTTPConnection(self.server.host, int(self.server.port), timeout=60)
        connection.request("POST", CHAT, headers={"Content-Type": "application/json"},
                           body=json.dumps({"messages": MESSAGES, "n": 2, "stream": True,
                                            "ignore_eos": True}))
        connection.getresponse().readline()
        self.await_running(2)
        connection.close()
        self.await_load(0)


class Experts(OpenAiTest):
    model = "models/abacus-moe"
    flags = ("--enable-return-routed-experts",)

    def test_they_are_those_of_generate(self):
        fields = {"max_tokens": 5, "temperature": 0, "ignore_eos": True,
                  "return_routed_experts": True}
        native = self.server.generate(
            input_ids=[5, 6, 7], return_routed_experts=True,
            sampling_params={"max_new_tokens": 5, "temperature": 0, "ignore_eos": True})
        experts = native["meta_info"]["routed_experts"]
        reply = self.call(COMPLETIONS, prompt=[5, 6, 7], **fields)
        self.assertEqual(reply["sglext"], {"routed_experts": experts})
        reply = self.call(CHAT, messages=MESSAGES, input_ids=[5, 6, 7], return_meta_info=True,
                          **fields)
        self.assertEqual(reply["sglext"], {"routed_experts": experts})
        self.assertEqual(reply["choices"][0]["meta_info"]["routed_experts"], experts)
        chunks = self.stream(CHAT, messages=MESSAGES, input_ids=[5, 6, 7],
                             stream_options={"include_usage": True}, **fields)
        self.assertEqual((chunks[-2]["choices"], chunks[-2]["sglext"]),
                         ([], {"routed_experts": experts}))


class OtherFolders(unittest.TestCase):
    """What a model folder says of chat."""

    def serve(self, work, edit, *flags):
        shutil.copytree(ROOT / DENSE, work / "model")
        edit(work / "model")
        return Server(work / "model", *ONE_THREAD, *flags)

    def test_generation_config_gives_chat_its_defaults_and_the_pool_its_end(self):
        def edit(model):
            config = json.loads((model / "generation_config.json").read_text())
            config.update(temperature=0.0, top_k=0)
            (model / "generation_config.json").write_text(json.dumps(config))

        with folder() as work, self.serve(work, edit, "--max-total-tokens", "256") as server:
            body = {"messages": MESSAGES, "ignore_eos": True, "return_meta_info": True}
            replies = [server.call("POST", CHAT, dict(body, **more))[1]
                       for more in ({}, {}, {"temperature": 0, "max_tokens": 40})]
            texts = [r["choices"][0]["message"]["content"] for r in replies]
            self.assertEqual(texts[0], texts[1])
            self.assertTrue(texts[0].startswith(texts[2]))
            self.assertEqual(replies[0]["usage"]["total_tokens"], 256)

    def test_without_a_template_or_with_an_unknown_one_chat_is_refused_by_name(self):
        template = "chat_template.jinja"
        for edit, name in ((lambda model: (model / template).unlink(), "no chat template"),
                           (lambda model: (model / template).write_text("a\n{% macro m() %}"),
                            "line 2: the statement macro")):
            with folder() as work, self.serve(work, edit) as server:
                for path in (CHAT, "/tokenize"):
                    refused(self, *server.call("POST", path, {"messages": MESSAGES}), name)
                status, reply = server.call("POST", CHAT, {
                    "messages": MESSAGES, "input_ids": [5, 6], "max_tokens": 3})
                self.assertEqual(status, 200, reply)
                status, reply = server.call("POST", COMPLETIONS, {"prompt": PROMPT})
                self.assertEqual(status, 200, reply)


if __name__ == "__main__":
    octavo_testing.main()
