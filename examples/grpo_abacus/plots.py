"""Plots and the table of the results that run.py has written. Needs matplotlib."""

import json
import pathlib
import statistics

import matplotlib
from PIL import Image

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

Line = dict[str, object]
COLORS = {"bf16": "black", "fp8": "tab:blue", "mxfp8": "tab:green", "nvfp4": "tab:red"}
PANELS = (
    ("step", "reward", "mean reward (training mix)", False),
    ("eval", "accuracy", "held-out accuracy, greedy", False),
    ("step", "k3", "k3, trainer against engine", True),
    ("step", "abs_dlogp", "mean |Δlogprob|", True),
    ("step", "tis_clipped", "share of tokens that C = 2 clips", False),
    ("step", "rollout_tok_per_s", "rollout token/s", False),
)


def read(folder: pathlib.Path) -> dict[str, list[Line]]:
    """The lines of every run in a folder of results, by the run's name."""
    runs = {}
    for path in sorted(folder.glob("*-seed*.jsonl")):
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        runs[lines[0]["run"]] = lines
    return runs


def of_kind(lines: list[Line], kind: str) -> list[Line]:
    return [line for line in lines if line["kind"] == kind]


def draw(runs: dict[str, list[Line]], path: pathlib.Path) -> None:
    """One picture: PANELS over the steps, a line a run; dashed without TIS."""
    figure, axes = plt.subplots(2, 3, figsize=(10, 5.2), constrained_layout=True)
    labelled: set[str] = set()
    for lines in runs.values():
        head = lines[0]
        name = head["format"] + ("" if head["tis"] else ", no TIS")
        style = {"color": COLORS[head["format"]], "ls": "-" if head["tis"] else "--", "lw": 0.9}
        for panel, (kind, key, title, is_log) in zip(axes.flat, PANELS, strict=True):
            points = of_kind(lines, kind)
            label = name if panel is axes.flat[0] and name not in labelled else None
            panel.plot([x["step"] for x in points], [x[key] for x in points], label=label, **style)
            panel.set_title(title, fontsize=9)
            panel.tick_params(labelsize=7)
            if is_log:
                panel.set_yscale("log")
        labelled.add(name)
    axes.flat[0].legend(fontsize=7)
    save(figure, path)


def draw_speed(folder: pathlib.Path, path: pathlib.Path) -> None:
    """Token/s of every format by the length of the answers, of speed.jsonl."""
    lines = [json.loads(line) for line in (folder / "speed.jsonl").read_text().splitlines()]
    figure, axis = plt.subplots(figsize=(5, 3), constrained_layout=True)
    for weights, color in COLORS.items():
        points = [x for x in lines if x["format"] == weights]
        axis.plot([x["answer_tokens"] for x in points], [x["tok_per_s"] for x in points],
                  color=color, label=weights, marker=".")
    axis.set_xscale("log", base=2)
    axis.set_xlabel("tokens of an answer")
    axis.set_ylabel("token/s")
    axis.legend(fontsize=7)
    save(figure, path)


def save(figure: plt.Figure, path: pathlib.Path) -> None:
    """16 colours are enough for lines, and a quarter of the bytes."""
    figure.savefig(path, dpi=70)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(16).save(path, optimize=True)


def table(runs: dict[str, list[Line]]) -> str:
    """A Markdown row a run: accuracy (first held-out problems) and means over its steps."""
    rows = ["| run | steps | accuracy before | after | k3 | mean abs dlogp | clipped by C = 2 | "
            "rollout token/s | seconds a step |", "| --- " * 9 + "|"]
    for name, lines in runs.items():
        steps, evals = of_kind(lines, "step"), of_kind(lines, "eval")

        def mean(*keys: str, steps: list[Line] = steps) -> float:
            return statistics.fmean(sum(step[key] for key in keys) for step in steps)

        seconds = mean("rollout_seconds", "train_seconds", "push_seconds")
        rows.append(
            f"| {name} | {len(steps)} | {shown(evals[0])} | {shown(evals[-1])} | {mean('k3'):.1e} "
            f"| {mean('abs_dlogp'):.1e} | {mean('tis_clipped'):.1e} | "
            f"{mean('rollout_tok_per_s'):,.0f} | {seconds:.1f} |")
    return "\n".join(rows)


def shown(line: Line) -> str:
    return f"{line['accuracy']:.3f} (step {line['step']})"
