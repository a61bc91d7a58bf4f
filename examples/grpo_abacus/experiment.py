"""One training run against one engine: roll out, learn, push, measure; a line of JSON a step."""

import dataclasses
import json
import pathlib
import statistics
import time
from typing import TextIO

import torch
import torch.distributed as dist

import bench_tools
import push
import rollout
import task
import train
from model import load

FORMATS = ("bf16", "fp8", "mxfp8", "nvfp4")


@dataclasses.dataclass(frozen=True)
class Settings:
    """One run. Two runs that differ in format alone see the same problems and the same seeds."""

    model: pathlib.Path
    data: pathlib.Path
    format: str = "bf16"
    seed: int = 1
    problems_per_step: int = 128
    group_size: int = 4
    eval_every: int = 4  # Steps between evaluations on the first `eval_problems`.
    eval_problems: int = 256
    held_out_max: int = 512  # All that the first and the last evaluation ask; 0: the whole file.
    drawn: bool = False  # Evaluate on drawn problems instead of those of `data`.
    device: str = "cpu"  # Of the trainer.
    recipe: train.Recipe = dataclasses.field(default_factory=train.Recipe)

    @property
    def name(self) -> str:
        return f"{self.format}-{'tis' if self.recipe.tis else 'plain'}-seed{self.seed}"


class Run:
    """The loop. With a process group every rank runs it; rank 0 alone talks to the engine."""

    def __init__(self, settings: Settings, client: rollout.Client | None, log: TextIO | None):
        self.settings = settings
        self.client = client
        self.log = log
        held_out = (task.Source(-1, []).take(512) if settings.drawn
                    else task.held_out(settings.data))
        self.source = task.Source(settings.seed, held_out, task.TRAIN_MIX)
        self.held_out = held_out[: settings.held_out_max or None]
        torch.manual_seed(settings.seed)
        self.trainer = train.Trainer(load(settings.model), settings.recipe, settings.device)

    def run(self) -> None:
        if self.client is not None:
            self.write("run", 0, {**bench_tools.origin(), "world": self.trainer.world,
                                  "recipe": dataclasses.asdict(self.settings.recipe)})
        self.push(0)
        self.evaluate(0, whole=True)
        for step in range(1, self.settings.recipe.steps + 1):
            self.step(step)
            last = step == self.settings.recipe.steps
            if last or step % self.settings.eval_every == 0:
                self.evaluate(step, whole=last)

    def step(self, step: int) -> None:
        """Answers by the weights of the step before, an update, and the new weights live."""
        groups, rollout_seconds = self.roll_out(step)
        start = time.perf_counter()
        report = self.trainer.step(groups)
        train_seconds = time.perf_counter() - start
        commit = self.push(step)
        if self.client is None:
            return
        samples = [sample for group in groups for sample in group]
        tokens = sum(len(sample.output_ids) for sample in samples)
        self.write("step", step, {
            "reward": statistics.fmean(sample.reward for sample in samples),
            "groups": len(groups),
            "truncated": statistics.fmean(sample.truncated for sample in samples),
            "answer_tokens": tokens / len(samples),
            **dataclasses.asdict(report),
            "rollout_seconds": rollout_seconds,
            "rollout_tokens": tokens,
            "rollout_tok_per_s": tokens / rollout_seconds,
            "train_seconds": train_seconds,
            **commit,
        })

    def roll_out(self, step: int) -> tuple[list[list[rollout.Sample]], float]:
        """Rank 0 asks the engine; all ranks get the answers."""
        box: list = [None]
        if self.client is not None:
            problems = self.source.take(self.settings.problems_per_step)
            seed = (self.settings.seed << 32) + step * self.settings.problems_per_step * 1000
            box = [rollout.roll_out(self.client, problems, self.settings.group_size, seed)]
            versions = {v for group in box[0][0] for sample in group for v in sample.versions}
            if versions != {str(step - 1)}:
                raise RuntimeError(f"step {step}: expected tokens of version {step - 1} alone, "
                                   f"got {sorted(versions)}")
        if self.trainer.world > 1:
            dist.broadcast_object_list(box)
        return box[0]

    def push(self, step: int) -> dict:
        """Makes the trainer's weights live as version `step`, and finds them unchanged after it."""
        before = self.trainer.digest()
        start = time.perf_counter()
        bucket = push.bucket_of(self.trainer.named_tensors())
        report: dict = {}
        if self.client is not None:
            commit = push.push(self.client, bucket, str(step))
            report = {"push_seconds": time.perf_counter() - start, "push_bytes": len(bucket),
                      "pause_ms": commit["pause_ms"], "digest": commit["digest"]}
            if commit["version"] != str(step) or self.client.version() != str(step):
                raise RuntimeError(f"pushed version {step}, the engine says {commit['version']}")
        after = self.trainer.digest()
        if after != before:
            raise RuntimeError(f"push {step} changed the trainer's weights: {before} -> {after}")
        return report

    def evaluate(self, step: int, whole: bool) -> None:
        """Greedy answers to the first `eval_problems` held-out problems, or to all of them."""
        if self.client is None:
            return
        count = self.settings.eval_problems
        problems = self.held_out if whole else self.held_out[:count]
        rewards = rollout.greedy_rewards(self.client, problems)
        values = {"accuracy": statistics.fmean(rewards[:count])}
        if whole:
            levels = sorted({problem.difficulty for problem in problems})
            values |= {
                "accuracy_all": statistics.fmean(rewards),
                "by_difficulty": {level: statistics.fmean(
                    reward for problem, reward in zip(problems, rewards, strict=True)
                    if problem.difficulty == level) for level in levels}}
        self.write("eval", step, values)

    def write(self, kind: str, step: int, values: dict) -> None:
        settings = self.settings
        line = {"kind": kind, "run": settings.name, "format": settings.format,
                "tis": settings.recipe.tis, "seed": settings.seed, "step": step, **values}
        self.log.write(json.dumps(line) + "\n")
        self.log.flush()
        shown = {k: round(v, 6) for k, v in values.items() if isinstance(v, float)}
        print(f"{settings.name} {kind} {step}: {shown}", flush=True)
