#!/usr/bin/env python3
"""Runs every libFuzzer target of a build over a copy of its committed seeds, each for some seconds.

Usage: run_fuzzers.py --build build-fuzz [--seconds 60]. Exits 1 when a target finds something; its
input then lies in the build folder under findings/.
"""

import argparse
import pathlib
import subprocess
import sys


def run(target, corpus, work, seconds):
    """Runs one target; returns its exit code."""
    found = work / "findings"
    grown = work / "corpus" / target.name
    for folder in (found, grown):
        folder.mkdir(parents=True, exist_ok=True)
    command = [str(target), f"-max_total_time={seconds}", f"-artifact_prefix={found}/{target.name}-",
               "-print_final_stats=1", "-verbosity=0", str(grown)]
    if corpus.is_dir():
        command.append(str(corpus))
    print(f"fuzz: {target.name} for {seconds} s", flush=True)
    return subprocess.run(command, check=False).returncode


def main():
    """Runs all targets; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", required=True, type=pathlib.Path)
    parser.add_argument("--seconds", type=int, default=60)
    args = parser.parse_args()
    root = pathlib.Path(__file__).resolve().parent.parent
    targets = sorted((args.build / "fuzz").glob("*_fuzzer"))
    if not targets:
        print(f"fuzz: no targets in {args.build}/fuzz", file=sys.stderr)
        return 1
    failed = [t.name for t in targets
              if run(t, root / "fuzz" / "corpus" / t.name.removesuffix("_fuzzer"), args.build,
                     args.seconds)]
    print(f"fuzz: {len(targets)} targets, {len(failed)} with findings {' '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
