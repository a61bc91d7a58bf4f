#!/usr/bin/env python3
"""`make grpo`: reinforcement learning of a small model against live Octavo servers.

For every format, with and without TIS, and every seed: serves the base model, trains it on rollouts
in that format, and pushes the weights after every step. Writes JSON lines, plots and a table.
Needs the packages of requirements.txt.
"""

import argparse
import contextlib
import json
import os
import pathlib
import sys
import tempfile
import time
from collections.abc import Iterator

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parent.parent
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "bench")]

try:
    import torch
    import torch.distributed as dist
    import torch.multiprocessing as mp
except ModuleNotFoundError:
    sys.exit(f"grpo: this Python has no torch: run `make grpo`, which makes an environment for it, "
             f"or `pip install -r {HERE / 'requirements.txt'}`")

import demo_tools as tools  # noqa: E402
import experiment  # noqa: E402
import plots  # noqa: E402
import rollout  # noqa: E402
import task  # noqa: E402
import train  # noqa: E402

MODEL = "models/abacus-dense-base"
DATA = "data/abacus-test.jsonl"
SPEED_PROMPTS = 64
SPEED_LENGTHS = (16, 64, 256, 1024)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="GRPO against octavo serve.")
    defaults, recipe = experiment.Settings(pathlib.Path(), pathlib.Path()), train.Recipe()
    add = parser.add_argument
    add("--octavo", type=pathlib.Path, default=ROOT / "build" / "octavo", help="the built program")
    add("--out", type=pathlib.Path, default=ROOT / "out" / "grpo", help="folder of all results")
    add("--formats", nargs="+", default=list(experiment.FORMATS), choices=experiment.FORMATS)
    add("--tis", nargs="+", default=["on", "off"], choices=["on", "off"])
    add("--seeds", nargs="+", type=int, default=[1])
    add("--steps", type=int, default=recipe.steps)
    add("--problems", type=int, default=defaults.problems_per_step, help="of a step")
    add("--group-size", type=int, default=defaults.group_size, help="answers to a problem")
    add("--learning-rate", type=float, default=recipe.learning_rate)
    add("--updates", type=int, default=recipe.updates_per_step, help="of a step")
    add("--credit", default=recipe.credit, choices=["line", "answer"], help="what is rewarded")
    add("--eval-every", type=int, default=defaults.eval_every, help="steps")
    add("--eval-problems", type=int, default=defaults.eval_problems)
    add("--held-out-max", type=int, default=defaults.held_out_max, help="0: all")
    add("--device", default=defaults.device, help="of the trainer, as torch names it")
    add("--processes", type=int, default=1, help="of the trainer; more than one is FSDP2 over gloo")
    add("--threads", type=int, default=None, help="of the server and of the trainer")
    add("--report", action="store_true", help="plots and table of what is in --out, no training")
    add("--drawn", action="store_true",
        help="evaluate on drawn problems, to choose settings without a look at the held-out ones")
    args = parser.parse_args()
    args.octavo, args.out = args.octavo.resolve(), args.out.resolve()
    return args


def settings_of(args: argparse.Namespace) -> list[experiment.Settings]:
    return [experiment.Settings(
                model=ROOT / MODEL, data=ROOT / DATA, format=weights, seed=seed,
                problems_per_step=args.problems, group_size=args.group_size,
                eval_every=args.eval_every, eval_problems=args.eval_problems,
                held_out_max=args.held_out_max, drawn=args.drawn, device=args.device,
                recipe=train.Recipe(learning_rate=args.learning_rate, steps=args.steps,
                                    updates_per_step=args.updates, credit=args.credit,
                                    tis=tis == "on"))
            for seed in args.seeds for weights in args.formats for tis in args.tis]


def train_all(octavo: tools.Octavo, args: argparse.Namespace) -> None:
    for settings in settings_of(args):
        start = time.perf_counter()
        path = args.out / f"{settings.name}.jsonl"
        with served(octavo, args, settings.name, settings.format) as client:
            if args.processes == 1:
                train_one(settings, client, path)
            else:
                with tempfile.TemporaryDirectory() as store:
                    mp.spawn(train_rank, (args.processes, settings, client.url, path, store),
                             nprocs=args.processes)
        tools.say(f"  {settings.name}: {time.perf_counter() - start:.0f} s")


def train_one(settings: experiment.Settings, client: rollout.Client | None,
              path: pathlib.Path) -> None:
    """One run, or one rank of it; without a client it is not the first and writes nothing."""
    with open(path if client is not None else os.devnull, "w", encoding="utf-8") as log:
        experiment.Run(settings, client, log).run()


def train_rank(rank: int, world: int, settings: experiment.Settings, url: str, path: pathlib.Path,
               store: str) -> None:
    """A process of `world`, which share the processors and meet over gloo."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // world))
    dist.init_process_group("gloo", init_method=f"file://{store}/store", rank=rank,
                            world_size=world)
    train_one(settings, rollout.Client(url) if rank == 0 else None, path)
    dist.destroy_process_group()


def measure_speed(octavo: tools.Octavo, args: argparse.Namespace) -> None:
    """Token/s by the length of the answers, of every format: speed.jsonl."""
    source = task.Source(0, [])
    prompts = [problem.prompt for problem in source.take(SPEED_PROMPTS)]
    with open(args.out / "speed.jsonl", "w", encoding="utf-8") as log:
        for weights in args.formats:
            with served(octavo, args, f"speed-{weights}", weights) as client:
                for length in SPEED_LENGTHS:
                    speed = rollout.decode_speed(client, prompts, length)
                    line = {"format": weights, "answer_tokens": length, "tok_per_s": speed}
                    log.write(json.dumps(line) + "\n")


@contextlib.contextmanager
def served(octavo: tools.Octavo, args: argparse.Namespace, name: str,
           weights: str) -> Iterator[rollout.Client]:
    flags = [] if weights == "bf16" else ["--format", weights]
    threads = [] if args.threads is None else ["--threads", str(args.threads)]
    with octavo.serving(name, MODEL, *flags, *threads) as url:
        yield rollout.Client(url)


def report(args: argparse.Namespace) -> None:
    runs = plots.read(args.out)
    plots.draw(runs, args.out / "grpo.png")
    if (args.out / "speed.jsonl").exists():
        plots.draw_speed(args.out, args.out / "grpo_speed.png")
    tools.say(plots.table(runs))
    tools.say(f"written to {args.out}")


def main() -> None:
    args = parse_args()
    os.chdir(ROOT)
    args.out.mkdir(parents=True, exist_ok=True)
    if args.threads is not None:
        torch.set_num_threads(args.threads)
    octavo = tools.Octavo(str(args.octavo), args.out)
    try:
        if not args.report:
            train_all(octavo, args)
            measure_speed(octavo, args)
        report(args)
    except KeyboardInterrupt:
        sys.exit("grpo: interrupted")
    except (tools.DemoError, OSError, RuntimeError, mp.ProcessRaisedException,
            mp.ProcessExitedException) as error:
        sys.exit(f"grpo: {error}")
    finally:
        octavo.kill_all()


if __name__ == "__main__":
    main()
