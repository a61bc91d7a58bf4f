#!/usr/bin/env python3
"""Installs the package into an environment of its own, out/torch-venv, beside PyTorch for the CPU
and NumPy from PyPI, and runs the torch tests of tests/python there. Downloads about 200 MB, once.

Usage: run_torch_tests.py [OCTAVO]"""

import pathlib
import subprocess
import sys
import venv

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / "out" / "torch-venv"
PACKAGES = ("numpy", "torch")
CPU_INDEX = "https://download.pytorch.org/whl/cpu"


def run(*args, check=True):
    return subprocess.run([str(arg) for arg in args], cwd=ROOT, check=check).returncode


def main():
    program = sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "octavo"
    python = VENV / "bin" / "python"
    if not python.exists():
        venv.create(VENV, with_pip=True)
    if run(python, "-c", "import numpy, torch", check=False) != 0:
        pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        # PyTorch's own index has it without CUDA; where it cannot be reached, PyPI has it with.
        if run(*pip, "--timeout", "15", "--retries", "0", "--index-url", CPU_INDEX, *PACKAGES,
               check=False) != 0:
            run(*pip, *PACKAGES)
    run(python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", ".")
    tests = ("torch_package.py", "torch_grpo_test.py")
    return max(run(python, f"tests/python/{test}", program, check=False) for test in tests)


if __name__ == "__main__":
    sys.exit(main())
