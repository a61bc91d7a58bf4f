#!/usr/bin/env python3
"""Holds every #include against the component table, and every file against its size.

The table is that of docs/architecture.md: a component may include its own headers and those of the
components it lists, and what those list. Also checked: where CUDA, Highway, JSON and HTTP headers
may appear, and that no file passes 600 lines without saying why in its first comment.

Usage: check_layers.py [ROOT]. Prints one line a finding; exits 1 when there is one.
"""

import pathlib
import re
import sys

DIRECT = {
    "base": [],
    "formats": ["base"],
    "checkpoint": ["base"],
    "text": ["base"],
    "model/spec": ["checkpoint"],
    "policy": ["formats", "model/spec"],
    "kernels": ["formats"],
    "convert": ["policy"],
    "model": ["policy", "kernels"],
    "engine": ["model"],
    "sync": ["convert", "engine"],
    "server": ["sync", "text"],
    "client": ["base"],
    "capi": ["convert", "client"],
    "measure": ["sync", "text", "client"],
    "cli": ["measure", "server"],
}

# include/octavo/octavo.h, the C ABI: of the component that makes it, and of python/, which sees
# nothing else.
PUBLIC = "octavo.h"
MAX_LINES = 600
SIMD = re.compile(r'#include\s+["<](hwy/|immintrin\.h|x86intrin\.h)')
CUDA = re.compile(r'#include\s+["<](cuda|cublas|nccl)')
EDGE = re.compile(r'#include\s+["<](nlohmann/|simdjson|boost/)')
OURS = re.compile(r'#include\s+"octavo/([^"]+)"')


def component_of(path):
    """The component of a path below octavo/: the longest table entry that is its folder."""
    best = None
    for name in DIRECT:
        if path.startswith(name + "/") and (best is None or len(name) > len(best)):
            best = name
    return best


def reachable(name):
    """The component itself and everything below it."""
    seen, pending = set(), [name]
    while pending:
        current = pending.pop()
        if current not in seen:
            seen.add(current)
            pending.extend(DIRECT[current])
    return seen


def check_file(root, path):
    """Yields the findings of one source file."""
    relative = path.relative_to(root / "octavo").as_posix()
    component = component_of(relative)
    if component is None:
        yield f"{relative}: expected a component of the table, got none"
        return
    allowed = reachable(component)
    lines = path.read_text(encoding="utf-8").splitlines()
    if len(lines) > MAX_LINES and "lines" not in "\n".join(lines[:12]):
        yield f"{relative}: expected at most {MAX_LINES} lines, got {len(lines)}"
    for number, line in enumerate(lines, start=1):
        where = f"{relative}:{number}"
        if match := OURS.match(line):
            target = "capi" if match[1] == PUBLIC else component_of(match[1])
            if target not in allowed:
                yield f"{where}: {component} may not include {target} ({match[1]})"
        if SIMD.match(line) and "_simd" not in path.name and not relative.startswith("kernels/cpu/"):
            yield f"{where}: SIMD headers belong to *_simd files of formats/ and to kernels/cpu/"
        if CUDA.match(line) and not relative.startswith(("kernels/cuda/", "sync/nccl/")):
            yield f"{where}: CUDA headers belong to kernels/cuda/ and sync/nccl/"
        if EDGE.match(line) and path.suffix == ".h":
            yield f"{where}: JSON and HTTP types belong to .cc files"


def check_extension(root, path):
    """Yields the findings of one source file of the Python extension."""
    if path.suffix not in (".h", ".cc"):
        return
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = OURS.match(line)
        if match and match[1] != PUBLIC:
            yield f"{path.relative_to(root)}:{number}: python may include octavo/{PUBLIC} alone"


def main():
    """Checks the tree; returns the exit code."""
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    files = sorted(p for s in ("*.h", "*.cc", "*.cu", "*.cuh") for p in (root / "octavo").rglob(s))
    findings = [finding for path in files for finding in check_file(root, path)]
    findings += [finding for path in (root / "python").rglob("*.[hc]*")
                 for finding in check_extension(root, path)]
    for finding in findings:
        print(finding)
    print(f"check_layers: {len(files)} files, {len(findings)} findings")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
