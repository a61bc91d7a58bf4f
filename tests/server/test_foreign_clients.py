"""Method: two programs written for another server, SGLang's benchmark/gsm8k/bench_sglang.py and
bench_serving.py, are acted out with the standard library alone: their bodies and headers byte for
byte, a connection of its own for each request, all of them at once; and their arithmetic. What they
compute must equal what `octavo eval` and `octavo bench` report of the same server."""

import asyncio
import concurrent.futures
import json
import pathlib
import random
import re
import sys
import urllib.request

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import octavo_testing
from api_testing import ApiTest, VOCABULARY
from octavo_testing import PROBLEMS, ROOT, run_json

INVALID = -9999999
SHOTS = 8
QUESTIONS = 96  # All at once: more connections than the server has threads, cores or slots.


def value_of(text):
    """The last run of digits as an integer literal."""
    numbers = re.findall(r"\d+", text.replace(",", ""))
    if not numbers or (numbers[-1][0] == "0" and set(numbers[-1]) != {"0"}):
        return INVALID
    return int(numbers[-1])


def numpy_words(seed):
    """The 32-bit words of np.random.seed(seed)."""
    key = [seed]
    for i in range(1, 624):
        key.append((1812433253 * (key[-1] ^ (key[-1] >> 30)) + i) % 2**32)
    generator = random.Random()
    generator.setstate((3, (*key, 624), None))
    return lambda: generator.getrandbits(32)


def numpy_randint(word, low, high, size):
    """np.random.randint(low, high, size=size)."""
    mask = (1 << (high - low - 1).bit_length()) - 1
    draws = []
    while len(draws) < size:
        draw = word() & mask if mask else 0
        if draw <= high - low - 1:
            draws.append(low + draw)
    return draws


class Gsm8k(ApiTest):
    """bench_sglang.py: threads that call urllib."""

    def http_request(self, path, body=None):
        data = None if body is None else bytes(json.dumps(body), encoding="utf-8")
        headers = {"Content-Type": "application/json; charset=utf-8"}
        request = urllib.request.Request(self.server.url + path, headers=headers)
        with urllib.request.urlopen(request, data=data, timeout=120) as reply:
            return json.loads(reply.read())

    def ask(self, question):
        """One state of the program; chat_template is none for this model."""
        return self.http_request("/generate", {
            "text": question,
            "sampling_params": {
                "skip_special_tokens": True, "spaces_between_special_tokens": True,
                "max_new_tokens": 512, "min_new_tokens": 0, "n": 1,
                "stop": ["Question", "Assistant:", "<|separator|>"], "stop_token_ids": [],
                "stop_regex": [], "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0,
                "frequency_penalty": 0.0, "presence_penalty": 0.0, "ignore_eos": False,
                "regex": None, "json_schema": None}})

    def test_the_benchmark_gives_what_octavo_eval_gives(self):
        lines = [json.loads(x) for x in (ROOT / PROBLEMS).read_text().splitlines()
                 if not x.startswith("#")]
        shots = "".join(f"Question: {x['question']}\nAnswer: {x['answer']}\n\n"
                        for x in lines[:SHOTS])
        questions = [f"{shots}Question: {x['question']}\nAnswer:" for x in lines[:QUESTIONS]]
        labels = [value_of(x["answer"]) for x in lines[:QUESTIONS]]
        self.assertNotIn(INVALID, labels)

        self.assertIn("model_path", self.http_request("/get_model_info"))
        with concurrent.futures.ThreadPoolExecutor(QUESTIONS) as pool:
            states = list(pool.map(self.ask, questions))
        values = [value_of(x["text"]) for x in states]
        accuracy = sum(a == b for a, b in zip(values, labels)) / QUESTIONS
        tokens = sum(x["meta_info"]["completion_tokens"] for x in states)

        ours = run_json("eval", "--url", self.server.url, "--data", PROBLEMS, "--num-shots", SHOTS,
                        "--num-questions", QUESTIONS, "--parallel", QUESTIONS)
        self.assertEqual((ours["accuracy"], ours["output_tokens"]), (accuracy, tokens))
        self.assertEqual(ours["invalid"], values.count(INVALID) / QUESTIONS)
        self.assertGreater(accuracy, 0.8)


class Serving(ApiTest):
    """bench_serving.py: coroutines that open a connection for each request."""

    num_prompts, input_len, output_len = 60, 48, 24

    def plan(self):
        """(ids, tokens to generate) of each request, as the program draws them for seed 1."""
        word = numpy_words(1)
        inputs = numpy_randint(word, 1, self.input_len + 1, self.num_prompts)
        outputs = numpy_randint(word, 1, self.output_len + 1, self.num_prompts)
        offsets = numpy_randint(word, 0, VOCABULARY, self.num_prompts)
        return [([(offsets[i] + i + j) % VOCABULARY for j in range(inputs[i])], outputs[i])
                for i in range(self.num_prompts)]

    async def stream(self, path, payload):
        """One request in aiohttp's bytes; yields the data of its events."""
        reader, writer = await asyncio.open_connection(self.server.host, int(self.server.port),
                                                       limit=10 * 2**20)
        body = json.dumps(payload).encode()
        writer.write(f"POST {path} HTTP/1.1\r\nHost: {self.server.host}:{self.server.port}\r\n"
                     "Accept: */*\r\nAccept-Encoding: gzip, deflate\r\n"
                     "User-Agent: Python/3.11 aiohttp/3.13.2\r\n"
                     f"Content-Length: {len(body)}\r\nContent-Type: application/json\r\n\r\n"
                     .encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        self.assertTrue(head.startswith("http/1.1 200"), head)
        self.assertIn("transfer-encoding: chunked", head)
        text = b""
        while size := int(await reader.readline(), 16):
            text += (await reader.readexactly(size + 2))[:-2]
            *lines, text = text.split(b"\n")
            for line in lines:
                if line.strip():
                    self.assertTrue(line.startswith(b"data: "), line)
                    yield line[6:].decode()
        self.assertEqual(text, b"")
        writer.close()  # The program closes its session after each request.
        await writer.wait_closed()

    async def request_native(self, prompt, output_len):
        key = "text" if isinstance(prompt, str) else "input_ids"
        generated, counted, last = "", output_len, None
        async for last in self.stream("/generate", {
                key: prompt, "sampling_params": {"temperature": 0.0, "max_new_tokens": output_len,
                                                 "ignore_eos": True},
                "stream": True, "lora_path": None, "return_logprob": False,
                "return_routed_experts": False, "logprob_start_len": -1}):
            if last != "[DONE]":
                data = json.loads(last)
                if data["text"]:
                    generated, counted = data["text"], data["meta_info"]["completion_tokens"]
        self.assertEqual(last, "[DONE]")
        return generated, counted

    async def request_openai(self, path, prompt, output_len):
        chat = "chat" in path
        asked = {"messages": [{"role": "user", "content": prompt}],
                 "max_completion_tokens": output_len} if chat else {
                     "prompt": prompt, "best_of": 1, "max_tokens": output_len}
        generated, counted, last = "", output_len, None
        async for last in self.stream(path, {"model": octavo_testing.DENSE, **asked, "stream": True,
                                             "temperature": 0.0, "ignore_eos": True}):
            if last != "[DONE]":
                data = json.loads(last)
                counted = (data.get("usage") or {}).get("completion_tokens", counted)
                choice = data["choices"][0]
                generated += (choice["delta"].get("content") or "") if chat else choice["text"]
        self.assertEqual(last, "[DONE]")
        return generated, counted

    def run_all(self, request, prompts):
        async def gather():
            return await asyncio.gather(*(request(p, n) for p, n in prompts))
        return asyncio.run(gather())

    def meter(self, *flags):
        return run_json("bench", "--url", self.server.url, "--num-prompts", self.num_prompts,
                        "--random-input-len", self.input_len, "--random-output-len",
                        self.output_len, *flags)

    def test_ids_to_generate(self):
        plan = self.plan()
        replies = self.run_all(self.request_native, plan)
        self.assertEqual(self.get("/v1/models")[1]["data"][0]["id"], octavo_testing.DENSE)
        ours = self.meter("--tokenize-prompt")
        self.assertEqual(ours["completed"], self.num_prompts)
        self.assertEqual(ours["total_input_tokens"], sum(len(ids) for ids, _ in plan))
        self.assertEqual(ours["total_output_tokens"], sum(n for _, n in replies))
        self.check_retokenized(ours, replies)
        self.assertEqual(ours["server_info"]["served_model_name"], octavo_testing.DENSE)

    def texts(self):
        """The prompts as text, which the program decodes with special tokens."""
        plan = self.plan()
        status, reply = self.post("/detokenize", {"tokens": [ids for ids, _ in plan],
                                                  "skip_special_tokens": False})
        self.assertEqual(status, 200)
        return [(text, n) for text, (_, n) in zip(reply["text"], plan)]

    def check_retokenized(self, ours, replies):
        status, reply = self.post("/tokenize", {"prompt": [text for text, _ in replies],
                                                "add_special_tokens": False})
        self.assertEqual(status, 200)
        self.assertEqual(ours["total_output_tokens_retokenized"], sum(reply["count"]))

    def test_texts_to_each_endpoint(self):
        prompts = self.texts()
        requests = {"sglang": self.request_native}
        for backend, path in (("sglang-oai", "/v1/completions"),
                              ("sglang-oai-chat", "/v1/chat/completions")):
            requests[backend] = lambda p, n, path=path: self.request_openai(path, p, n)
        for backend, request in requests.items():
            with self.subTest(backend):
                replies = self.run_all(request, prompts)
                ours = self.meter("--backend", backend, "--max-concurrency", 16)
                self.assertEqual((ours["completed"], ours["failed"]), (self.num_prompts, 0))
                self.assertEqual(ours["total_output_tokens"], sum(n for _, n in replies))
                self.check_retokenized(ours, replies)


class InFlight(ApiTest):
    def test_thousands_at_once_from_one_client(self):
        """More than there are threads, slots or the backlog of a socket."""
        report = run_json("bench", "--url", self.server.url, "--num-prompts", 4500,
                          "--random-input-len", 2, "--random-output-len", 2,
                          "--random-range-ratio", 1, "--tokenize-prompt")
        self.assertEqual((report["completed"], report["failed"]), (4500, 0))
        self.assertEqual(report["total_output_tokens"], 9000)
        self.assertEqual(self.load(), 0)


if __name__ == "__main__":
    octavo_testing.main()
