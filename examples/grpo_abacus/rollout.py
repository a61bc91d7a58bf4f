"""Rollouts: groups of sampled answers with the engine's logprobs, over POST /generate.

Standard library only. A call that fails raises OSError and says which call it was.
"""

import dataclasses
import http.client
import json
import time

from task import Problem, judge, reward

NEW_TOKENS_MAX = 256  # The longest solution of the test file takes about 200.


@dataclasses.dataclass
class Sample:
    """One answer. The three lists have one entry a generated token, the one that ended it too."""

    problem: Problem
    prompt_ids: list[int]
    output_ids: list[int]
    logprobs: list[float]  # Of the engine, at temperature 1.
    versions: list[str]  # Which weights made the token.
    reward: float  # 1 when the answer is right.
    lines: list[tuple[int, bool]]  # task.judge
    truncated: bool


class Client:
    """One engine. One thread."""

    def __init__(self, url: str, timeout_s: float = 600.0):
        self.url = url
        self.address = url.removeprefix("http://")
        self.timeout_s = timeout_s

    def call(self, method: str, path: str, body: object = None) -> object:
        """The parsed reply. Bytes go out as they are, anything else as JSON."""
        raw = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        connection = http.client.HTTPConnection(self.address, timeout=self.timeout_s)
        try:
            connection.request(method, path, raw, {"Content-Type": "application/json"})
            reply = connection.getresponse()
            text = reply.read()
        except (http.client.HTTPException, OSError) as error:
            raise OSError(f"{method} {self.url}{path}: {error!r}; is the server alive?") from error
        finally:
            connection.close()
        if reply.status != 200:
            raise OSError(f"{method} {self.url}{path}: status {reply.status}: {text[:300]!r}")
        return json.loads(text) if text else None

    def version(self) -> str:
        return self.call("GET", "/get_weight_version")["weight_version"]


def samples_of(problem: Problem, reply: dict) -> Sample:
    info = reply["meta_info"]
    spans = info["weight_versions"]
    sample = Sample(
        problem=problem,
        prompt_ids=reply["prompt_token_ids"],
        output_ids=reply["output_ids"],
        logprobs=[entry[0] for entry in info["output_token_logprobs"]],
        versions=[span["version"] for span in spans for _ in range(span["tokens"])],
        reward=reward(problem, reply["text"]),
        lines=judge(problem, [entry[2] for entry in info["output_token_logprobs"]]),
        truncated=info["finish_reason"]["type"] == "length",
    )
    lengths = {len(sample.output_ids), len(sample.logprobs), len(sample.versions)}
    if len(lengths) != 1:
        raise OSError(f"/generate: ids, logprobs and versions differ in number: {lengths}")
    return sample


def roll_out(client: Client, problems: list[Problem], group_size: int,
             seed: int) -> tuple[list[list[Sample]], float]:
    """`group_size` answers to each problem, sampled at temperature 1; and the seconds it took."""
    body = {
        "text": [problem.prompt for problem in problems],
        "return_logprob": True,
        "return_text_in_logprobs": True,
        "return_prompt_token_ids": True,
        "sampling_params": {"n": group_size, "temperature": 1.0, "stop": ["Question"],
                            "max_new_tokens": NEW_TOKENS_MAX, "sampling_seed": seed},
    }
    start = time.perf_counter()
    replies = client.call("POST", "/generate", body)
    seconds = time.perf_counter() - start
    groups = []
    for i, problem in enumerate(problems):
        answers = replies[i * group_size : (i + 1) * group_size]
        groups.append([samples_of(problem, answer) for answer in answers])
    return groups, seconds


def greedy_rewards(client: Client, problems: list[Problem]) -> list[float]:
    """1 for each problem that the greedy answer gets right, else 0."""
    body = {
        "text": [problem.prompt for problem in problems],
        "sampling_params": {"temperature": 0.0, "max_new_tokens": NEW_TOKENS_MAX,
                            "stop": ["Question"]},
    }
    replies = client.call("POST", "/generate", body)
    return [reward(problem, reply["text"])
            for problem, reply in zip(problems, replies, strict=True)]


def decode_speed(client: Client, prompts: list[str], new_tokens: int) -> float:
    """Generated tokens a second of answers that are all `new_tokens` long."""
    body = {"text": prompts, "sampling_params": {"temperature": 1.0, "max_new_tokens": new_tokens,
                                                 "ignore_eos": True, "sampling_seed": 1}}
    start = time.perf_counter()
    replies = client.call("POST", "/generate", body)
    seconds = time.perf_counter() - start
    return sum(len(reply["output_ids"]) for reply in replies) / seconds
