"""What the benchmarks of this folder say about where their figures come from. Standard library only.
"""

import datetime
import os
import pathlib
import platform
import subprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def processor():
    """The model name of the first processor, as Linux gives it."""
    for line in pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def commit():
    """The commit of the tree, with a mark when files differ from it; None outside git."""
    describe = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(describe, cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


def origin():
    """The head of a file of results: of which tree, where and when."""
    now = datetime.datetime.now(datetime.timezone.utc)
    return {"commit": commit(), "date": now.strftime("%Y-%m-%dT%H:%M:%SZ"),
            "processor": processor(), "processors": len(os.sched_getaffinity(0))}
