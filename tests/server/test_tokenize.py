"""Method: a client of the standard library alone holds /tokenize and /detokenize of a real server
to docs/api.md, under both of their names, and their ids to those that /generate and chat use."""

import pathlib
import shutil
import sys
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import CONTEXT, ONE_THREAD, PROMPT, VOCABULARY, ApiTest, object_error
from octavo_testing import DENSE, ROOT, Server, folder

TEXTS = ["", " ", PROMPT, "3,5 €\n\tñ 漢字 🙂", "<|im_start|>user\n1 + 1<|im_end|>"]


class Tokenize(ApiTest):
    def call(self, path, **body):
        status, reply = self.post(path, body)
        self.assertEqual(status, 200, reply)
        self.assertEqual(self.post("/v1" + path, body), (status, reply))
        return reply

    def test_text_goes_there_and_back(self):
        lists = self.call("/tokenize", prompt=TEXTS)
        self.assertEqual(set(lists), {"tokens", "count", "max_model_len"})
        self.assertEqual(lists["max_model_len"], CONTEXT)
        self.assertEqual(lists["count"], [len(ids) for ids in lists["tokens"]])
        self.assertEqual(self.call("/detokenize", tokens=lists["tokens"],
                                   skip_special_tokens=False), {"text": TEXTS})
        for text, ids in zip(TEXTS, lists["tokens"]):
            self.assertEqual(self.call("/tokenize", prompt=text, add_special_tokens=True),
                             {"tokens": ids, "count": len(ids), "max_model_len": CONTEXT})
            self.assertEqual(self.call("/detokenize", tokens=ids, skip_special_tokens=False),
                             {"text": text})

    def test_ids_are_those_of_generate(self):
        reply = self.server.generate(text=PROMPT, return_prompt_token_ids=True,
                                     sampling_params={"max_new_tokens": 1})
        self.assertEqual(self.call("/tokenize", prompt=PROMPT)["tokens"],
                         reply["prompt_token_ids"])

    def test_messages_give_the_prompt_of_chat(self):
        body = {"messages": [{"role": "user", "content": "1 + 1?"},
                             {"role": "assistant", "content": "It"}],
                "continue_final_message": True, "chat_template_kwargs": {"enable_thinking": False}}
        reply = self.call("/tokenize", **body)
        chat = self.post("/v1/chat/completions", dict(body, return_prompt_token_ids=True,
                                                      max_tokens=1))[1]
        self.assertEqual(reply["tokens"], chat["choices"][0]["prompt_token_ids"])
        self.assertEqual(reply["count"], len(reply["tokens"]))

    def test_special_tokens_are_left_out_unless_asked_for(self):
        ids = self.call("/tokenize", prompt=TEXTS[-1])["tokens"]
        self.assertEqual(self.call("/detokenize", tokens=ids)["text"], "user\n1 + 1")

    def test_nothing_gives_nothing(self):
        self.assertEqual(self.call("/detokenize", tokens=[]), {"text": ""})
        self.assertEqual(self.call("/detokenize", tokens=[[], []]), {"text": ["", ""]})
        self.assertEqual(self.call("/tokenize", prompt=[]),
                         {"tokens": [], "count": [], "max_model_len": CONTEXT})

    def test_refusals(self):
        for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": 5}),
                           ("/tokenize", {"prompt": ["a", 5]}), ("/tokenize", b"{"),
                           ("/tokenize", {"prompt": "a", "messages": [{"role": "user"}]}),
                           ("/tokenize", {"messages": []}), ("/tokenize", {"messages": "a"}),
                           ("/tokenize", {"prompt": "a", "add_special_tokens": "maybe"}),
                           ("/tokenize", {"prompt": "x" * 4_000_000}),
                           ("/detokenize", {}), ("/detokenize", {"tokens": "a"}),
                           ("/detokenize", {"tokens": [5.5]}), ("/detokenize", {"tokens": ["5"]}),
                           ("/detokenize", {"tokens": [5, [6]]}),
                           ("/detokenize", {"tokens": [[5], 6]}),
                           ("/detokenize", {"tokens": [-1]}),
                           ("/detokenize", {"tokens": [VOCABULARY]})):
            with self.subTest(path=path, body=str(body)[:80]):
                object_error(self, *self.post(path, body))


class WithoutTokenizer(unittest.TestCase):
    def test_both_say_so(self):
        with folder() as work:
            shutil.copytree(ROOT / DENSE, work / "model")
            (work / "model" / "tokenizer.json").unlink()
            with Server(work / "model", *ONE_THREAD) as server:
                for path, body in (("/tokenize", {"prompt": "a"}), ("/detokenize", {"tokens": [5]}),
                                   ("/v1/chat/completions", {"messages": [{"role": "user"}]}),
                                   ("/v1/completions", {"prompt": "a"})):
                    status, reply = server.call("POST", path, body)
                    object_error(self, status, reply)
                    self.assertIn("tokenizer.json", reply["message"])
                status, reply = server.call("POST", "/v1/completions", {
                    "prompt": [5, 6], "max_tokens": 2, "logprobs": 1, "echo": True})
                self.assertEqual((status, reply["choices"][0]["text"]), (200, ""))
                status, reply = server.call("POST", "/v1/chat/completions", {
                    "messages": [{"role": "user"}], "input_ids": [5], "max_tokens": 2,
                    "logprobs": True})
                self.assertEqual((status, reply["choices"][0]["message"]["content"]), (200, ""))


if __name__ == "__main__":
    octavo_testing.main()
